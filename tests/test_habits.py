"""What the project holds itself to: lint, format, types, packaging, and a native core clean under sanitizers."""

from __future__ import annotations

import importlib.util
import os
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


def test_mypy() -> None:
    module("mypy")


def test_clang_format() -> None:
    formatter = shutil.which("clang-format", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if formatter is None:
        pytest.skip("clang-format is not installed (pip install -e .[test])")
    sources = [str(p) for suffix in ("h", "cpp", "cu") for p in (ROOT / "csrc").rglob(f"*.{suffix}")]
    run(formatter, "--dry-run", "-Werror", *sources)


def test_sdist_and_wheel(tmp_path: Path) -> None:
    """Built in isolation as pip would, the wheel holds srkernels alone and works outside the checkout."""
    if importlib.util.find_spec("build") is None:
        pytest.skip("build is not installed (pip install -e .[test])")
    # The CUDA core has its own gate; without it this builds in seconds.
    run(sys.executable, "-m", "build", "--outdir", str(tmp_path), ".", SRKERNELS_BUILD="cpu")
    (sdist,) = tmp_path.glob("*.tar.gz")
    (wheel,) = tmp_path.glob("*.whl")
    assert sdist.stat().st_size < 2**20
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"srkernels"}
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


@pytest.mark.skipif(sys.platform != "linux", reason="the sanitizer runtime is preloaded, which needs Linux")
def test_native_core_under_sanitizers(tmp_path: Path) -> None:
    """Every case of every op, on the least and the best instruction set here, with bounds and overflow checked."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    runtime = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("the compiler has no address sanitizer runtime")
    package = tmp_path / "lib" / "srkernels"
    arguments = ("build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "objects"))
    run(sys.executable, "setup.py", "-q", *arguments, SRKERNELS_BUILD="cpu", SRKERNELS_SANITIZE="1")
    for source in (ROOT / "srkernels").rglob("*.py"):
        target = package / source.relative_to(ROOT / "srkernels")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    script = Path(__file__).parent / "sanitized.py"
    out = run(
        sys.executable,
        str(script),
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path / "lib"),
        LD_PRELOAD=runtime,
        # The interpreter and torch leak at exit by design; link order is the preload's doing.
        ASAN_OPTIONS="detect_leaks=0:verify_asan_link_order=0",
        UBSAN_OPTIONS="print_stacktrace=1",
    )
    assert out.strip().endswith("clean")
