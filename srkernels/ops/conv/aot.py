"""The convolution kernels to compile ahead of time: forward and both gradients of every element type, and epilogues.

Where Hopper takes a different path, both are compiled, each for the architectures that take it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..._spec import AotCase
from ..._triton import aot_case
from .activation import CONVOLUTION, LEAKY_RELU, PRELU, RELU, Epilogue
from .arguments import Convolution, ConvolutionSettings, SavedConvolution

_ELEMENTS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
_RELU, _LEAKY, _PRELU = Epilogue(RELU), Epilogue(LEAKY_RELU, 0.2), Epilogue(PRELU)
_HOPPER, _OTHERS = ("sm_90",), ("sm_80", "sm_86", "sm_89", "sm_100", "sm_120", "gfx942")

# Cases that stand for the rest on architectures other than Hopper, where one kernel has all epilogues and sizes.
_ELSEWHERE = (
    "forward-64-64-bf16", "forward-64-64-fp32", "data-gradient-64-64-bf16", "forward-160-32-bf16", "nchw-bf16",
    "block-gradient-bf16", "epilogue-everything-bf16", "gradients-64-64-bf16", "dense-weight-gradient-bf16",
    "dense-weight-gradient-fp32",
)  # fmt: skip


def _image(name: str, channels: int, layout: torch.memory_format = torch.channels_last) -> Tensor:
    return torch.empty(1, channels, 32, 64, dtype=_ELEMENTS[name], memory_format=layout)


def _filters(name: str, channels: int, out: int) -> Tensor:
    return torch.empty(out, channels, 3, 3, dtype=_ELEMENTS[name], memory_format=torch.channels_last)


class _Cases:
    """What is compiled, collected. Imports triton."""

    def __init__(self) -> None:
        from . import triton
        from .triton import around

        self.blocks, self.launch, self.around = triton, triton.launch, around
        self.found: list[AotCase] = []

    def add(
        self, id: str, kernel: str, call: Callable[[], Any], wide: tuple[int, int] = (0, 0), hgmma: int = 0
    ) -> None:
        self.found.append(replace(aot_case(id, self.launch, kernel, call, *wide), hgmma=hgmma))

    def add_both(
        self, id: str, kernel: str, elsewhere: str, call: Callable[[], Any], wide: tuple[int, int], hgmma: int = 0
    ) -> None:
        hopper = aot_case(f"{id}-hopper", self.launch, kernel, call, *wide)
        self.found.append(replace(hopper, targets=_HOPPER, hgmma=hgmma))
        case = aot_case(id, self.launch, elsewhere, call, is_hopper=lambda device: False)
        self.found.append(replace(case, targets=_OTHERS, variant=id not in _ELSEWHERE))

    def by_rows(self, name: str, channels: int, out: int, last: bool = True) -> str:
        """The kernel that Hopper uses."""
        return self.launch.choose(_image(name, channels), out, last).kernel

    def products(self, kernel: str, name: str, channels: int, out: int) -> int:
        """Matrix instructions, where a product takes several."""
        if kernel == "shift":
            return 2 * channels // (8 if name == "fp32" else 16)
        return 1 if channels != 64 or out < 32 else 12 if name == "fp32" else 24

    def forward(
        self, id: str, name: str, channels: int, out: int, epilogue: Epilogue, *, streams: bool = True,
        bias: bool = True, slopes: int = 0, residual: Tensor | None = None, keep: bool = False,
        layout: torch.memory_format = torch.channels_last, wide: tuple[int, int] = (0, 0),
    ) -> None:  # fmt: skip
        x, weight = _image(name, channels, layout), _filters(name, channels, out)
        tensors = x.new_empty(out) if bias else None, x.new_empty(slopes) if slopes else None, residual

        def call() -> None:
            self.blocks.forward(Convolution(x, weight, *tensors), ConvolutionSettings(*epilogue), keep)

        if streams:
            kernel = self.by_rows(name, channels, out, layout is torch.channels_last)
            self.add_both(id, kernel, "gather", call, wide, self.products(kernel, name, channels, out))
        else:
            self.add(id, "gather", call, wide, hgmma=0 if name == "fp64" else 1)

    def backward(self, id: str, name: str, channels: int, out: int, *, streams: bool = True) -> None:
        """Data and weight gradient of the convolution alone."""
        grad = _image(name, out)
        saved = SavedConvolution(_image(name, channels), _filters(name, channels, out), None, None, None)

        def data() -> None:
            self.blocks.backward(grad, saved, ConvolutionSettings(), [True, False, False, False])

        def weight() -> None:
            self.blocks.backward(grad, saved, ConvolutionSettings(), [False, True, False, False])

        if streams:
            kernel = self.by_rows(name, out, channels)
            hgmma = self.products(kernel, name, out, channels)
            self.add_both(f"data-gradient-{id}", kernel, "gather", data, (0, 0), hgmma)
        else:
            self.add(f"data-gradient-{id}", "gather", data, hgmma=0 if name == "fp64" else 1)
        if name == "fp64":
            self.add(f"weight-gradient-{id}", "weight_gradient", weight)
        else:
            hgmma = 8 if out == 32 else 16
            self.add_both(f"weight-gradient-{id}", "weight_gradient", "weight_gradient", weight, (0, 0), hgmma)

    def in_a_block(self, id: str, channels: slice, out: slice, *, adjoint: bool = True) -> None:
        """A convolution of slices of a dense block's buffers: its forward pass, or the data gradient through leaky."""
        features, gradients = _image("bf16", 192), _image("bf16", 192)
        x, y = (gradients if adjoint else features)[:, channels], (gradients if adjoint else features)[:, out]
        sizes = x.shape[1], y.shape[1]
        weight = _filters("bf16", *(reversed(sizes) if adjoint else sizes))
        bias, kept = (None, features[:, out]) if adjoint else (x.new_empty(sizes[1]), None)

        def call() -> None:
            self.launch.convolve(x, weight, y, _LEAKY, self.launch.EpilogueTensors(bias, kept=kept), adjoint=adjoint)

        kernel = self.by_rows("bf16", *sizes)
        self.add_both(id, kernel, "gather", call, (0, 0), self.products(kernel, "bf16", *sizes))

    def of_a_block(self, name: str) -> None:
        """Gradients of a dense block's weights and biases; its filters packed."""
        features, gradients = _image(name, 192), _image(name, 192)
        weights = [_filters(name, 64 + 32 * k, 64 if k == 4 else 32) for k in range(5)]
        biases = [] if name == "fp32" else [weight[:, 0, 0, 0].contiguous() for weight in weights]

        def gradient() -> None:
            self.launch.gradients_of_weights(features, gradients, weights, biases)

        hgmma = 0 if name == "fp64" else 16
        self.add_both(f"dense-weight-gradient-{name}", "weight_gradient", "weight_gradient", gradient, (0, 0), hgmma)
        self.add(f"dense-add-up-{name}", "add_up", gradient)
        self.add(f"dense-pack-{name}", "pack", lambda: self.launch.packed(weights))

    def with_bias(self, id: str, name: str, channels: int, out: int) -> None:
        """Gradients of weight and bias."""
        x, grad = _image(name, channels), _image(name, out)
        weight = _filters(name, channels, out)

        def call() -> None:
            self.launch.gradient_of_weight(x, grad, weight, weight[:, 0, 0, 0].contiguous())

        self.add_both(id, "weight_gradient", "weight_gradient", call, (0, 0), hgmma=12 if out == 32 else 20)
        self.add(f"{id}-add-up", "add_up", call)

    def configured(self, channels: int, out: int) -> None:
        """What tuning may try on a Hopper in place of the chosen blocks; loads in flight take three stages."""
        from .triton.configuration import configurations, configurations_of_shares

        x, weight, grad = _image("bf16", channels), _filters("bf16", channels, out), _image("bf16", out)
        saved = SavedConvolution(x, weight, None, None, None)
        convolutions, shares = configurations(x, out), configurations_of_shares(x, out)
        for name in (*list(convolutions)[1:], *list(shares)[1:]):
            blocks = self.blocks.configured([name])

            def forward(blocks: Any = blocks) -> None:
                blocks.forward(Convolution(x, weight, None, None, None), ConvolutionSettings(RELU), False)

            def gradient(blocks: Any = blocks) -> None:
                blocks.backward(grad, saved, ConvolutionSettings(), [False, True, False, False])

            convolves = name in convolutions
            kernel, call = (convolutions[name].kernel, forward) if convolves else ("weight_gradient", gradient)
            case = aot_case(f"{name.replace(' ', '-')}-{channels}-{out}", self.launch, kernel, call)
            if case.num_stages > 2:
                self.found.append(replace(case, targets=_HOPPER, variant=True))

    def after_library(
        self, id: str, name: str, epilogue: Epilogue, wide: tuple[int, int], *, in_slice: bool = False, **given: Tensor
    ) -> None:
        """The pass that follows PyTorch's own convolution, into a tensor or into a slice of wider pixels."""
        x, y = _image(name, 64), _image(name, 192 if in_slice else 64)[:, :64]
        tensors = self.launch.EpilogueTensors(**given)

        def call() -> None:
            self.around.convolve(x, _filters(name, 64, 64), y, epilogue, tensors)

        self.found.append(aot_case(id, self.around, "pointwise", call, *wide))

    def pointwise(
        self, id: str, name: str, epilogue: Epilogue, wide: tuple[int, int], *, bias: bool, slopes: int = 0
    ) -> None:
        grad = _image(name, 64)
        slope = grad.new_empty(slopes) if slopes else None
        to_bias = grad.new_empty(64) if bias else None

        def call() -> None:
            self.launch.activation_gradient(grad, grad, slope, epilogue, True, to_bias, slope)

        self.add(id, "through_activation", call, wide)


