"""Every wrong call raises one sentence: the op, the argument, what was expected, what was passed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.calls import Target
from torch import Tensor

import srkernels
from srkernels import (
    conv2d_act,
    convert_haar_weight,
    dense_block,
    haar_dwt2d,
    haar_highpass,
    haar_idwt2d,
    nn,
    residual_block,
    weighted_l1_loss,
)
from srkernels._validate import describe


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
    pytest.param(
        torch.nested.nested_tensor([*image()]), TypeError, "must be a dense tensor, got a nested one", id="nested"
    ),
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
        sentence_for_high = "haar_idwt2d: high[0] must be one tensor for convention 'dasr', got list"
    else:
        sentence_for_high = f"haar_idwt2d: high {sentence}"
    _says(error, sentence_for_high, lambda: haar_idwt2d(None, x, "dasr"))
    masks = isinstance(x, torch.Tensor) and (x.dim() < 4 or not (x.is_floating_point() or x.is_complex()))
    if not masks:  # else a weight as any other
        sentence = sentence.replace("(N, C, H, W)", "(N or 1, 1 or C, h, w)")
        _says(error, f"weighted_l1_loss: weight {sentence}", lambda: weighted_l1_loss(X, X, x))


HAAR = "must be one of orthonormal, dasr, dasr_sum, mwcnn, irn, wct2, wavesnet, wtconv, got 'haar'"
PAD = "must be one of reflect, zero, symmetric, periodization, periodic, floor, got 'same'"

SIZE = "must be (7 or 8, 7 or 8) for 4x4 bands, or (8 or 9, 8 or 9) after pad='floor'"


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
            lambda: haar_idwt2d(*BANDS, output_size=(10, 8)),
            ValueError,
            f"haar_idwt2d: output_size {SIZE}, got (10, 8)",
        ),
        (
            lambda: haar_idwt2d(*BANDS, output_size=(9, 7)),
            ValueError,
            f"haar_idwt2d: output_size {SIZE}, got (9, 7)",
        ),
        (
            lambda: haar_idwt2d(*BANDS, output_size=(0, 8)),
            ValueError,
            f"haar_idwt2d: output_size {SIZE}, got (0, 8)",
        ),
        (
            lambda: haar_idwt2d(None, [image(2, 3, 3, 6, 8), BANDS[1]]),
            ValueError,
            f"haar_idwt2d: the size of high[0] {SIZE}, got (6, 8)",
        ),
        (lambda: haar_idwt2d(None, []), ValueError, "haar_idwt2d: high must hold at least one level, got []"),
        (lambda: haar_idwt2d(None, [BANDS[1], None]), ValueError, "haar_idwt2d: low and high[1] are both None"),
        (
            lambda: haar_idwt2d(BANDS[0], [(BANDS[0],) * 3, (BANDS[0],) * 2], "wct2"),
            ValueError,
            "haar_idwt2d: high[1] must hold three tensors, got 2",
        ),
        (
            lambda: haar_dwt2d(X[..., :1], pad="floor"),
            ValueError,
            "haar_dwt2d: x must have height and width of at least 2 for pad='floor', got shape (2, 3, 8, 1)",
        ),
        (
            lambda: haar_highpass(X[:, :, :1], pad="floor"),
            ValueError,
            "haar_highpass: x must have height and width of at least 2 for pad='floor', got shape (2, 3, 1, 8)",
        ),
        (
            lambda: haar_dwt2d(X[..., :5], levels=3, pad="floor"),
            ValueError,
            "haar_dwt2d: levels must be at most 2 here, where the low band is 2x1",
        ),
        (
            lambda: haar_dwt2d(X[..., :5], levels=2**31 - 1),
            ValueError,
            "haar_dwt2d: levels must be at most 3 here, where the low band is 1x1",
        ),
        (
            lambda: haar_dwt2d(X, levels=0),
            ValueError,
            "haar_dwt2d: levels must be at least 1 and below 2**31, got 0",
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
            "convert_haar_weight: bias must be (4,) on cpu, got (3,) torch.float32 on cpu",
        ),
        (
            lambda: convert_haar_weight(image(4, 9, 3, 3), "haar", "irn"),
            ValueError,
            f"convert_haar_weight: source {HAAR}",
        ),
        (
            lambda: convert_haar_weight(image(4, 9, 3, 3), "irn", "haar"),
            ValueError,
            f"convert_haar_weight: target {HAAR}",
        ),
        (
            lambda: convert_haar_weight(image(4, 9, 3, 3), "mwcnn", "dasr", bias=torch.zeros(4, dtype=torch.int64)),
            TypeError,
            f"convert_haar_weight: bias {FLOATS} torch.int64",
        ),
        (
            lambda: convert_haar_weight(image(4, 9, 3, 3), "mwcnn", "dasr", bias=[0.0] * 4),
            TypeError,
            "convert_haar_weight: bias must be a tensor (4,), got list",
        ),
        (
            lambda: conv2d_act(X, FILTERS, BIAS.to_sparse()),
            TypeError,
            "conv2d_act: bias must be a dense tensor, got layout torch.sparse_coo",
        ),
        (
            lambda: conv2d_act(X, FILTERS, activation="prelu", slope=BIAS[:3]),
            ValueError,
            "conv2d_act: slope must be (1,) or (4,) on cpu, got (3,) torch.float32 on cpu",
        ),
        (
            lambda: conv2d_act(X, FILTERS, activation="relu", slope=0.1),
            ValueError,
            "conv2d_act: slope has no meaning for 'relu', got 0.1",
        ),
        (
            lambda: dense_block(X, (w for w in FIVE)),
            TypeError,
            "dense_block: weights must be a sequence of five tensors, got generator",
        ),
        (
            lambda: dense_block(X, FIVE[:4]),
            ValueError,
            "dense_block: weights must be a sequence of five tensors, got list of 4",
        ),
        (
            lambda: dense_block(X, FIVE, BIAS),
            TypeError,
            "dense_block: biases must be a sequence of five tensors, got (4,) torch.float32 on cpu",
        ),
        (lambda: dense_block(X, FIVE, slope=-0.5), ValueError, "dense_block: slope must be above 0, got -0.5"),
        (
            lambda: conv2d_act(X, FILTERS, scale=10**400),
            ValueError,
            "conv2d_act: scale must be a number in the range of a float, got int",
        ),
        (
            lambda: nn.ResidualDenseBlock(slope=0),
            ValueError,
            "ResidualDenseBlock: slope must be above 0, got 0",
        ),
        (
            lambda: nn.ResidualBlock(4, activation="prelu", slope=0.2),
            ValueError,
            "ResidualBlock: slope has no meaning for 'prelu', got 0.2",
        ),
        (lambda: nn.ResidualBlock(4, slopes=3), ValueError, "ResidualBlock: slopes must be 1 or 4, got 3"),
        (
            lambda: srkernels.explain(5, X),
            ValueError,
            "explain: op must be one of haar_dwt2d, haar_highpass, haar_idwt2d, weighted_l1_loss, weighted_loss, "
            "conv2d_act, residual_block, dense_block, got 'int'",
        ),
        (
            lambda: srkernels.explain("conv2d_act", X, BIAS),
            ValueError,
            "explain: inputs must be those of conv2d_act, got x (2, 3, 8, 8) torch.float32 on cpu, "
            "weight (4,) torch.float32 on cpu",
        ),
        (
            lambda: srkernels.use_backend(np.zeros(3)).__enter__(),
            ValueError,
            "use_backend: backend must be one of reference, native, triton, pointwise or None (automatic), got ndarray",
        ),
    ],
)
def test_sentences(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    _says(error, sentence, call)


FILTERS, BIAS = image(4, 3, 3, 3), torch.zeros(4)
BACK = image(3, 4, 3, 3)
FIVE = [image(2 if k < 4 else 3, 3 + 2 * k, 3, 3) for k in range(5)]


def _residual_block(**settings: Any) -> Tensor:
    return residual_block(X, FILTERS, None, BACK, None, **settings)


@pytest.mark.parametrize("value", ["0.5", None, True, 1j, [0.5], np.array(0.5), torch.tensor(0.5)], ids=repr)
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("conv2d_act: scale", lambda v: conv2d_act(X, FILTERS, scale=v)),
        ("conv2d_act: slope", lambda v: conv2d_act(X, FILTERS, activation="leaky_relu", slope=v)),
        ("residual_block: res_scale", lambda v: _residual_block(res_scale=v)),
        ("residual_block: slope", lambda v: _residual_block(activation="leaky_relu", slope=v)),
        ("dense_block: res_scale", lambda v: dense_block(X, FIVE, res_scale=v)),
        ("dense_block: slope", lambda v: dense_block(X, FIVE, slope=v)),
        ("Conv2dAct: slope", lambda v: nn.Conv2dAct(3, 4, activation="leaky_relu", slope=v)),
        ("ResidualBlock: slope", lambda v: nn.ResidualBlock(4, activation="leaky_relu", slope=v)),
        ("ResidualBlock: res_scale", lambda v: nn.ResidualBlock(4, res_scale=v)),
        ("ResidualDenseBlock: slope", lambda v: nn.ResidualDenseBlock(4, slope=v)),
        ("ResidualDenseBlock: res_scale", lambda v: nn.ResidualDenseBlock(4, res_scale=v)),
        ("WeightedL1Loss: loss_weight", lambda v: nn.WeightedL1Loss(v)),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_numbers(name: str, call: Callable[[Any], Any], value: Any) -> None:
    if value is None and name.endswith("slope") and "ense" not in name:
        call(value)  # the default slope
        return
    shown = describe(value) if isinstance(value, (np.ndarray, Tensor)) else repr(value)
    _says(TypeError, f"{name} must be a number, got {shown}", lambda: call(value))


@pytest.mark.parametrize("value", [1, np.float32(0.5), np.int64(2), np.float64(0.25)], ids=repr)
def test_numbers_of_numpy_are_numbers(value: Any) -> None:
    assert torch.equal(conv2d_act(X + 1, FILTERS + 1, scale=value), conv2d_act(X + 1, FILTERS + 1, scale=float(value)))


@pytest.mark.parametrize("value", ["no", None, 1, 0.0, [], torch.tensor(True)], ids=repr)
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("weighted_l1_loss: align_corners", lambda v: weighted_l1_loss(X, X, MAP, align_corners=v)),
        ("WeightedL1Loss: align_corners", lambda v: nn.WeightedL1Loss(align_corners=v)),
        ("Conv2dAct: bias", lambda v: nn.Conv2dAct(3, 4, bias=v)),
        ("ResidualBlock: bias", lambda v: nn.ResidualBlock(4, bias=v)),
        ("ResidualDenseBlock: bias", lambda v: nn.ResidualDenseBlock(4, bias=v)),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_truth_values(name: str, call: Callable[[Any], Any], value: Any) -> None:
    shown = describe(value) if isinstance(value, Tensor) else repr(value)
    _says(TypeError, f"{name} must be True or False, got {shown}", lambda: call(value))


@pytest.mark.parametrize(
    ("value", "error", "sentence"),
    [
        ("4", TypeError, "must be an integer, got '4'"),
        (None, TypeError, "must be an integer, got None"),
        (4.0, TypeError, "must be an integer, got 4.0"),
        (True, TypeError, "must be an integer, got True"),
        (torch.tensor(4), TypeError, "must be an integer, got () torch.int64 on cpu"),
        (0, ValueError, "must be at least 1 and below 2**31, got 0"),
        (-3, ValueError, "must be at least 1 and below 2**31, got -3"),
        (2**70, ValueError, f"must be at least 1 and below 2**31, got {2**70}"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("Conv2dAct: in_channels", lambda v: nn.Conv2dAct(v, 4)),
        ("Conv2dAct: out_channels", lambda v: nn.Conv2dAct(4, v)),
        ("Conv2dAct: kernel_size", lambda v: nn.Conv2dAct(4, 4, v)),
        ("Conv2dAct: stride", lambda v: nn.Conv2dAct(4, 4, stride=v)),
        ("Conv2dAct: dilation", lambda v: nn.Conv2dAct(4, 4, dilation=v)),
        ("Conv2dAct: groups", lambda v: nn.Conv2dAct(4, 4, groups=v)),
        ("ResidualBlock: channels", lambda v: nn.ResidualBlock(v)),
        ("ResidualDenseBlock: channels", lambda v: nn.ResidualDenseBlock(v)),
        ("ResidualDenseBlock: growth", lambda v: nn.ResidualDenseBlock(4, v)),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_sizes(name: str, call: Callable[[Any], Any], value: Any, error: type[Exception], sentence: str) -> None:
    _says(error, f"{name} {sentence}", lambda: call(value))


@pytest.mark.parametrize("bad", [0, 0.5, {8, 7}, (8,), (8, 8, 8), "88", (8, "8"), (8.0, 8), (True, 8)], ids=repr)
def test_output_sizes(bad: Any) -> None:
    shown = "set" if isinstance(bad, set) else repr(bad)
    sentence = f"haar_idwt2d: output_size must be two integers, got {shown}"
    _says(TypeError, sentence, lambda: haar_idwt2d(*BANDS, output_size=bad))


def test_a_channel_of_a_map_has_to_be_there() -> None:
    """No channels at all: maps of any number of samples, but with one channel or none."""
    none, some = image(2, 0, 8, 8), image(2, 0, 4, 4)
    for backend in ("reference", "native"):
        with srkernels.use_backend(backend):
            assert weighted_l1_loss(none, none, some, reduction="sum") == 0
            assert weighted_l1_loss(none, none, some, normalize="weight_sum").isnan()
            assert weighted_l1_loss(none, none, MAP, reduction="none").shape == none.shape


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
    """Like every PyTorch op: no data, the right shapes. By automatic choice, since no kernel runs on such tensors."""
    with srkernels.use_backend(None):
        assert haar_highpass(X.to("meta")).shape == (2, 9, 4, 4)
        assert weighted_l1_loss(X.to("meta"), X.to("meta")).device.type == "meta"
