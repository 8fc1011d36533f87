"""Splits by numbers: how many classes or clips each task brings."""

from __future__ import annotations

from .manifest import Protocol, ProtocolError, Remainder

PAPER_SPLIT, PAPER_TASKS = "31-5", 50


def sizes_of(protocol: Protocol, available: int) -> tuple[int, ...]:
    """How many classes or training clips each task of ``til``, ``cil`` or ``task-free`` brings.

    The paper's 31-5 has 50 tasks. AVSBench's 296 training clips would fill 54, so where nobody says
    otherwise, 20 clips are left over.

    Raises:
        ProtocolError: see `task_sizes`.
    """
    remainder = protocol.remainder or "refuse"
    unit = "classes" if protocol.by_class else "training clips"
    sizes = task_sizes(
        protocol.split, available, tasks=protocol.tasks, remainder=remainder, unit=unit
    )
    paper = protocol.name == "task-free" and protocol.split == PAPER_SPLIT
    return sizes[:PAPER_TASKS] if paper and remainder == "drop" and not protocol.tasks else sizes


def task_sizes(
    split: str,
    available: int,
    *,
    tasks: int | None = None,
    remainder: Remainder = "refuse",
    unit: str = "classes",
) -> tuple[int, ...]:
    """How many classes or clips each task of a split ``B-I`` brings.

    Args:
        split: as `Protocol` lets it pass: B in the first task, I in each later one.
        available: how many there are.
        tasks: how many tasks, or None: as many as can be filled.
        remainder: ``keep`` adds a smaller last task; ``refuse`` raises where, with ``tasks`` None,
            something is left over.
        unit: what is counted, for messages.

    Raises:
        ProtocolError: too few are there, or some are left over; says which splits fit.
    """
    base, step = map(int, split.split("-"))
    advice = f"splits that fit: {', '.join(_fitting(base, step, available)) or 'none'}"
    if available < base:
        raise ProtocolError(
            [f"split {split} needs at least {base} {unit}; there are {available}; {advice}"]
        )
    full, rest = divmod(available - base, step)
    sizes = [base, *[step] * full, *([rest] if rest and remainder == "keep" else [])]
    if tasks is not None and tasks > len(sizes):
        raise ProtocolError(
            [f"tasks is {tasks}; split {split} makes at most {len(sizes)} of {available} {unit}"]
        )
    if tasks is None and rest and remainder == "refuse":
        raise ProtocolError(
            [
                f"split {split} leaves {rest} of {available} {unit} over; {advice}; or set "
                "remainder to 'drop' or 'keep'"
            ]
        )
    return tuple(sizes[:tasks])


def _fitting(base: int, step: int, available: int) -> list[str]:
    """A few splits without a remainder, those that are most like ``base-step`` first."""
    near = base if base < available else available // 2
    bases = sorted(range(available - step, 0, -step), key=lambda b: (abs(b - near), b))
    steps = [i for i in range(1, available - near + 1) if (available - near) % i == 0 and i != step]
    steps.sort(key=lambda i: (abs(i - step), i))
    return [*(f"{b}-{step}" for b in bases[:2]), *(f"{near}-{i}" for i in steps[:2] if near)]
