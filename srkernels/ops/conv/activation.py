"""The activations that a convolution's epilogue knows: codes, values and derivatives in eager PyTorch."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

NONE, RELU, LEAKY_RELU, PRELU = range(4)
ACTIVATIONS = {"none": NONE, "relu": RELU, "leaky_relu": LEAKY_RELU, "prelu": PRELU}


class Epilogue(NamedTuple):
    """What follows a convolution's sum z: ``scale * act(z)``. ``activation`` is a code of ``ACTIVATIONS``,
    ``negative_slope`` that of leaky_relu.
    """

    activation: int = NONE
    negative_slope: float = 0.0
    scale: float = 1.0


class Follows(Protocol):
    """An ``Epilogue``, or settings that have one's."""

    @property
    def activation(self) -> int: ...
    @property
    def negative_slope(self) -> float: ...
    @property
    def scale(self) -> float: ...


CONVOLUTION = Epilogue()  # nothing follows


def activate(z: Tensor, epilogue: Follows, slope: Tensor | None) -> Tensor:
    if epilogue.activation == RELU:
        return F.relu(z)
    if epilogue.activation == LEAKY_RELU:
        return F.leaky_relu(z, epilogue.negative_slope)
    if epilogue.activation == PRELU:
        assert slope is not None
        return F.prelu(z, slope)
    return z


def sign_survives(epilogue: Follows) -> bool:
    """Whether the activation's result tells on which side of zero its input was: then the input need not be kept."""
    return epilogue.activation == RELU or (epilogue.activation == LEAKY_RELU and epilogue.negative_slope > 0)


def derivative(grad: Tensor, kept: Tensor | None, epilogue: Follows, slope: Tensor | None) -> Tensor:
    """``grad`` times the activation's derivative; NaN as in PyTorch."""
    if epilogue.activation == NONE:
        return grad
    assert kept is not None
    if epilogue.activation == RELU:
        return torch.where(kept <= 0, 0, grad)
    below = epilogue.negative_slope if epilogue.activation == LEAKY_RELU else per_channel(slope)
    return torch.where(kept > 0, grad, below * grad)


def slope_gradient(grad: Tensor, z: Tensor, slope: Tensor) -> Tensor:
    """Gradient of PReLU's slopes: the sum of ``z * grad`` where z is not positive, per channel or over all."""
    by_element = torch.where(z > 0, 0, z * grad)
    return by_element.sum((0, 2, 3)) if slope.numel() > 1 or z.shape[1] == 1 else by_element.sum().view(1)


def per_channel(slope: Tensor | None) -> Tensor:
    assert slope is not None
    return slope.view(1, -1, 1, 1)
