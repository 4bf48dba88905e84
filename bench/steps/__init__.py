"""The methods' training steps, measured in several forms; needs the extra ``train``."""

from . import dasr, patched, usrda
from .form import StepBench


def configurations() -> dict[str, StepBench]:
    """Every configuration of every method by name."""
    return {**dasr.configurations(), **usrda.configurations(), **patched.configurations()}
