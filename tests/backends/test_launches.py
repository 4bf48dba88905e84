"""How many launches the convolution ops make on a GPU, counted without one: our kernels and PyTorch's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from srkernels._triton import workspace
from srkernels.ops.conv.activation import RELU, Epilogue
from srkernels.ops.conv.arguments import (
    Block,
    Convolution,
    Dense,
    DenseSettings,
    SavedBlock,
    SavedConvolution,
    SavedDense,
)

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: no kernels to launch", allow_module_level=True)

from srkernels._launch import redirected
from srkernels.ops.conv import pointwise
from srkernels.ops.conv import triton as blocks
from srkernels.ops.conv.spec import CONV2D_ACT, DENSE_BLOCK, RESIDUAL_BLOCK
from srkernels.ops.conv.triton import launch
from srkernels.ops.weighted_loss.arguments import BILINEAR, MEAN, Operands, Saved, Settings
from srkernels.ops.weighted_loss.spec import WEIGHTED_L1
from srkernels.ops.weighted_loss.triton import launch as weighted_loss

NEEDS = [True, True, True, False]  # all but slopes


class _Launches(TorchDispatchMode):
    """Names of what would be launched; views and empty tensors are not."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        tensors = any("Tensor" in str(r.type) for r in returns)
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if tensors and not views and "empty" not in func._schema.name:
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launched() -> Iterator[Callable[[Callable[[], Any]], list[str]]]:
    """What a call launches; our kernels do nothing."""
    counter = _Launches()

    def launched(call: Callable[[], Any]) -> list[str]:
        counter.names.clear()
        with counter:
            call()
        return list(counter.names)

    with redirected(lambda launch, *tensors: counter.names.append(launch.kernel.fn.__name__)):
        yield launched


def _image(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)


def test_launches_of_a_convolution(launched) -> None:
    """Backward, one pass makes g_z and shares of the bias's gradient; without an activation the product makes them."""
    x, weight, bias = _image(1, 64, 8, 8), _image(64, 64, 3, 3), torch.empty(64, dtype=torch.bfloat16)
    forward = launched(lambda: blocks.forward(Convolution(x, weight, bias, None, None), Epilogue(RELU), False))
    assert forward == ["stream"]
    backward = launched(lambda: blocks.backward(x, SavedConvolution(x, weight, bias, None, x), Epilogue(RELU), NEEDS))
    assert sorted(backward) == [
        "add_up", "aten::copy_", "aten::sum", "stream", "through_activation", "weight_gradient"
    ]  # fmt: skip
    assert (len(forward), len(backward)) == CONV2D_ACT.launches
    linear = launched(lambda: blocks.backward(x, SavedConvolution(x, weight, bias, None, None), Epilogue(), NEEDS))
    assert linear == ["stream", "weight_gradient", "add_up"]


def test_launches_of_a_residual_block(launched) -> None:
    x, weight, bias = _image(1, 64, 8, 8), _image(64, 64, 3, 3), torch.empty(64, dtype=torch.bfloat16)
    forward = launched(lambda: blocks.block_forward(Block(x, weight, bias, weight, bias, None), Epilogue(RELU), True))
    assert forward == ["stream"] * 2
    backward = launched(
        lambda: blocks.block_backward(
            x, SavedBlock(x, weight, bias, weight, None, x), Epilogue(RELU), [*[True] * 5, False]
        )
    )
    assert sorted(backward) == ["add_up"] * 2 + ["stream"] * 2 + ["weight_gradient"] * 2
    assert (len(forward), len(backward)) == RESIDUAL_BLOCK.launches


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_launches_of_a_dense_block(launched, layout) -> None:
    """Eager PyTorch takes 51; ours 15, and one more forward where the filters are not channels_last."""
    x, features = _image(1, 64, 8, 8), _image(1, 192, 8, 8)
    weights = [_image(64 if k == 4 else 32, 64 + 32 * k, 3, 3).contiguous(memory_format=layout) for k in range(5)]
    biases = [torch.empty(len(w), dtype=torch.bfloat16) for w in weights]
    forward = launched(lambda: blocks.dense_forward(Dense(x, *weights, *biases), DenseSettings(0.2, 0.2), True))
    packed = [] if layout is torch.channels_last else ["pack"]
    convolutions = ["stream", *["shift"] * 4]  # the first with 64 channels, the others with more
    assert forward == [*packed, "aten::copy_", *convolutions]
    backward = launched(
        lambda: blocks.dense_backward(
            x, SavedDense(None, *weights, *biases, features), DenseSettings(0.2, 0.2), [True] * 11
        )
    )
    assert backward == ["aten::mul", "pack", *convolutions, "weight_gradient", "add_up"]
    assert (len(forward) - len(packed), len(backward)) == DENSE_BLOCK.launches


