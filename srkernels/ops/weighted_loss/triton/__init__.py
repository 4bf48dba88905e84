from .launch import backward, forward

__all__ = ["backward", "forward"]