def _dtypes(c: _Cases) -> None:
    """64 channels, on which networks spend most of their time, in every dtype."""
    for name in _ELEMENTS:
        streams = name != "fp64"  # fp64 has no tensor cores worth using
        wide = (18, 4) if streams else (0, 0)
        c.forward(f"forward-64-64-{name}", name, 64, 64, _RELU, streams=streams, wide=wide)
        c.backward(f"64-64-{name}", name, 64, 64, streams=streams)
    for name, wide in (("bf16", (4, 2)), ("fp32", (8, 4)), ("fp64", (16, 8))):
        c.pointwise(f"leaky-gradient-{name}", name, _LEAKY, wide, bias=True)
    c.pointwise("prelu-gradient-bf16", "bf16", _PRELU, (4, 2), bias=True, slopes=64)
    c.pointwise("relu-gradient-bf16", "bf16", _RELU, (4, 2), bias=False)


def _widths(c: _Cases) -> None:
    """The dense block's convolutions, and those at a network's ends."""
    c.forward("forward-64-32-bf16", "bf16", 64, 32, _LEAKY)
    c.backward("64-32-bf16", "bf16", 64, 32)
    c.forward("forward-160-32-bf16", "bf16", 160, 32, _LEAKY)
    c.backward("160-32-bf16", "bf16", 160, 32)
    c.forward("forward-64-32-fp32", "fp32", 64, 32, _LEAKY)
    c.forward("forward-32-64-fp32", "fp32", 32, 64, _RELU)
    for name, channels, out in (("bf16", 32, 64), ("fp32", 32, 64), ("fp32", 64, 64), ("bf16", 160, 32)):
        c.forward(
            f"everything-{channels}-{out}-{name}", name, channels, out, Epilogue(PRELU, scale=0.2),
            slopes=out, residual=_image(name, out), keep=True,
        )  # fmt: skip
    c.forward("forward-3-64-bf16", "bf16", 3, 64, _RELU)
    c.forward("forward-64-3-bf16", "bf16", 64, 3, CONVOLUTION)


