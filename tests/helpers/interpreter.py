"""Triton's interpreter, faster."""

from __future__ import annotations

from typing import Any


class _Once:
    """Triton patches its language modules anew for each call of a device function, of which a kernel here makes
    hundreds. Once for each module of functions is enough.
    """

    def __init__(self, patch: Any) -> None:
        self.patch, self.scope = patch, None
        self.patched: set[int] = set()

    def __call__(self, function: Any) -> Any:
        module = id(function.__globals__)
        if module in self.patched:
            return None  # of a device function, for which nothing is restored
        scope = self.patch(function)
        self.patched.add(module)
        if self.scope is not None:
            return scope
        self.scope = scope  # the kernel's own
        return self

    def restore(self) -> None:
        scope, self.scope = self.scope, None
        self.patched.clear()
        scope.restore()


def patch_once() -> None:
    from triton.runtime import interpreter

    interpreter._patch_lang = _Once(interpreter._patch_lang)
