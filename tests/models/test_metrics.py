"""PSNR and SSIM against scikit-image, brought to the definition of the super-resolution literature."""

from __future__ import annotations

import numpy as np
import pytest

from models.evaluate import metrics

skimage_metrics = pytest.importorskip("skimage.metrics")


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(61), np.arange(83))[..., None] * np.array([1.0, 0.7, 1.3])
    reference = np.clip(smooth + rng.normal(0, 25, (61, 83, 3)), 0, 255).astype(np.uint8)
    noisy = np.clip(reference + rng.normal(0, 12, reference.shape), 0, 255).astype(np.uint8)
    return noisy, reference


def inner(picture: np.ndarray, border: int, y_channel: bool) -> np.ndarray:
    picture = picture[border : picture.shape[0] - border, border : picture.shape[1] - border]
    return metrics.rgb_to_y(picture)[..., None] if y_channel else picture.astype(np.float64)


@pytest.mark.parametrize("y_channel", [True, False])
@pytest.mark.parametrize("border", [0, 4])
def test_psnr_is_that_of_skimage(pair, border, y_channel):
    a, b = (inner(picture, border, y_channel) for picture in pair)
    expected = skimage_metrics.peak_signal_noise_ratio(b, a, data_range=255)
    assert metrics.psnr(*pair, crop_border=border, y_channel=y_channel) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("y_channel", [True, False])
def test_ssim_is_that_of_skimage_on_the_valid_region(pair, y_channel):
    a, b = (inner(picture, 4, y_channel) for picture in pair)
    _, full = skimage_metrics.structural_similarity(
        a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2, full=True
    )
    expected = full[5:-5, 5:-5].mean()
    assert metrics.ssim(*pair, y_channel=y_channel) == pytest.approx(expected, abs=1e-9)


def test_luma_is_studio_range_of_rgb_not_bgr():
    corners = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(metrics.rgb_to_y(corners)[0], [16, 235, 16 + 65.481, 16 + 24.966], atol=1e-3)


def test_equal_pictures(pair):
    _, reference = pair
    assert metrics.psnr(reference, reference) == float("inf")
    assert metrics.ssim(reference, reference) == pytest.approx(1)


@pytest.mark.parametrize(
    ("sr", "message"),
    [
        (np.zeros((20, 20, 3), np.float32), "uint8 RGB"),
        (np.zeros((20, 20), np.uint8), "uint8 RGB"),
        (np.zeros((20, 24, 3), np.uint8), "differ in shape"),
    ],
)
def test_bad_pictures_are_named(sr, message):
    with pytest.raises(ValueError, match=message):
        metrics.psnr(sr=sr, hr=np.zeros((20, 20, 3), np.uint8))


def test_too_small_for_the_window_is_refused():
    picture = np.zeros((18, 18, 3), np.uint8)
    with pytest.raises(ValueError, match="11 x 11"):
        metrics.ssim(picture, picture)


def test_a_number_comes_with_its_convention():
    assert metrics.convention(4, y_channel=False) == "RGB, crop 4, uint8"
    assert metrics.convention(2, y_channel=True) == "Y of BT.601 studio range, crop 2, uint8"
    assert metrics.convention() == "Y of BT.601 studio range, crop 4, uint8"
