"""Where and on what a result was measured. No host or user names."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from srkernels.info import processor

ROOT = Path(__file__).resolve().parent.parent


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def describe(device: torch.device, command: str) -> dict[str, Any]:
    """The conditions of a run, as stored with its figures."""
    machine: dict[str, Any] = {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "gpu_l2_bytes": properties.L2_cache_size,
            "gpu_multiprocessors": properties.multi_processor_count,
            "gpu_capability": f"{properties.major}.{properties.minor}",
        }
    # Not the package's version, which omits what the wheel was built for.
    versions = {"torch": str(torch.__version__)}
    versions |= {name: found for name in ("triton", "numpy") if (found := _version(name))}
    versions["python"] = platform.python_version()
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
        cudnn = torch.backends.cudnn.version()
        if cudnn:
            versions["cudnn"] = str(cudnn)
    status = _git("status", "--porcelain", "--", "srkernels", "csrc", "bench", "setup.py")
    return {
        "schema": 1,
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "versions": versions,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "command": command,
    }


def title(conditions: dict[str, Any]) -> str:
    machine = conditions["machine"]
    return machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"


def result_name(conditions: dict[str, Any], kind: str = "") -> str:
    """File name of a result: the machine, what of the benches it holds (if not all), and the day."""
    machine = conditions["machine"]
    name = machine.get("gpu") or f"{machine['cpu']} {machine['threads']} threads"
    name = re.sub(r"\((r|tm)\)", "", f"{name} {kind}".lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") + f"-{conditions['date']}.json"


def footnote(conditions: dict[str, Any]) -> str:
    """One line of conditions to put under a table."""
    machine, versions = conditions["machine"], conditions["versions"]
    parts = [title(conditions) if "gpu" not in machine else f"{machine['gpu']} ({machine['cpu']}, host)"]
    parts += [f"{name} {version}" for name, version in versions.items()]
    commit = conditions.get("commit")
    if commit:
        parts.append(f"commit {commit[:10]}{' with local changes' if conditions.get('dirty') else ''}")
    return ", ".join([*parts, conditions["date"]])


def forget_tuning() -> None:
    """Measures the choices that ship: nothing that was tuned on this machine decides."""
    os.environ["SRKERNELS_CACHE"] = str(Path(tempfile.gettempdir()) / "srkernels-benches-keep-nothing")
