from .api import haar_dwt2d, haar_highpass, haar_idwt2d
from .conventions import CONVENTIONS as HAAR_CONVENTIONS
from .convert import convert_haar_weight
from .modules import HaarDWT2d, HaarHighPass

__all__ = [
    "HAAR_CONVENTIONS",
    "HaarDWT2d",
    "HaarHighPass",
    "convert_haar_weight",
    "haar_dwt2d",
    "haar_highpass",
    "haar_idwt2d",
]
