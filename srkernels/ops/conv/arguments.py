"""What the convolution operators take, and what their backward passes receive."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .activation import NONE, Epilogue
from .geometry import PLAIN


class Convolution(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    slope: Tensor | None
    residual: Tensor | None


class ConvolutionSettings(NamedTuple):
    """An ``Epilogue``'s, and how the filters pass over the image: ``Geometry.flat``, or ``PLAIN``."""

    activation: int = NONE
    negative_slope: float = 0.0
    scale: float = 1.0
    geometry: tuple[int, ...] = PLAIN

    @property
    def epilogue(self) -> Epilogue:
        return Epilogue(*self[:3])


class SavedConvolution(NamedTuple):
    """``x`` where the weight's gradient, or a second derivative, reads it; ``kept``: output or pre-activation."""

    x: Tensor | None
    weight: Tensor
    bias: Tensor | None
    slope: Tensor | None
    kept: Tensor | None


class Block(NamedTuple):
    """A residual block's operands."""

    x: Tensor
    weight1: Tensor
    bias1: Tensor | None
    weight2: Tensor
    bias2: Tensor | None
    slope: Tensor | None


class SavedBlock(NamedTuple):
    """``kept``: what the first convolution kept (``reference.first_convolution``)."""

    x: Tensor
    weight1: Tensor
    bias1: Tensor | None
    weight2: Tensor
    slope: Tensor | None
    kept: Tensor | None


class DenseSettings(NamedTuple):
    """``slope`` of the leaky ReLU; the block's result is ``x + res_scale * conv5``."""

    slope: float
    res_scale: float


class Dense(NamedTuple):
    """A dense block's: x, five weights, five biases."""

    x: Tensor
    weight1: Tensor
    weight2: Tensor
    weight3: Tensor
    weight4: Tensor
    weight5: Tensor
    bias1: Tensor | None
    bias2: Tensor | None
    bias3: Tensor | None
    bias4: Tensor | None
    bias5: Tensor | None

    @property
    def weights(self) -> tuple[Tensor, ...]:
        return self[1:6]

    @property
    def biases(self) -> tuple[Tensor | None, ...]:
        return self[6:11]


class SavedDense(NamedTuple):
    """``features`` x | x1 | x2 | x3 | x4 where the forward pass kept them, else ``x``."""

    x: Tensor | None
    weight1: Tensor
    weight2: Tensor
    weight3: Tensor
    weight4: Tensor
    weight5: Tensor
    bias1: Tensor | None
    bias2: Tensor | None
    bias3: Tensor | None
    bias4: Tensor | None
    bias5: Tensor | None
    features: Tensor | None

    @property
    def weights(self) -> tuple[Tensor, ...]:
        return self[1:6]

    @property
    def biases(self) -> tuple[Tensor | None, ...]:
        return self[6:11]

    @property
    def like(self) -> Tensor:
        """A tensor with the layout of x."""
        found = self.features if self.x is None else self.x
        assert found is not None
        return found
