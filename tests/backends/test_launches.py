"""How many launches the convolution ops make on a GPU, counted without one: our kernels and PyTorch's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from srkernels._triton import workspace
from srkernels.ops.conv.activation import LEAKY_RELU, RELU, Epilogue
from srkernels.ops.conv.arguments import (
    Block,
    Convolution,
    ConvolutionSettings,
    Dense,
    DenseSettings,
    SavedBlock,
    SavedConvolution,
    SavedDense,
)
from srkernels.ops.conv.geometry import Geometry, output_size

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: no kernels to launch", allow_module_level=True)

from srkernels.ops.conv import pointwise
from srkernels.ops.conv import triton as blocks
from srkernels.ops.conv.spec import CONV2D_ACT, DENSE_BLOCK, RESIDUAL_BLOCK
from srkernels.ops.conv.triton import around, launch
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
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], list[str]]:
    """What a call launches; our kernels do nothing."""
    counter = _Launches()

    class Note:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **options: counter.names.append(self.name)

    for module in (launch, around, weighted_loss):
        for name, found in vars(module).copy().items():
            if hasattr(found, "arg_names"):
                monkeypatch.setattr(module, name, Note(name))

    def launched(call: Callable[[], Any]) -> list[str]:
        counter.names.clear()
        with counter:
            call()
        return list(counter.names)

    return launched


def _image(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)


def test_launches_of_a_convolution(launched) -> None:
    """Backward, one pass makes g_z and shares of the bias's gradient; without an activation the product makes them."""
    x, weight, bias = _image(1, 64, 8, 8), _image(64, 64, 3, 3), torch.empty(64, dtype=torch.bfloat16)
    forward = launched(
        lambda: blocks.forward(Convolution(x, weight, bias, None, None), ConvolutionSettings(RELU), False)
    )
    assert forward == ["stream"]
    saved = SavedConvolution(x, weight, bias, None, x)
    backward = launched(lambda: blocks.backward(x, saved, ConvolutionSettings(RELU), NEEDS))
    assert sorted(backward) == [
        "add_up", "aten::copy_", "aten::sum", "stream", "through_activation", "weight_gradient"
    ]  # fmt: skip
    assert (len(forward), len(backward)) == CONV2D_ACT.launches
    linear = launched(lambda: blocks.backward(x, saved._replace(kept=None), ConvolutionSettings(), NEEDS))
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