def _in_blocks(c: _Cases) -> None:
    """On slices of a dense block's buffers, and gradients of several filters or of bias and filter."""
    c.in_a_block("dense-64-32", slice(0, 64), slice(64, 96), adjoint=False)
    c.in_a_block("dense-192-64", slice(0, 192), slice(0, 64), adjoint=False)
    c.in_a_block("dense-96-32", slice(0, 96), slice(96, 128), adjoint=False)
    c.in_a_block("dense-160-32", slice(0, 160), slice(160, 192), adjoint=False)
    c.in_a_block("dense-gradient-64-32", slice(0, 64), slice(64, 96))
    c.in_a_block("dense-gradient-160-32", slice(0, 160), slice(160, 192))
    for name in ("bf16", "fp32", "fp64"):
        c.of_a_block(name)
    for name in ("bf16", "fp16"):
        c.with_bias(f"gradients-64-64-{name}", name, 64, 64)
    c.with_bias("gradients-64-32-bf16", "bf16", 64, 32)


def _epilogues(c: _Cases) -> None:
    image = _image("bf16", 64)
    grad_z = torch.empty_like(image)
    c.add_both(
        "block-gradient-bf16", "stream", "gather",
        lambda: c.launch.convolve(
            image, _filters("bf16", 64, 64), grad_z, Epilogue(RELU, scale=0.1),
            c.launch.EpilogueTensors(kept=image), adjoint=True,
        ),
        (0, 0), hgmma=24,
    )  # fmt: skip
    c.forward("epilogue-residual-bf16", "bf16", 64, 64, Epilogue(scale=0.2), residual=image)
    c.forward("epilogue-inference-bf16", "bf16", 64, 64, _PRELU, slopes=64, residual=image)
    c.forward("epilogue-kept-bf16", "bf16", 64, 64, Epilogue(LEAKY_RELU, 0.2, 0.2), residual=image, keep=True)
    c.forward("epilogue-prelu-bf16", "bf16", 64, 64, _PRELU, slopes=64, keep=True)
    c.forward(
        "epilogue-everything-bf16", "bf16", 64, 64, Epilogue(PRELU, scale=0.2), slopes=1, residual=image, keep=True
    )
    c.forward(
        "epilogue-wide-residual-bf16", "bf16", 64, 64, Epilogue(RELU, scale=0.2),
        residual=image.float(), keep=True, streams=False,
    )  # fmt: skip
    c.forward("nchw-bf16", "bf16", 64, 64, _RELU, layout=torch.contiguous_format)
    c.forward("nchw-fp32", "fp32", 64, 64, _RELU, layout=torch.contiguous_format)


def _configurations(c: _Cases) -> None:
    c.configured(64, 64)
    c.configured(160, 32)


def _after_library(c: _Cases) -> None:
    for name, wide in (("bf16", (2, 2)), ("fp32", (4, 4)), ("fp64", (8, 8))):
        x = _image(name, 64)
        c.after_library(f"library-relu-{name}", name, _RELU, wide, bias=x.new_empty(64))
        c.after_library(
            f"library-everything-{name}", name, Epilogue(PRELU, scale=0.2), (2 * wide[0], 2 * wide[1]),
            bias=x.new_empty(64), slope=x.new_empty(64), residual=x, z=x,
        )  # fmt: skip
        c.after_library(f"library-slice-{name}", name, _LEAKY, (2 * wide[0], wide[1]), in_slice=True, kept=x)


def cases() -> tuple[AotCase, ...]:
    """Imports triton."""
    collected = _Cases()
    for add in (_dtypes, _widths, _in_blocks, _epilogues, _configurations, _after_library):
        add(collected)
    found = collected.found
    assert {case.id for case in found}.issuperset(_ELSEWHERE)
    return tuple(found)
