"""The packages that the table of Haar conventions names, each against its own transform.

The transforms restate those of the packages' code, for even sizes and in fp64. A name carries the settings under which
it is true, as in the table.
"""

from __future__ import annotations

import pytest
from helpers.calls import Target
from helpers.published import PUBLISHED, assert_same, images, mwcnn, pytorch_wavelets, wavesnet, wct2
from torch.nn import functional as F

import srkernels
from srkernels import HAAR_CONVENTIONS, haar_dwt2d, haar_highpass, haar_idwt2d
from srkernels.ops.haar.conventions import USED_BY


def test_the_table_names_what_is_tested_here() -> None:
    named = {(convention, name) for convention, names in USED_BY.items() for name in names}
    assert set(USED_BY) == set(HAAR_CONVENTIONS)
    assert named == {(p.convention, name) for name, p in PUBLISHED.items()}


@pytest.mark.parametrize("size", [(8, 10), (2, 2)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("name", PUBLISHED)
def test_bands(name: str, size: tuple[int, int], target: Target) -> None:
    published, x = PUBLISHED[name], images(2, 3, *size)
    with srkernels.use_backend(target.backend):
        low, high = haar_dwt2d(x.to(target.device), published.convention)
        high_alone = haar_highpass(x.to(target.device), published.convention)
    assert_same(published.form(low, high), published.analysis(x))
    assert_same(published.form(low, high_alone), published.analysis(x))


@pytest.mark.parametrize("name", [name for name, p in PUBLISHED.items() if p.synthesis is not None])
def test_inverse(name: str, target: Target) -> None:
    published, x = PUBLISHED[name], images(2, 3, 8, 10)
    low, high = haar_dwt2d(x, published.convention)
    with srkernels.use_backend(target.backend):
        ours = haar_idwt2d(*haar_dwt2d(x.to(target.device), published.convention), published.convention)
    assert_same(ours, published.synthesis(published.form(low, high)))


@pytest.mark.parametrize(
    ("name", "pad", "mode"),
    [
        ("DASR's SRN (norm=true)", "reflect", "reflect"),
        ("WTConv", "zero", "constant"),
        ("pytorch_wavelets", "periodic", "circular"),
        ("IRN", "floor", None),
        ("WCT2", "floor", None),
    ],
)
@pytest.mark.parametrize("size", [(7, 10), (8, 9), (7, 5)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_odd_sizes(name: str, pad: str, mode: str | None, size: tuple[int, int], target: Target) -> None:
    published, x = PUBLISHED[name], images(2, 3, *size)
    with srkernels.use_backend(target.backend):
        low, high = haar_dwt2d(x.to(target.device), published.convention, pad=pad)
    even = x if mode is None else F.pad(x, (0, size[1] % 2, 0, size[0] % 2), mode=mode)
    assert_same(published.form(low, high), published.analysis(even))


def test_lh_and_hl_mean_opposite_things() -> None:
    x = images(2, 3, 8, 10)
    lh, hl, _ = pytorch_wavelets(x)[1].unbind(2)
    _, other_lh, other_hl, _ = wavesnet(x)
    assert_same((lh, hl), (other_hl, other_lh))
    _, hl, lh, _ = mwcnn(x).chunk(4, 1)
    _, other_lh, other_hl, _ = wct2(x)
    assert_same((lh, hl), (other_hl, other_lh))