def test_a_configuration_runs_in_every_convolution_that_it_fits(launched) -> None:
    x, weight, bias = _image(1, 64, 8, 8), _image(64, 64, 3, 3), torch.empty(64, dtype=torch.bfloat16)
    linear = SavedConvolution(x, weight, bias, None, None)
    gathering = blocks.configured(["gather"])
    convolution, settings = Convolution(x, weight, bias, None, None), DenseSettings(0.2, 0.2)
    assert launched(lambda: gathering.forward(convolution, ConvolutionSettings(RELU), False)) == ["gather"]
    assert launched(lambda: gathering.backward(x, linear, ConvolutionSettings(), NEEDS))[0] == "gather"
    saved = SavedBlock(x, weight, bias, weight, None, x)
    backward = launched(lambda: gathering.block_backward(x, saved, Epilogue(RELU), [*[True] * 5, False]))
    assert backward.count("gather") == 2
    weights = [_image(64 if k == 4 else 32, 64 + 32 * k, 3, 3) for k in range(5)]
    dense = Dense(x, *weights, *[None] * 5)
    assert launched(lambda: gathering.dense_forward(dense, settings, True)).count("gather") == 5
    streaming = blocks.configured(["stream", "weight stages=4"])
    assert launched(lambda: streaming.dense_forward(dense, settings, True)).count("stream") == 5
    # In fp64 none but ``gather`` fits.
    wide = Convolution(*(None if t is None else t.double() for t in convolution))
    assert launched(lambda: streaming.forward(wide, ConvolutionSettings(RELU), False)) == ["gather"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_configurations_change_what_is_launched_and_nothing_else(dtype, monkeypatch) -> None:
    """Each but the first, which is what runs without, is another launch, and what a product takes fits its name."""
    launches: list[dict[str, Any]] = []

    def kernel(name: str) -> Any:
        return type(
            name, (), {"__getitem__": lambda _, grid: lambda *a, **k: launches.append((name, grid, a[8:], k))}
        )()

    for name in ("stream", "shift", "gather", "weight_gradient"):
        monkeypatch.setattr(launch, name, kernel(name))
    monkeypatch.setattr(launch, "add_up", type("", (), {"__getitem__": lambda _, grid: lambda *a, **k: None})())
    x, weight = _image(1, 64, 8, 8).to(dtype), _image(64, 64, 3, 3).to(dtype).requires_grad_()
    needs = [True, True, False, False]
    convolutions, weights = blocks.configurations(Convolution(x, weight, None, None, None))
    weight, seen = weight.detach(), []
    for names in ([], *([name] for name in (*convolutions, *weights))):
        launches.clear()
        how = blocks.configured(names) if names else blocks
        how.forward(Convolution(x, weight, None, None, None), ConvolutionSettings(), False)
        how.backward(x, SavedConvolution(x, weight, None, None, None), ConvolutionSettings(), needs)
        seen.append(repr(launches))
        if names and names[0] in convolutions:
            kernel_name, *sizes = names[0].split()
            assert [launched[0] for launched in launches] == [kernel_name, kernel_name, "weight_gradient"]
            assert all(f"'num_stages': {size[7:]}" in seen[-1] for size in sizes if size.startswith("stages="))
    plain = (seen[0], seen[1], seen[1 + len(convolutions)])
    assert len(set(plain)) == 1
    assert len(set(seen)) == len(seen) - 2


def test_only_what_fits_is_tried() -> None:
    x, weight = _image(1, 64, 8, 8), _image(64, 64, 3, 3)

    def kernels(**changes: Tensor) -> set[str]:
        (names,) = blocks.configurations(Convolution(x, weight, None, None, None)._replace(**changes))
        return {name.split()[0] for name in names}

    assert kernels() == kernels(residual=x) == {"gather", "stream", "shift"}
    assert kernels(residual=x.float()) == {"gather"}
    assert kernels(x=x.contiguous()) == {"gather", "stream"}
    assert kernels(x=x.double(), weight=weight.double()) == {"gather"}
    assert blocks.configurations(Convolution(x[:0], weight, None, None, None)) == []


def test_a_configuration_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="have no configuration 'shift pixels=63'; there are: gather, stream"):
        blocks.configured(["shift pixels=63"])


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

    linear = ConvolutionSettings()
    plain = launched(lambda: pointwise.forward(Convolution(x, weight, None, None, None), linear, False))
    assert plain == ["aten::convolution"]
    saved = SavedConvolution(x, weight, None, None, None)
    assert launched(lambda: pointwise.backward(x, saved, linear, [True, False, False, False])) == plain


@pytest.mark.parametrize(
    ("filters", "geometry"),
    [
        ((64, 64, 4, 4), Geometry((2, 2), (1, 1), (1, 1), 1)),
        ((64, 1, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 64)),
        ((64, 64, 3, 3), Geometry((1, 1), (2, 2), (2, 2), 1)),
    ],
    ids=["4x4, stride 2", "depthwise", "dilated"],
)
def test_launches_around_any_convolution_are_those_around_3x3(launched, filters, geometry) -> None:
    """The library's three products, one pass behind the first and one ahead of the others, and the shares' sum."""
    x, weight, bias = _image(1, 64, 8, 8), _image(*filters), torch.empty(64, dtype=torch.bfloat16)
    settings = ConvolutionSettings(LEAKY_RELU, 0.2, geometry=geometry.flat)
    forward = launched(lambda: pointwise.forward(Convolution(x, weight, bias, None, None), settings, False))
    assert forward == ["aten::convolution", "pointwise"]
    kept = _image(1, 64, *output_size(settings.geometry, (8, 8), filters[2:]))
    saved = SavedConvolution(x, weight, bias, None, kept)
    backward = launched(lambda: pointwise.backward(kept, saved, settings, NEEDS))
    products = ["aten::convolution", "aten::convolution_backward", "aten::copy_"]
    assert backward == ["through_activation", "aten::sum", "aten::copy_", *products]


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
