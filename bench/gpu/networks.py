"""The networks' blocks beside what they are compared with, eager PyTorch and torch.compile; names of all kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import srkernels
from srkernels._dispatch import why_not

from .. import timing
from ..timing import Call, Stats, time_calls
from .context import Context

_REORDERING = ("nchwtonhwc", "nhwctonchw")


def images(context: Context, count: int, n: int, c: int, size: int, dtype: torch.dtype) -> list[Tensor]:
    shape = (n, c, size, size)
    made = (torch.rand(shape, device=context.device) - 0.5 for _ in range(count))
    return [x.to(dtype).contiguous(memory_format=torch.channels_last) for x in made]


def _summary(found: list[tuple[str, float]]) -> str:
    """The two longest kernels, how many there are, and whether one of them reorders the layout."""
    longest = "; ".join(f"{name[:70]} {us:.0f} us" for name, us in sorted(found, key=lambda item: -item[1])[:2])
    reorders = any(word in name.lower() for name, _ in found for word in _REORDERING)
    return f"{len(found)} kernels{', REORDERS LAYOUT' if reorders else ''}: {longest}"


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class _DenseBlock(nn.Module):
    """ESRGAN's: five convolutions, each on everything before it."""

    def __init__(self, channels: int = 64, growth: int = 32) -> None:
        super().__init__()
        widths = [channels + i * growth for i in range(5)]
        outputs = [growth] * 4 + [channels]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in zip(widths, outputs, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for conv in list(self.convs)[:-1]:
            features.append(F.leaky_relu(conv(torch.cat(features, 1)), 0.2))
        return x + 0.2 * self.convs[-1](torch.cat(features, 1))


def _ours(block: _ResidualBlock | _DenseBlock, backend: str) -> Callable[[Tensor], Tensor]:
    """The block as the library's op, on a backend."""

    def residual(x: Tensor) -> Tensor:
        first, second = block.conv1, block.conv2
        return srkernels.residual_block(x, first.weight, first.bias, second.weight, second.bias, activation="relu")

    def dense(x: Tensor) -> Tensor:
        weights, biases = zip(*((conv.weight, conv.bias) for conv in block.convs), strict=True)
        return srkernels.dense_block(x, weights, biases, slope=0.2, res_scale=0.2)

    op = residual if isinstance(block, _ResidualBlock) else dense

    def call(x: Tensor) -> Tensor:
        with srkernels.use_backend(backend):
            return op(x)

    return call


def _training_call(module: Callable[[Tensor], Tensor], wanted: list[Tensor], x: Tensor, g: Tensor) -> Call:
    return lambda: torch.autograd.grad(module(x), [x, *wanted], g)


def blocks(context: Context) -> None:
    """bf16, channels_last, forward + backward with every gradient, all in the same rounds; kernels by name."""
    torch.backends.cudnn.benchmark = True
    device, dtype = context.device, torch.bfloat16
    headers = ["block", "shape", "provider", "us", "again", "TFLOP/s", "peak MB", "kernels"]
    add = context.table("blocks, bf16, channels_last, forward + backward", headers)
    kinds = [(_ResidualBlock, 73_728 * 2, ((16, 192), (16, 32))), (_DenseBlock, 479_232, ((8, 128), (16, 32)))]
    if context.quick:
        context.note("torch.compile left out: quick run")
    elif not context.cuda:
        context.note("smaller shapes: torch sees no CUDA device")
    for kind, flops_per_pixel, shapes in kinds:
        for n, size in ((1, 16),) if context.small else shapes:
            if context.left() < 8:
                context.note("stopped early: the section's time is used up")
                return
            block = kind().to(device, dtype).to(memory_format=torch.channels_last)
            parameters = list(block.parameters())
            count = min(timing.cold_sets(4 * n * 64 * size * size, device), 32)
            xs = [x.requires_grad_() for x in images(context, count, n, 64, size, dtype)]
            gs = images(context, count, n, 64, size, dtype)
            modules: dict[str, Callable[[Tensor], Tensor]] = {"eager": block}
            if not context.quick:
                torch._dynamo.reset()
                modules["compile"] = torch.compile(block)
            for name in ("pointwise", "triton"):
                if why_not(name, device, dtype) is None:
                    modules[name] = _ours(block, name)
            calls = {
                name: [_training_call(module, parameters, x, g) for x, g in zip(xs, gs, strict=True)]
                for name, module in modules.items()
            }
            rounds = (2, 3) if context.small else (10, 40)
            times: dict[str, Stats] = time_calls(calls, device, seconds=1.5, rounds=rounds)
            # The backward pass of a convolution is two convolutions of the same size.
            flops = 3 * flops_per_pixel * n * size * size
            for name, stats in times.items():
                call = calls[name][0]
                kernels = timing.kernels(call, device)
                if name == "compile":
                    every = ", ".join(kernel[:60] for kernel, _ in kernels)
                    context.note(f"kernels of torch.compile, {kind.__name__.lstrip('_')} {n}x64x{size}x{size}: {every}")
                peak = f"{timing.peak_bytes(call, device) / 1e6:.0f}" if context.cuda else "-"
                rate = flops / stats.median_us / 1e6
                title = kind.__name__.lstrip("_")
                add(title, f"{n}x64x{size}x{size}", name, *stats.passes_us, rate, peak, _summary(kernels))
