"""Every wrong call is one sentence: the op, the argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.calls import Target
from torch import Tensor

import srkernels
from srkernels import convert_haar_weight, haar_dwt2d, haar_highpass, haar_idwt2d, weighted_l1_loss


def image(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(shape or (2, 3, 8, 8), dtype=dtype, device=device)


X = image()
MAP = image(2, 1, 4, 4)
FLOATS = "must be float16, bfloat16, float32 or float64, got"
BANDS = (image(2, 3, 4, 4), image(2, 3, 3, 4, 4))

ANY_IMAGE = [
    pytest.param("not a tensor", TypeError, "must be a tensor (N, C, H, W), got str", id="str"),
    pytest.param(None, TypeError, "must be a tensor (N, C, H, W), got NoneType", id="None"),
    pytest.param([[1.0]], TypeError, "must be a tensor (N, C, H, W), got list", id="list"),
    pytest.param(image(3, 8, 8), ValueError, "must be 4-D (N, C, H, W), got shape (3, 8, 8)", id="3-D"),
    pytest.param(image(1, 2, 3, 8, 8), ValueError, "must be 4-D (N, C, H, W), got shape (1, 2, 3, 8, 8)", id="5-D"),
    pytest.param(torch.tensor(1.0), ValueError, "must be 4-D (N, C, H, W), got shape ()", id="0-D"),
    pytest.param(image(dtype=torch.uint8), TypeError, f"{FLOATS} torch.uint8", id="uint8"),
    pytest.param(image(dtype=torch.int64), TypeError, f"{FLOATS} torch.int64", id="int64"),
    pytest.param(image(dtype=torch.bool), TypeError, f"{FLOATS} torch.bool", id="bool"),
    pytest.param(image(dtype=torch.complex64), TypeError, f"{FLOATS} torch.complex64", id="complex64"),
    pytest.param(image().to(torch.float8_e4m3fn), TypeError, f"{FLOATS} torch.float8_e4m3fn", id="float8"),
    pytest.param(
        image(2, 3, 0, 8), ValueError, "must have height and width of at least 1, got shape (2, 3, 0, 8)", id="no rows"
    ),
    pytest.param(
        image(2, 3, 8, 0),
        ValueError,
        "must have height and width of at least 1, got shape (2, 3, 8, 0)",
        id="no columns",
    ),
    pytest.param(image().to_sparse(), TypeError, "must be a dense tensor, got layout torch.sparse_coo", id="sparse"),
]


def _says(error: type[Exception], sentence: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == sentence


@pytest.mark.parametrize(("x", "error", "sentence"), ANY_IMAGE)
def test_images(x: Any, error: type[Exception], sentence: str) -> None:
    _says(error, f"haar_dwt2d: x {sentence}", lambda: haar_dwt2d(x))
    _says(error, f"haar_highpass: x {sentence}", lambda: haar_highpass(x))
    _says(error, f"weighted_l1_loss: input {sentence}", lambda: weighted_l1_loss(x, X))
    _says(error, f"weighted_l1_loss: target {sentence}", lambda: weighted_l1_loss(X, x))


@pytest.mark.parametrize(("x", "error", "sentence"), [p for p in ANY_IMAGE if p.id != "None"])
def test_bands_and_maps(x: Any, error: type[Exception], sentence: str) -> None:
    _says(error, f"haar_idwt2d: low {sentence}", lambda: haar_idwt2d(x, None))
    if isinstance(x, list):
        sentence_for_high = "haar_idwt2d: high must be one tensor for convention 'dasr', got list"
    else:
        sentence_for_high = f"haar_idwt2d: high {sentence}"
    _says(error, sentence_for_high, lambda: haar_idwt2d(None, x, "dasr"))
    sentence = sentence.replace("(N, C, H, W)", "(N or 1, 1 or C, h, w)")
    _says(error, f"weighted_l1_loss: weight {sentence}", lambda: weighted_l1_loss(X, X, x))


HAAR = "must be one of orthonormal, dasr, dasr_sum, mwcnn, irn, wct2, wavesnet, wtconv, got 'haar'"
PAD = "must be one of reflect, zero, symmetric, periodization, got 'same'"


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: haar_dwt2d(X, "haar"), ValueError, f"haar_dwt2d: convention {HAAR}"),
        (lambda: haar_highpass(X, "haar"), ValueError, f"haar_highpass: convention {HAAR}"),
        (lambda: haar_idwt2d(*BANDS, "haar"), ValueError, f"haar_idwt2d: convention {HAAR}"),
        (lambda: haar_dwt2d(X, pad="same"), ValueError, f"haar_dwt2d: pad {PAD}"),
        (lambda: haar_highpass(X, pad="same"), ValueError, f"haar_highpass: pad {PAD}"),
        (lambda: haar_dwt2d(X, bands="HH"), ValueError, "haar_dwt2d: bands must be one of low, high, both, got 'HH'"),
        (lambda: haar_idwt2d(None, None), ValueError, "haar_idwt2d: low and high are both None"),
        (
            lambda: haar_idwt2d(*BANDS, "dasr_sum"),
            ValueError,
            "haar_idwt2d: convention 'dasr_sum' adds the high bands up and has no inverse",
        ),
        (
            lambda: haar_idwt2d(BANDS[0], image(2, 9, 4, 4)),
            ValueError,
            "haar_idwt2d: high must be (N, C, 3, h, w), got (2, 9, 4, 4) torch.float32 on cpu",
        ),
        (
            lambda: haar_idwt2d(None, image(2, 8, 4, 4), "dasr"),
            ValueError,
            "haar_idwt2d: high must be (N, 3C, h, w), got (2, 8, 4, 4)",
        ),
        (
            lambda: haar_idwt2d(BANDS[0], image(2, 3, 3, 4, 5)),
            ValueError,
            "haar_idwt2d: high must be (2, 3, 3, 4, 4) for low (2, 3, 4, 4), got (2, 3, 3, 4, 5)",
        ),
        (
            lambda: haar_idwt2d(BANDS[0], BANDS[1].double()),
            ValueError,
            "haar_idwt2d: high must match low (torch.float32, cpu), got torch.float64, cpu",
        ),
        (
            lambda: haar_idwt2d(BANDS[0], BANDS[1].to("meta")),
            ValueError,
            "haar_idwt2d: high must match low (torch.float32, cpu), got torch.float32, meta",
        ),
        (
            lambda: haar_idwt2d(BANDS[0], BANDS[1], "wct2"),
            TypeError,
            "haar_idwt2d: high must be a tuple of three (N, C, h, w) tensors for convention 'wct2', "
            "got (2, 3, 3, 4, 4) torch.float32 on cpu",
        ),
        (
            lambda: haar_idwt2d(BANDS[0], (BANDS[0],) * 3, "irn"),
            TypeError,
            "haar_idwt2d: high must be one tensor for convention 'irn', got tuple",
        ),
        (
            lambda: haar_idwt2d(BANDS[0], (BANDS[0],) * 2, "wct2"),
            ValueError,
            "haar_idwt2d: high must hold three tensors, got 2",
        ),
        (
            lambda: haar_idwt2d(BANDS[0], (BANDS[0], image(2, 3, 4, 5), BANDS[0]), "wct2"),
            ValueError,
            "haar_idwt2d: high[1] must match high[0] ((2, 3, 4, 4) torch.float32 on cpu), "
            "got (2, 3, 4, 5) torch.float32 on cpu",
        ),
        (
            lambda: haar_idwt2d(*BANDS, output_size=(9, 8)),
            ValueError,
            "haar_idwt2d: output_size must be (7 or 8, 7 or 8) for 4x4 bands, got (9, 8)",
        ),
        (
            lambda: haar_idwt2d(*BANDS, output_size=(0, 8)),
            ValueError,
            "haar_idwt2d: output_size must be (7 or 8, 7 or 8) for 4x4 bands, got (0, 8)",
        ),
        (
            lambda: weighted_l1_loss(X, image(2, 3, 8, 9)),
            ValueError,
            "weighted_l1_loss: target must have input's shape (2, 3, 8, 8), got (2, 3, 8, 9)",
        ),
        (
            lambda: weighted_l1_loss(X, image(1, 3, 8, 8)),
            ValueError,
            "weighted_l1_loss: target must have input's shape (2, 3, 8, 8), got (1, 3, 8, 8)",
        ),
        (
            lambda: weighted_l1_loss(X, X.to("meta")),
            ValueError,
            "weighted_l1_loss: target must be on input's device cpu, got (2, 3, 8, 8) torch.float32 on meta",
        ),
        (
            lambda: weighted_l1_loss(X, X, MAP.to("meta")),
            ValueError,
            "weighted_l1_loss: weight must be on input's device cpu, got (2, 1, 4, 4) torch.float32 on meta",
        ),
        (
            lambda: weighted_l1_loss(X, X, image(3, 1, 4, 4)),
            ValueError,
            "weighted_l1_loss: weight must be (N or 1, 1 or C, h, w) with N=2 and C=3, got (3, 1, 4, 4)",
        ),
        (
            lambda: weighted_l1_loss(X, X, image(2, 2, 4, 4)),
            ValueError,
            "weighted_l1_loss: weight must be (N or 1, 1 or C, h, w) with N=2 and C=3, got (2, 2, 4, 4)",
        ),
        (
            lambda: weighted_l1_loss(X, X, reduction="avg"),
            ValueError,
            "weighted_l1_loss: reduction must be one of none, mean, sum, got 'avg'",
        ),
        (
            lambda: weighted_l1_loss(X, X, normalize="n"),
            ValueError,
            "weighted_l1_loss: normalize must be one of numel, weight_sum, got 'n'",
        ),
        (
            lambda: convert_haar_weight(image(4, 8, 3, 3), "mwcnn", "irn"),
            ValueError,
            "convert_haar_weight: weight must have 3C input channels for bands='high', got 8",
        ),
        (
            lambda: convert_haar_weight(image(4, 9, 3, 3), "mwcnn", "irn", bands="all"),
            ValueError,
            "convert_haar_weight: bands must be one of low, high, both, got 'all'",
        ),
        (
            lambda: convert_haar_weight(image(4, 9, 3, 3), "mwcnn", "irn", bias=torch.zeros(3)),
            ValueError,
            "convert_haar_weight: bias must be (4,), got (3,)",
        ),
    ],
)
def test_sentences(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    _says(error, sentence, call)


def test_unhashable_arguments_are_refused_by_name() -> None:
    """A list where a name is expected must not end in an error about hashing."""
    with pytest.raises((TypeError, ValueError), match="haar_highpass: convention must be"):
        haar_highpass(X, ["dasr"])
    with pytest.raises((TypeError, ValueError), match="weighted_l1_loss: reduction must be"):
        weighted_l1_loss(X, X, reduction=["mean"])


def test_mixed_dtypes_promote(target: Target) -> None:
    with srkernels.use_backend(target.backend):
        loss = weighted_l1_loss(X.half().to(target.device) + 1, X.to(target.device), MAP.double().to(target.device) + 1)
    assert loss.dtype == torch.float64
    assert loss == 1


def test_negative_weights_are_allowed(target: Target) -> None:
    with srkernels.use_backend(target.backend):
        assert weighted_l1_loss(X.to(target.device) + 1, X.to(target.device), MAP.to(target.device) - 2) == -2


def test_empty_batches_have_a_defined_result(target: Target) -> None:
    empty = image(0, 3, 8, 8).to(target.device)
    with srkernels.use_backend(target.backend):
        assert haar_highpass(empty).shape == (0, 9, 4, 4)
        assert weighted_l1_loss(empty, empty, reduction="sum") == 0
        assert weighted_l1_loss(empty, empty).isnan()
        assert weighted_l1_loss(empty, empty, reduction="none").shape == empty.shape


def test_meta_tensors_give_shapes() -> None:
    """As every PyTorch op: no data, the right shapes. By automatic choice, since no kernel runs on such tensors."""
    with srkernels.use_backend(None):
        assert haar_highpass(X.to("meta")).shape == (2, 9, 4, 4)
        assert weighted_l1_loss(X.to("meta"), X.to("meta")).device.type == "meta"
