"""Calls whose reads, writes and arithmetic AddressSanitizer and UndefinedBehaviorSanitizer watch.

test_sanitizers.py runs it on a build with them. Every instruction set of this machine runs all of it.
"""

from __future__ import annotations

from itertools import product

import torch
from driver import both_passes, levels, of_the_core
from helpers.calls import subsets
from helpers.operands import DTYPES, arranged, operands, random

import srkernels
from srkernels._parity import present
from srkernels._spec import Case, OpSpec
from srkernels.ops import specs
from srkernels.ops.conv.spec import CONV2D_ACT, block_case, dense_case
from srkernels.ops.weighted_loss.spec import WEIGHTED_LOSS

LAYOUTS = ("contiguous", "channels_last")
REDUCTIONS = (
    {},
    {"normalize": "weight_sum"},
    {"reduction": "sum", "kind": "charbonnier"},
    {"reduction": "none", "interpolation": "nearest"},
    {"kind": "mse", "interpolation": "nearest"},
    {"kind": "huber", "normalize": "weight_sum"},
    {"reduction": "sum"},
    {"reduction": "none"},
)
# Image and map: one whose signs are kept, and one with fewer elements than a vector in its rows.
LOSSES = (((2, 3, 4, 8), (2, 1, 2, 3)), ((2, 3, 5, 7), (1, 3, 7, 5)))
# A pixel, and a row and a column of each kind: signs kept, and one element left over; and one channel.
THIN = ((1, 1, 1, 1), (2, 3, 1, 1), (2, 3, 1, 16), (2, 3, 1, 17), (2, 3, 16, 1), (2, 3, 17, 1), (2, 1, 16, 17))


def every_case() -> None:
    """In one dtype, with gradients of everything; expanded cotangents."""
    for spec in specs():
        for case, dtype, layout in product(of_the_core(spec, spec.cases), DTYPES.values(), LAYOUTS):
            drawn = operands(case, dtype, layout)
            both_passes(spec, case, drawn, present(drawn), dense=False)


def every_subset() -> None:
    """Of operands that require gradients, including the empty one; under autocast too."""
    for spec in specs():
        for case, dtype, layout in product(of_the_core(spec, spec.small), DTYPES.values(), LAYOUTS):
            drawn = operands(case, dtype, layout)
            for needs in ((), *subsets(present(drawn))):
                both_passes(spec, case, drawn, needs)
            both_passes(spec, case, drawn, present(drawn), autocast=True)


def mixed_losses() -> None:
    """Each mixture of dtypes meets each subset of gradients, each shape and layout, and each reduction with either."""
    mixtures = enumerate(product(DTYPES.values(), DTYPES.values(), (*DTYPES.values(), None)))
    layouts = (("contiguous",) * 3, ("channels_last",) * 3, ("channels_last", "contiguous", "contiguous"))
    images = list(enumerate(product(LOSSES, layouts)))
    for (i, dtypes), (k, ((image, weight), layout)) in product(mixtures, images):
        shapes = (image, image, None if dtypes[2] is None else weight)
        drawn = [
            None if shape is None else arranged(random(shape, dtype, seed), where)
            for seed, (shape, dtype, where) in enumerate(zip(shapes, dtypes, layout, strict=True))
        ]
        for j, needs in enumerate(((), *subsets(present(drawn)))):
            case = Case("mixed", shapes, REDUCTIONS[(i + j + k) % len(REDUCTIONS)])
            both_passes(WEIGHTED_LOSS, case, drawn, needs)


def mixed_residuals() -> None:
    cases = [case for case in of_the_core(CONV2D_ACT, CONV2D_ACT.cases) if case.shapes[4] is not None]
    for case, dtype, other, layout in product(cases, DTYPES.values(), DTYPES.values(), LAYOUTS):
        for residual_layout in LAYOUTS:
            drawn = operands(case, dtype, layout)
            drawn[4] = operands(case, other, residual_layout)[4]
            for needs in ((), *subsets(present(drawn), few=True)):
                both_passes(CONV2D_ACT, case, drawn, needs)


def _thin(spec: OpSpec, image: tuple[int, int, int, int]) -> Case:
    n, c, h, w = image
    half = (n, c, (h + 1) // 2, (w + 1) // 2)
    return {
        "haar_dwt2d": Case("thin", (image,)),
        "haar_highpass": Case("thin", (image,)),
        "haar_idwt2d": Case("thin", (half, (n, c, 3, *half[2:])), {"output_size": (h, w)}),
        "weighted_l1_loss": Case("thin", (image, image, (n, 1, *half[2:]))),
        "weighted_loss": Case("thin", (image, image, (n, 1, *half[2:])), {"kind": "huber", "interpolation": "nearest"}),
        "conv2d_act": Case("thin", (image, (c, c, 3, 3), (c,), None, image)),
        "residual_block": block_case("thin", image, c),
        "dense_block": dense_case("thin", image, c),
    }[spec.name]


def thin_images() -> None:
    for spec, image, dtype, layout in product(specs(), THIN, DTYPES.values(), LAYOUTS):
        case = _thin(spec, image)
        drawn = operands(case, dtype, layout)
        for needs in subsets(present(drawn), few=True):
            both_passes(spec, case, drawn, needs)


def pixels_at_the_end_of_memory() -> None:
    """Three channels are read as four: with all pixels at one address, and where the last ends with its memory."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        one = torch.rand(3).to(dtype).as_strided((1, 3, 2, 4), (3, 1, 0, 0))
        last = torch.rand(1, 5, 4, 6).to(dtype).contiguous(memory_format=torch.channels_last)[:, 2:]
        high = torch.rand(9).to(dtype).as_strided((1, 3, 3, 2, 4), (9, 1, 3, 0, 0))
        for x in (one, last):
            srkernels.haar_idwt2d(*srkernels.haar_dwt2d(x))
        srkernels.haar_idwt2d(None, high)


def main() -> None:
    parts = (every_case, every_subset, mixed_losses, mixed_residuals, thin_images, pixels_at_the_end_of_memory)
    for isa in levels():
        for part in parts:
            print(f"{isa}: {part.__name__}", flush=True)
            part()
    print("clean")


main()
