"""Frequency filters: what a discriminator sees of an image, and the low frequencies that a colour loss compares.

Each is a module without parameters or state-dict keys. `forward(x)` takes (N, 3, H, W) and returns the input of a
discriminator, `channels` of them, one position for `stride` pixels, which looks `reach` pixels beyond those; `low(x)`
returns the low frequencies, at half the size or without a border. Both are differentiable and keep the image's dtype
under autocast: bf16 would drown the high frequencies in rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import srkernels


class Haar(nn.Module):
    """DASR's wavelet: three high bands of every colour, stacked, (N, 9, ceil(H / 2), ceil(W / 2)) in [0, 1].

    `low` is the mean of each 2x2 cell (DASR's LL), (N, 3, ceil(H / 2), ceil(W / 2)).
    """

    channels = 9
    stride = 2
    reach = 0
    convention = "dasr"

    def low(self, x: Tensor) -> Tensor:
        return srkernels.haar_dwt2d(x, self.convention, bands="low")[0]

    def forward(self, x: Tensor) -> Tensor:
        return srkernels.haar_highpass(x, self.convention)


class HaarSum(Haar):
    """As `Haar`, but the mean of the three high bands, (N, 3, ceil(H / 2), ceil(W / 2)) in [0, 1]."""

    channels = 3
    convention = "dasr_sum"


class _Blur(nn.Module, ABC):
    """What a low-pass of an odd `kernel` leaves: `1 - gain + gain * (x - low-pass)`, in the size of x.

    The DSN of DASR's code has the gain 0.5. Its SR network scales the result by 0.5 and adds 0.5 once more, which is
    the gain 0.25. `low` is the low-pass where the kernel lies inside, (N, 3, H - kernel + 1, W - kernel + 1); with
    `padded`, as in that SR network, zeros continue the image and it has the size of x.
    """

    channels = 3
    stride = 1

    def __init__(self, kernel: int = 5, *, gain: float = 0.5, padded: bool = False) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"{type(self).__name__}: kernel must be odd and positive, got {kernel}")
        self.kernel = kernel
        self.reach = kernel // 2
        self.gain = gain
        self.padded = padded

    def low(self, x: Tensor) -> Tensor:
        return self._smooth(x, padding=self.reach if self.padded else 0)

    def forward(self, x: Tensor) -> Tensor:
        return 1 - self.gain + self.gain * (x - self._smooth(x, padding=self.reach))

    @abstractmethod
    def _smooth(self, x: Tensor, padding: int) -> Tensor:
        """The low-pass, with `padding` zeros around the image."""


class Gaussian(_Blur):
    """High frequencies by a Gaussian of deviation kernel / 6, zeros around the image (GBFS in DASR's paper).

    The zeros darken the low-pass along the border, so that a border of kernel // 2 pixels shows up in the high
    frequencies, as in the published code.
    """

    taps: Tensor

    def __init__(self, kernel: int = 5, *, gain: float = 0.5, padded: bool = False) -> None:
        super().__init__(kernel, gain=gain, padded=padded)
        at = torch.arange(kernel, dtype=torch.float64) - kernel // 2
        line = torch.exp(-0.5 * (at / (kernel / 6)).square())
        line /= line.sum()
        self.register_buffer("taps", torch.outer(line, line)[None, None].float(), persistent=False)

    def _smooth(self, x: Tensor, padding: int) -> Tensor:
        channels = x.shape[1]
        taps = self.taps.to(x.dtype).expand(channels, -1, -1, -1)
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x, taps, padding=padding, groups=channels)


class AveragePool(_Blur):
    """High frequencies by a moving average, over the pixels inside the image or, `padded`, zeros too."""

    def _smooth(self, x: Tensor, padding: int) -> Tensor:
        return F.avg_pool2d(x, self.kernel, stride=1, padding=padding, count_include_pad=self.padded)


class RGB(nn.Module):
    """No filter: the image itself, for both."""

    channels = 3
    stride = 1
    reach = 0

    def low(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return x


class Contrasted(nn.Module):
    """`(H(x) - 0.5) * contrast` of a filter H, which lies near 0.5 with little spread (ours); `low` is H's own."""

    def __init__(self, view: Haar | Gaussian | AveragePool | RGB, contrast: float) -> None:
        super().__init__()
        self.view, self.contrast = view, contrast
        self.channels, self.stride, self.reach = view.channels, view.stride, view.reach

    def low(self, x: Tensor) -> Tensor:
        return self.view.low(x)

    def forward(self, x: Tensor) -> Tensor:
        return (self.view(x) - 0.5) * self.contrast


FrequencyFilter = Haar | Gaussian | AveragePool | RGB | Contrasted


def frequency_filter(
    name: str, kernel: int = 5, gain: float = 0.5, padded: bool = False, contrast: float = 0.0
) -> FrequencyFilter:
    """The filter of a name: "haar", "haar_sum", "gbfs" (Gaussian), "average" or "rgb".

    `kernel`, `gain` and `padded` are those of the two blurs; the other filters ignore them. With a `contrast` other
    than 0 it is `Contrasted`.

    Raises ValueError for another name and for a blur whose kernel is not odd.
    """
    filters = {
        "haar": Haar,
        "haar_sum": HaarSum,
        "gbfs": partial(Gaussian, kernel, gain=gain, padded=padded),
        "average": partial(AveragePool, kernel, gain=gain, padded=padded),
        "rgb": RGB,
    }
    if name not in filters:
        raise ValueError(f"frequency filter must be one of {', '.join(filters)}, got {name!r}")
    view = filters[name]()
    return Contrasted(view, contrast) if contrast else view