def test_launches_around_the_library(launched) -> None:
    """PyTorch's convolutions without bias, one pass behind each, one ahead of the first one's gradients, two sums."""
    x, weight, bias = _image(1, 64, 8, 8), _image(64, 64, 3, 3), torch.empty(64, dtype=torch.bfloat16)
    relu, needs = Epilogue(RELU, scale=0.1), [*[True] * 5, False]
    forward = launched(lambda: pointwise.block_forward(Block(x, weight, bias, weight, bias, None), relu, True))
    assert forward == ["aten::convolution", "pointwise"] * 2
    backward = launched(lambda: pointwise.block_backward(x, SavedBlock(x, weight, bias, weight, None, x), relu, needs))
    sums, filters = ["aten::sum", "aten::copy_"], ["aten::convolution_backward", "aten::copy_"]
    first = ["aten::mul", "aten::convolution", "through_activation", *sums]  # of the filters, by the scale
    assert backward == [
        *first, "aten::convolution", "pointwise", *filters, "through_activation", *sums, filters[0], "aten::mul"
    ]  # fmt: skip

    plain = launched(lambda: pointwise.forward(Convolution(x, weight, None, None, None), Epilogue(), False))
    assert plain == ["aten::convolution"]
    saved = SavedConvolution(x, weight, None, None, None)
    assert launched(lambda: pointwise.backward(x, saved, Epilogue(), [True, False, False, False])) == plain


def test_a_dense_block_around_the_library_concatenates_nothing(launched) -> None:
    x, features = _image(1, 64, 8, 8), _image(1, 192, 8, 8)
    weights = [_image(64 if k == 4 else 32, 64 + 32 * k, 3, 3) for k in range(5)]
    biases = [torch.empty(len(w), dtype=torch.bfloat16) for w in weights]
    settings = DenseSettings(0.2, 0.2)
    forward = launched(lambda: pointwise.dense_forward(Dense(x, *weights, *biases), settings, True))
    assert forward == ["aten::copy_", *["aten::convolution", "pointwise"] * 5]
    saved = SavedDense(None, *weights, *biases, features)
    backward = launched(lambda: pointwise.dense_backward(x, saved, settings, [True] * 11))
    assert backward.count("aten::convolution_backward") == 1
    assert backward[2:12] == ["aten::convolution", "pointwise"] * 5
    assert "aten::cat" not in backward


def test_launches_of_the_weighted_loss(launched) -> None:
    """Backward one for the images, both or either, and one for the map."""
    x, u = torch.empty(1, 3, 8, 8), torch.empty(1, 1, 4, 4)
    settings = Settings(MEAN, False, BILINEAR, False)
    workspace(x.device)  # is made and zeroed once
    forward = launched(lambda: weighted_loss.forward(Operands(x, x, u), settings, False))
    assert forward == ["loss_total"]
    for needs, expected in (
        ([True, False, False], ["image_gradients"]),
        ([True, True, False], ["image_gradients"]),
        ([False, False, True], ["map_gradient"]),
        ([True, True, True], ["image_gradients", "map_gradient"]),
    ):
        saved = Saved(x, x, u, None, None)
        assert launched(lambda s=saved, n=needs: weighted_loss.backward(torch.empty(()), s, settings, n)) == expected
    assert (len(forward), len(expected)) == WEIGHTED_L1.launches


def test_shares_of_a_sum_follow_its_pixels() -> None:
    """Partial sums are written and read: 132 shares of 16x32x32 pixels were 19 MB for 1.2 GFLOP."""
    each, shares = launch.split(16 * 32 * 32, 64, 1, 132)
    assert shares == 37 and each * shares * 64 >= 16 * 32 * 32
    assert launch.split(16 * 192 * 192, 64, 1, 132)[1] == 132
    assert launch.split(16 * 192 * 192, 64, 9, 132)[1] == 14
    assert launch.split(1, 64, 9, 4) == (1, 1)


def test_what_reads_less_is_chosen() -> None:
    """On a Hopper of 132 multiprocessors: by rows where there are enough, and ``shift`` where channels are many.

    ``stream`` again where ``shift`` cannot hold the filters.
    """

    def chosen(n: int, channels: int, out: int, size: int) -> str:
        shape = torch.Size((n, channels, size, size))
        return launch._chosen(shape, out, torch.bfloat16, True, 132).kernel

    assert chosen(16, 64, 64, 192) == chosen(8, 512, 64, 128) == "stream"
    assert chosen(8, 160, 32, 128) == chosen(8, 192, 64, 128) == "shift"
    assert chosen(16, 64, 64, 32) == chosen(1, 64, 64, 32) == "gather"
