"""What a measurement was made on, in one line: seconds of two machines are not comparable."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine(device: str = "cpu", cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Processor, cores, GPU where one computes, and torch's version.

    Args:
        device: where is computed, as torch names it.
        cpuinfo: Linux's list of processors; where there is none, Python's name stands in.
    """
    parts = [processor(cpuinfo), f"{os.cpu_count() or 1} cores"]
    if device.startswith("cuda"):
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join([*parts, f"torch {torch.__version__}"])


def processor(cpuinfo: Path) -> str:
    """The processor's name."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
