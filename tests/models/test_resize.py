"""The bicubic resize against MATLAB's documented rule, written out pixel by pixel, and against hand-derived numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.data import imresize
from models.data.resize import bicubic

SCALES = [2, 3, 4, 1 / 2, 1 / 3, 1 / 4, 0.7, 1.3]


def by_the_rule(line: np.ndarray, scale: float, antialias: bool = True) -> np.ndarray:
    """One axis as in MATLAB's imresize, counting from 1."""

    def cubic(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    width, shrink = 4.0, 1.0
    if scale < 1 and antialias:
        width, shrink = 4 / scale, scale
    result = []
    for x in range(1, math.ceil(len(line) * scale) + 1):
        u = x / scale + 0.5 * (1 - 1 / scale)
        left = math.floor(u - width / 2)
        total = weights = 0.0
        for place in range(left, left + math.ceil(width) + 2):
            mirrored = [*range(1, len(line) + 1), *range(len(line), 0, -1)][(place - 1) % (2 * len(line))]
            weight = shrink * cubic(shrink * (u - place))
            total, weights = total + weight * line[mirrored - 1], weights + weight
        result.append(total / weights)
    return np.array(result)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("scale", SCALES)
def test_every_line_follows_the_rule(scale, antialias):
    image = np.random.default_rng(0).random((13, 6))
    expected = np.apply_along_axis(by_the_rule, 0, image, scale, antialias)
    expected = np.apply_along_axis(by_the_rule, 1, expected, scale, antialias)
    np.testing.assert_allclose(imresize(image, scale, antialias), expected, atol=1e-13)


def test_hand_derived_numbers():
    impulse = np.zeros((1, 7))
    impulse[0, 3] = 1
    quarter = [-0.0234375, -0.0703125, 0.2265625, 0.8671875]  # the kernel at 1.75, 1.25, 0.75 and 0.25
    enlarged = imresize(impulse, 2, antialias=True)
    np.testing.assert_allclose(enlarged[0], [0, 0, 0, *quarter, *quarter[::-1], 0, 0, 0], atol=1e-15)
    np.testing.assert_allclose(enlarged[0], enlarged[1])
    # Centred on 0.5, the halved ramp sees 2 1 0 | 0 1 2 3 | 3: the border is mirrored, its pixels repeated.
    ramp = np.arange(4.0)[:, None].repeat(4, 1)
    np.testing.assert_allclose(imresize(ramp, 0.5)[:, 0], [0.4609375, 3 - 0.4609375], atol=1e-15)
    # Without antialiasing only 0 | 0 1 2 count, at 1.5, 0.5, 0.5 and 1.5.
    np.testing.assert_allclose(imresize(ramp, 0.5, antialias=False)[:, 0], [0.4375, 3 - 0.4375], atol=1e-15)


def test_sizes_dtypes_and_refusals():
    image = np.random.default_rng(0).random((64, 80, 3), np.float32)
    for antialias in (True, False):
        small = imresize(image, 1 / 4, antialias)
        assert small.shape == (16, 20, 3) and small.dtype == np.float32
    assert imresize(image[:5, :7], 0.5).shape == (3, 4, 3)
    assert imresize(image[:1, :1], 4).shape == (4, 4, 3)
    np.testing.assert_allclose(imresize(np.full((3, 2), 0.3), 1 / 4), 0.3)
    np.testing.assert_array_equal(imresize(image, 1), image)
    with pytest.raises(ValueError, match="float image"):
        imresize(np.zeros((4, 4), np.uint8), 2)
    with pytest.raises(ValueError, match="positive"):
        imresize(image, 0)


@pytest.mark.parametrize("scale", SCALES)
def test_the_differentiable_one_is_the_same(scale):
    image = torch.rand(2, 3, 24, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = imresize(image[1].permute(1, 2, 0).numpy(), scale)
    np.testing.assert_allclose(bicubic(image, scale)[1].permute(1, 2, 0), expected, atol=1e-13)
    # In the interior torch's own antialiased resize has the same weights; it cuts the kernel at the border.
    theirs = F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=True)
    margin = math.ceil(2 * max(scale, 1))
    inner = np.s_[..., margin : theirs.shape[-2] - margin, margin : theirs.shape[-1] - margin]
    assert theirs[inner].numel()
    torch.testing.assert_close(bicubic(image, scale)[..., : theirs.shape[-2], : theirs.shape[-1]][inner], theirs[inner])


def test_gradients_dtypes_and_autocast():
    image = torch.rand(1, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: bicubic(x, 0.5), image)
    single = image.detach().float()
    expected = bicubic(single, 2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(bicubic(single, 2), expected, rtol=0, atol=0)
    half = single.bfloat16()
    torch.testing.assert_close(bicubic(half, 2), bicubic(half.float(), 2).bfloat16(), rtol=0, atol=0)


def test_what_inference_cached_trains_and_compiles():
    image = torch.rand(1, 3, 11, 17)
    with torch.inference_mode():
        bicubic(image, 0.25)
    bicubic(image.requires_grad_(), 0.25).sum().backward()
    torch.testing.assert_close(image.grad.sum(), torch.tensor(3 * 3 * 5.0))
    compiled = torch.compile(bicubic, fullgraph=True, backend="eager")
    for side in (11, 12, 13):
        other = torch.rand(1, 3, side, 17)
        torch.testing.assert_close(compiled(other, 0.5), bicubic(other, 0.5))
