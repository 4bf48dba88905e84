"""What a fresh process sees: imports that are light and never fail, and backends requested from outside."""

from __future__ import annotations

import json
from statistics import median

import pytest
import torch
from helpers.process import environment, python

from srkernels._dispatch import why_not

CALL = """
x = torch.rand(2, 3, 7, 9, requires_grad=True)
loss = srkernels.weighted_l1_loss(srkernels.haar_highpass(x), torch.zeros(2, 9, 4, 5), torch.rand(2, 1, 2, 2))
loss.backward()
assert x.grad.any()
"""


def _blocked(*names: str) -> str:
    return f"import sys\nfor name in {names!r}: sys.modules[name] = None\nimport torch, srkernels\n"


def test_without_triton() -> None:
    python(_blocked("triton") + CALL + "assert 'triton is not installed' in srkernels.explain('haar_highpass', x)")


def test_without_the_extensions() -> None:
    """The ops run on eager PyTorch, and a request for the core says why it is unavailable."""
    python(
        _blocked("srkernels._cpu", "srkernels._cuda")
        + CALL
        + """
assert srkernels.explain("haar_highpass", x).startswith("haar_highpass on cpu float32: reference (automatic)")
try:
    with srkernels.use_backend("native"):
        srkernels.haar_highpass(x)
except RuntimeError as error:
    assert str(error).startswith("haar: backend 'native' was asked for but cannot run: "), error
    assert "_cpu" in str(error), error
else:
    raise AssertionError("it ran without the core")
"""
    )


@pytest.mark.thorough
def test_without_either() -> None:
    python(_blocked("triton", "srkernels._cpu", "srkernels._cuda") + CALL)


def test_import_pulls_in_torch_and_numpy_alone() -> None:
    done = python("""
        import json, sys
        import torch
        before = set(sys.modules)
        import srkernels
        x = torch.rand(1, 3, 4, 4)
        srkernels.haar_highpass(x)
        print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
    """)
    packages = set(json.loads(done.stdout.splitlines()[-1])) - {"srkernels", "torch", "numpy"}
    heavy = packages & {"triton", "cv2", "matplotlib", "torchvision", "scipy", "skimage", "yaml", "pywt", "models"}
    assert not heavy, f"import srkernels pulled in {heavy}"


def test_import_is_quick() -> None:
    """Under 0.3 s beyond ``import torch``, in CPU time, so that a busy machine cannot fail it."""
    source = """
        import time, torch
        start = time.process_time()
        import srkernels
        print(time.process_time() - start)
    """
    seconds = [float(python(source).stdout) for _ in range(3)]
    assert median(seconds) < 0.3, seconds


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_backend_from_the_environment(backend: str) -> None:
    reason = why_not(backend, torch.device("cpu"), torch.float32)
    done = python(
        "import torch, srkernels\nprint(srkernels.explain('haar_highpass', torch.rand(1, 3, 4, 4)))\n"
        "srkernels.haar_highpass(torch.rand(1, 3, 4, 4))",
        env=environment(SRKERNELS_BACKEND=backend),
        check=reason is None,
    )
    assert done.stdout.startswith(f"haar_highpass on cpu float32: {backend} (asked for by name)")
    if reason is not None:
        assert done.returncode != 0
        assert reason in done.stderr


@pytest.mark.thorough
def test_empty_environment_variable_is_automatic() -> None:
    done = python(
        "import torch, srkernels; print(srkernels.explain('haar_highpass', torch.rand(1, 3, 4, 4)))",
        env=environment(SRKERNELS_BACKEND=""),
    )
    assert "(automatic)" in done.stdout


def test_wrong_environment_variable_fails_the_import() -> None:
    done = python("import srkernels", env=environment(SRKERNELS_BACKEND="cudnn"), check=False)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "ValueError: SRKERNELS_BACKEND: backend must be one of reference, native, triton, pointwise or None "
        "(automatic), got 'cudnn'"
    )


def test_public_names_exist_and_are_documented() -> None:
    import srkernels

    for name in srkernels.__all__:
        value = getattr(srkernels, name)
        assert not callable(value) or value.__doc__, name
    assert set(srkernels.functional.__all__) < set(srkernels.__all__)
