"""One folder per op. ``specs()`` is the only list of them."""

from __future__ import annotations

from .._spec import OpSpec


def specs() -> tuple[OpSpec, ...]:
    """Every op's spec; imported on demand, since only tests, benches and info need them."""
    from .conv.spec import SPECS as CONV
    from .haar.spec import SPECS as HAAR
    from .weighted_loss.spec import SPECS as WEIGHTED_LOSS

    return (*HAAR, *WEIGHTED_LOSS, *CONV)
