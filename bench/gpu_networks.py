"""What the networks spend outside our ops: convolutions, blocks, and the fused convolution that cuDNN offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import timing
from .gpu import Context, Skip
from .timing import Call, Stats, time_calls

# (batch, channels in, channels out, height = width)
_SHAPES = (
    (16, 64, 64, 192),
    (8, 64, 64, 128),
    (16, 64, 64, 48),
    (16, 64, 64, 32),
    (8, 160, 32, 128),
    (16, 160, 32, 32),
    (8, 192, 64, 128),
    (8, 32, 160, 128),
)
_OTHER_DTYPES = (_SHAPES[0], _SHAPES[4])
_REORDERING = ("nchwtonhwc", "nhwctonchw")


def _images(context: Context, count: int, n: int, c: int, size: int, dtype: torch.dtype) -> list[Tensor]:
    shape = (n, c, size, size)
    made = (torch.rand(shape, device=context.device) - 0.5 for _ in range(count))
    return [x.to(dtype).contiguous(memory_format=torch.channels_last) for x in made]


def _kernel_names(call: Call, device: torch.device) -> str:
    """The two longest kernels, how many there are, and whether one of them reorders the layout."""
    found = sorted(timing.kernels(call, device), key=lambda item: -item[1])
    longest = "; ".join(f"{name[:70]} {us:.0f} us" for name, us in found[:2])
    reorders = any(word in name.lower() for name, _ in found for word in _REORDERING)
    return f"{len(found)} kernels{', REORDERS LAYOUT' if reorders else ''}: {longest}"


def _conv_calls(x: Tensor, g: Tensor, w: Tensor) -> dict[str, Call]:
    def backward(*mask: bool) -> Any:
        return torch.ops.aten.convolution_backward(g, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, list(mask))

    return {
        "forward": lambda: F.conv2d(x, w, padding=1),
        "data gradient": lambda: backward(True, False, False),
        "weight gradient": lambda: backward(False, True, False),
    }


def convolutions(context: Context) -> None:
    """3x3 without bias, channels_last, cudnn.benchmark on: rate and kernel of each pass."""
    torch.backends.cudnn.benchmark = True
    device = context.device
    headers = ["shape", "type", "pass", "us", "TFLOP/s", "again", "kernels"]
    add = context.table("3x3 convolution, channels_last", headers)
    jobs = [(s, "bf16") for s in _SHAPES] + [(s, t) for s in _OTHER_DTYPES for t in ("fp16", "tf32")]
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}
    for (n, cin, cout, size), name in jobs[::4] if context.small else jobs:
        if context.left() < 5:
            context.note("stopped early: the section's time is used up")
            return
        if context.small:
            n, size = 1, 16
        dtype = dtypes[name]
        count = timing.cold_sets(n * (cin + cout) * size * size * dtype.itemsize, device)
        xs, gs = _images(context, count, n, cin, size, dtype), _images(context, count, n, cout, size, dtype)
        w = (torch.rand(cout, cin, 3, 3, device=device) - 0.5).to(dtype).contiguous(memory_format=torch.channels_last)
        by_set = [_conv_calls(x, g, w) for x, g in zip(xs, gs, strict=True)]
        flops = 18 * n * size * size * cin * cout
        calls = {key: [one[key] for one in by_set] for key in by_set[0]}
        rounds = (2, 3) if context.small else (10, 40)
        for key, stats in time_calls(calls, device, seconds=0.6, rounds=rounds).items():
            rates = [flops / us / 1e6 for us in stats.passes_us]
            kernels = _kernel_names(by_set[0][key], device)
            add(f"{n}x{cin}->{cout}x{size}x{size}", name, key, stats.median_us, *rates, kernels)


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


def _training_call(module: Callable[[Tensor], Tensor], wanted: list[Tensor], x: Tensor, g: Tensor) -> Call:
    return lambda: torch.autograd.grad(module(x), [x, *wanted], g)


def blocks(context: Context) -> None:
    """bf16, channels_last, forward + backward with every gradient, eager and compiled in the same rounds."""
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
            xs = [x.requires_grad_() for x in _images(context, count, n, 64, size, dtype)]
            gs = _images(context, count, n, 64, size, dtype)
            modules: dict[str, Callable[[Tensor], Tensor]] = {"eager": block}
            if not context.quick:
                torch._dynamo.reset()
                modules["compile"] = torch.compile(block)
            calls = {
                name: [_training_call(module, parameters, x, g) for x, g in zip(xs, gs, strict=True)]
                for name, module in modules.items()
            }
            rounds = (2, 3) if context.small else (10, 40)
            times: dict[str, Stats] = time_calls(calls, device, seconds=1.5, rounds=rounds)
            # The backward pass of a convolution is two of the same size.
            flops = 3 * flops_per_pixel * n * size * size
            for name, stats in times.items():
                call = calls[name][0]
                peak = f"{timing.peak_bytes(call, device) / 1e6:.0f}" if context.cuda else "-"
                rate = flops / stats.median_us / 1e6
                title = kind.__name__.lstrip("_")
                add(title, f"{n}x64x{size}x{size}", name, *stats.passes_us, rate, peak, _kernel_names(call, device))


def fused_relu(context: Context) -> None:
    """cuDNN's convolution + bias + ReLU in one call against convolution with bias and an in-place ReLU; no gradient."""
    if not context.cuda:
        raise Skip("cudnn_convolution_relu needs CUDA, and torch sees no CUDA device")
    torch.backends.cudnn.benchmark = True
    device, dtype = context.device, torch.bfloat16
    add = context.table(
        "convolution + bias + ReLU, bf16, channels_last", ["shape", "form", "us", "again", "TFLOP/s", "kernels"]
    )
    for n, channels, size in (
        ((8, 64, 32),) if context.small else ((16, 64, 192), (8, 64, 128), (16, 64, 32), (8, 256, 128))
    ):
        count = timing.cold_sets(2 * n * channels * size * size, device)
        xs = _images(context, count, n, channels, size, dtype)
        w = (torch.rand(channels, channels, 3, 3, device=device) - 0.5).to(dtype)
        w = w.contiguous(memory_format=torch.channels_last)
        b = torch.rand(channels, device=device).to(dtype)

        def fused(x: Tensor, w: Tensor = w, b: Tensor = b) -> Tensor:
            return torch.cudnn_convolution_relu(x, w, b, [1, 1], [1, 1], [1, 1], 1)

        def apart(x: Tensor, w: Tensor = w, b: Tensor = b) -> Tensor:
            return F.conv2d(x, w, b, padding=1).relu_()

        calls = {
            name: [lambda x=x, form=form: form(x) for x in xs]
            for name, form in (("cudnn_convolution_relu", fused), ("conv2d, relu_", apart))
        }
        flops = 18 * n * size * size * channels * channels
        for name, stats in time_calls(calls, device, seconds=0.6, rounds=(10, 40)).items():
            rate = flops / stats.median_us / 1e6
            shape = f"{n}x{channels}x{size}x{size}"
            add(shape, name, *stats.passes_us, rate, _kernel_names(calls[name][0], device))
