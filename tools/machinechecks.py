"""Checks of `atlasd doctor`: processors, clocks, memory, open files."""

from __future__ import annotations

import os
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from .findings import Case, Finding

DRIVER = Path("/proc/driver/nvidia/version")
CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
LOOK_S = 0.3
STEP_MS = 2.0
"""Most that the wall clock may move against the monotonic one while it is looked at."""
LEAST_MB, ENOUGH_MB = 700, 1500
"""What a daemon with `atlas-lite` takes, and what leaves it room."""
ENOUGH_FILES = 1024
_SLOW_SOURCES = {"hpet", "acpi_pm", "jiffies"}


def torch(case: Case) -> list[Finding]:
    """PyTorch and the devices on which it computes."""
    import torch as library

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    findings = [Finding("torch", "ok", f"torch {library.__version__}, {cores} cores")]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        is_there = library.cuda.is_available()
    for index in range(library.cuda.device_count() if is_there else 0):
        free, total = library.cuda.mem_get_info(index)
        name = library.cuda.get_device_name(index)
        findings.append(
            Finding("torch", "ok", f"cuda:{index} {name}, {free >> 20} of {total >> 20} MB free")
        )
    if not is_there:
        findings.append(_without_cuda(case, "; ".join(str(each.message) for each in said)))
    return findings


def _without_cuda(case: Case, why: str) -> Finding:
    import torch as library

    built = library.version.cuda
    if case.config.model.device.startswith("cuda"):
        remedy = "set model.device to auto or cpu, or install NVIDIA's driver"
        return Finding("torch", "fail", f"model.device is cuda, no GPU can be used. {why}", remedy)
    if DRIVER.exists():
        driver = DRIVER.read_text(errors="replace").splitlines()[0]
        remedy = (
            f"a driver that suits CUDA {built}, or a torch that suits the driver"
            if built
            else "a torch built with CUDA"
        )
        return Finding("torch", "warn", f"{driver}, but torch sees no GPU. {why}", remedy)
    return Finding("torch", "ok", "no GPU; atlas-lite runs in real time on two cores")


def onnxruntime(case: Case) -> list[Finding]:
    """ONNX Runtime and its providers."""
    del case
    import onnxruntime as library

    providers = ", ".join(library.get_available_providers())
    return [Finding("onnxruntime", "ok", f"onnxruntime {library.__version__}: {providers}")]


def clock(
    case: Case,
    *,
    wall_ns: Callable[[], int] = time.time_ns,
    monotonic_ns: Callable[[], int] = time.monotonic_ns,
    wait: Callable[[float], None] = time.sleep,
    source: Path = CLOCK_SOURCE,
) -> list[Finding]:
    """The monotonic clock on which all times lie, and the wall clock beside it."""
    del case
    name = source.read_text().strip() if source.exists() else "unknown"
    resolution_ns = time.get_clock_info("monotonic").resolution * 1e9
    findings = [Finding("clock", "ok", f"monotonic, {resolution_ns:g} ns, source {name}")]
    if name in _SLOW_SOURCES:
        remedy = "boot with clocksource=tsc, or on a virtual machine with its own (kvm-clock)"
        findings = [Finding("clock", "warn", f"the clock source is {name}: slow to read", remedy)]
    before_ns, wall_before_ns = monotonic_ns(), wall_ns()
    wait(LOOK_S)
    passed_ns, wall_passed_ns = monotonic_ns() - before_ns, wall_ns() - wall_before_ns
    moved_ms = (wall_passed_ns - passed_ns) / 1e6
    if abs(moved_ms) > STEP_MS:
        remedy = (
            "let one service alone set the clock (chrony or systemd-timesyncd); masks keep to the "
            "monotonic clock, but cameras that stamp by wall time will jump"
        )
        found = f"the wall clock moved by {moved_ms:+.1f} ms in {passed_ns / 1e9:.1f} s"
        findings.append(Finding("clock", "warn", found, remedy))
    return findings


def memory(case: Case, *, root: Path = Path("/")) -> list[Finding]:
    """Memory that is left, under the container's limit if there is one."""
    del case
    available_mb = _available_mb(root / "proc/meminfo")
    limit_mb = _limit_mb(root)
    if available_mb is None:
        return [Finding("memory", "ok", "unknown: this is not Linux")]
    usable_mb = min(available_mb, limit_mb) if limit_mb else available_mb
    found = f"{available_mb} MB available" + (f", limit {limit_mb} MB" if limit_mb else "")
    if usable_mb >= ENOUGH_MB:
        return [Finding("memory", "ok", found)]
    status = "warn" if usable_mb >= LEAST_MB else "fail"
    remedy = (
        f"a daemon takes about {LEAST_MB} MB with atlas-lite, with its learner twice that: free "
        "some, or raise the limit (--memory)"
    )
    return [Finding("memory", status, found, remedy)]


def _available_mb(meminfo: Path) -> int | None:
    if not meminfo.exists():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    return None


def _limit_mb(root: Path) -> int | None:
    """The control group's limit; None: there is none that binds."""
    places = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")
    for place in places:
        try:
            text = (root / place).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 50:
            return int(text) >> 20
    return None


def files(case: Case) -> list[Finding]:
    """How many files a daemon may open: each subscriber is one."""
    del case
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= ENOUGH_FILES:
        return [Finding("files", "ok", f"{hard} may be open")]
    remedy = f"at least {ENOUGH_FILES}: LimitNOFILE= of its service; each subscriber takes one"
    return [Finding("files", "warn", f"only {hard} may be open", remedy)]
