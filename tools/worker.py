"""A worker of `launcher.Workers`: jobs come as lines on stdin, events go as lines to stdout."""

from __future__ import annotations

import json
import sys
import time

from .launcher import Job, make

_BETWEEN_S = 0.5
"""Seconds between two progress lines."""


def main() -> None:
    """Make runs until stdin ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no event

    def tell(**event: object) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    for line in sys.stdin:
        last = 0.0

        def progress(what: str, share: float) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _BETWEEN_S:
                last = now
                tell(kind="progress", what=what, share=share)

        why = make(Job.from_json(line), progress)
        tell(kind="failed" if why else "done", what=why, share=1.0)


if __name__ == "__main__":
    main()
