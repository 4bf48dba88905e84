"""The project's standards: lint, format, types and packaging."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path = ROOT, **env: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}"
    return done.stdout


def module(name: str, *arguments: str) -> str:
    if importlib.util.find_spec(name.replace("-", "_")) is None:
        pytest.skip(f"{name} is not installed (pip install -e .[test])")
    return run(sys.executable, "-m", name, *arguments)


def test_ruff_lint() -> None:
    module("ruff", "check", ".")


def test_ruff_format() -> None:
    module("ruff", "format", "--check", ".")


@pytest.mark.thorough
def test_mypy() -> None:
    module("mypy")


def test_clang_format() -> None:
    formatter = shutil.which("clang-format", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if formatter is None:
        pytest.skip("clang-format is not installed (pip install -e .[test])")
    sources = [str(p) for suffix in ("h", "cpp", "cu") for p in (ROOT / "csrc").rglob(f"*.{suffix}")]
    run(formatter, "--dry-run", "-Werror", *sources)


@pytest.mark.thorough
def test_sdist_and_wheel(tmp_path: Path) -> None:
    """Built in isolation as by pip, the wheel holds only srkernels and works outside the checkout."""
    if importlib.util.find_spec("build") is None:
        pytest.skip("build is not installed (pip install -e .[test])")
    # The CUDA core has its own gate; without it this builds in seconds.
    printed = run(sys.executable, "-m", "build", "--outdir", str(tmp_path), ".", SRKERNELS_BUILD="cpu")
    # Also what this machine cannot run: the wheel is installed on others.
    assert ".avx512.o" in printed or platform.machine().lower() not in ("x86_64", "amd64")
    assert "-O3" in printed and "-O0" not in printed
    (sdist,) = tmp_path.glob("*.tar.gz")
    (wheel,) = tmp_path.glob("*.whl")
    assert sdist.stat().st_size < 2**20
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"srkernels"}
    assert "srkernels/tables/README.md" in zipfile.ZipFile(wheel).namelist()
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel))
    smoke = (
        "import srkernels, torch; from pathlib import Path; "
        f"assert Path(srkernels.__file__).is_relative_to({str(site)!r}), srkernels.__file__; "
        "x = torch.rand(2, 3, 8, 8, requires_grad=True); "
        "srkernels.use_backend('native').__enter__(); "
        "low, high = srkernels.haar_dwt2d(x); "
        "assert torch.allclose(srkernels.haar_idwt2d(low, high), x, atol=1e-6); "
        "srkernels.weighted_l1_loss(x, torch.zeros_like(x), torch.ones(2, 1, 2, 2)).backward(); "
        "assert x.grad.unique().numel() == 1"
    )
    run(sys.executable, "-c", smoke, cwd=tmp_path, PYTHONPATH=str(site))
