from .launch import analysis, synthesis

__all__ = ["analysis", "synthesis"]
