"""How a convolution's filters pass over its image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Stride 1, no dilation, one group, zero padding that keeps height and width: that of blocks, and the default.
PLAIN: tuple[int, ...] = ()


class Geometry(NamedTuple):
    """Of rows and columns, as PyTorch's convolutions take them; padding is by zeros.

    Operators have the numbers one after another (``flat``), or none (``PLAIN``).

    Attributes:
        output_padding: rows and columns at the image's end that a stride leaves out, which an output's size does not
            tell; ``F.conv_transpose2d`` has the name.
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    output_padding: tuple[int, int] = (0, 0)

    @property
    def flat(self) -> tuple[int, ...]:
        return *self.stride, *self.padding, *self.dilation, self.groups, *self.output_padding

    @staticmethod
    def of(flat: Sequence[int]) -> Geometry:
        s, t, p, q, d, e, groups, r, c = flat
        return Geometry((s, t), (p, q), (d, e), groups, (r, c))

    def over(self, image: Sequence[int], kernel: Sequence[int]) -> tuple[Geometry, list[int]]:
        """With the ``output_padding`` of this image, and (height, width) of the output."""
        steps = [
            (size + 2 * p - d * (k - 1) - 1, s)
            for size, k, s, p, d in zip(image, kernel, self.stride, self.padding, self.dilation, strict=True)
        ]
        rows, columns = (span % s for span, s in steps)
        return self._replace(output_padding=(rows, columns)), [span // s + 1 for span, s in steps]


def output_size(flat: Sequence[int], image: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """(height, width) of a convolution's output."""
    return Geometry.of(flat).over(image, kernel)[1] if flat else list(image)


def input_size(flat: Sequence[int], output: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """(height, width) of a convolution's image."""
    if not flat:
        return list(output)
    stride, padding, dilation, _, output_padding = Geometry.of(flat)
    return [
        (size - 1) * s - 2 * p + d * (k - 1) + 1 + r
        for size, k, s, p, d, r in zip(output, kernel, stride, padding, dilation, output_padding, strict=True)
    ]


def groups_of(flat: Sequence[int]) -> int:
    return flat[6] if flat else 1
