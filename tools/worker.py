"""A worker of `launcher.Workers`: jobs come as lines on stdin, events go as lines to stdout.

Both are taken out of everybody else's reach first: a library's C part, or a child, that writes to
file 1 writes to the log, and one that reads file 0 finds it empty.
"""

from __future__ import annotations

import json
import os
import sys
import time

from .launcher import Job, make

_BETWEEN_S = 0.5
"""Seconds between two progress lines."""


def main() -> None:
    """Make runs until stdin ends."""
    jobs, out = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def tell(**event: object) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    for line in jobs:
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
