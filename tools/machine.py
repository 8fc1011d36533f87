"""What a measurement was made on, and how much memory it took."""

from __future__ import annotations

import gc
import os
import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch


def machine(device: str = "cpu", cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Processor, cores, GPU where one computes, and torch's version, in one line.

    Seconds of two machines are not comparable.

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


def forget_peak_memory(device: str = "cpu") -> None:
    """Let `peak_memory_mb` begin anew, where the system can: on Linux, and on GPUs."""
    gc.collect()  # networks that refer to themselves would count
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if device.startswith("cuda"):
        torch.cuda.init()  # it counts nothing before, and says so by failing for cuda:N
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: str = "cpu") -> float:
    """Most memory at once since `forget_peak_memory`, in MiB: the GPU's, or this process's.

    Elsewhere than on Linux it is the process's since it began.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
