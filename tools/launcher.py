"""Where runs are made: in this process, or spread over worker processes and GPUs of this machine.

A launcher takes jobs and tells what becomes of them; a cluster's would do the same. Workers are
told jobs as JSON lines and answer with JSON lines; one that dies takes its run with it, which is
resumable, and is replaced for the next.
"""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal, Protocol

from .diskcache import DiskCache
from .runfolder import RunFolder, write_json
from .runspec import RunSpec

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """A run to be made.

    Attributes:
        spec: what to do.
        folder: where.
        methods: folders with further methods.
        cache: folder of what runs share.
        cache_bytes: that it may take.
        twin: folder of the run that learns the same; see `replay.replay`.
    """

    spec: RunSpec
    folder: Path
    methods: tuple[Path, ...]
    cache: Path
    cache_bytes: int
    twin: Path | None = None

    def to_json(self) -> str:
        """One line."""
        return json.dumps(
            {
                "spec": self.spec.model_dump(mode="json"),
                "folder": str(self.folder),
                "methods": [str(folder) for folder in self.methods],
                "cache": str(self.cache),
                "cache_bytes": self.cache_bytes,
                "twin": self.twin and str(self.twin),
            }
        )

    @classmethod
    def from_json(cls, line: str) -> Job:
        """What `to_json` gave."""
        told = json.loads(line)
        return cls(
            RunSpec.model_validate(told["spec"]),
            Path(told["folder"]),
            tuple(map(Path, told["methods"])),
            Path(told["cache"]),
            told["cache_bytes"],
            told["twin"] and Path(told["twin"]),
        )


@dataclass(frozen=True, slots=True)
class Event:
    """What a launcher tells.

    Attributes:
        job: which job, by its place in the list.
        kind: ``progress``, ``done`` or ``failed``.
        what: what is being done, or why it failed.
        share: how much of the run is done, 0 to 1.
    """

    job: int
    kind: Literal["progress", "done", "failed"]
    what: str = ""
    share: float = 0.0


class Launcher(Protocol):
    """Makes runs."""

    def run(self, jobs: Sequence[Job], tell: Callable[[Event], None]) -> None:
        """Make all; a run that fails is told, and leaves the others going."""
        ...


class InProcess:
    """One run after the other, here."""

    def run(self, jobs: Sequence[Job], tell: Callable[[Event], None]) -> None:
        """See `Launcher`."""
        for number, job in enumerate(jobs):
            why = make(job, lambda what, share, n=number: tell(Event(n, "progress", what, share)))
            tell(Event(number, "failed" if why else "done", why, 1.0))


def make(job: Job, progress: Callable[[str, float], None]) -> str:
    """Make one run; return why it failed, "" if it did not.

    What is wrong with a run (and not with this program) is also written to its ``failed.json``.
    """
    from .replay import replay

    files = RunFolder(job.folder)
    files.failed.unlink(missing_ok=True)
    try:
        replay(
            job.spec,
            job.folder,
            methods=job.methods,
            cache=DiskCache(job.cache, job.cache_bytes),
            twin=job.twin,
            progress=progress,
        )
    except Exception as error:
        if not type(error).__module__.startswith("atlasd."):
            raise
        why = f"{type(error).__name__}: {error}"
        write_json(files.failed, {"why": why})
        return why
    return ""


class Workers:
    """Processes on this machine."""

    def __init__(self, count: int, logs: Path, devices: Sequence[str] = ()) -> None:
        """Plans the workers.

        Args:
            count: processes at once.
            logs: folder for what they write to stderr.
            devices: dealt to the workers in turn, instead of what runs say; none: as runs say.
        """
        self._count = count
        self._logs = logs
        self._devices = devices

    def run(self, jobs: Sequence[Job], tell: Callable[[Event], None]) -> None:
        """See `Launcher`; interrupted, it ends its workers."""
        waiting: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
        for number, job in enumerate(jobs):
            waiting.put((number, job))
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        crews = [_Crew(self._logs / f"worker{n}.log") for n in range(min(self._count, len(jobs)))]
        threads = [
            threading.Thread(
                target=crew.serve, args=(waiting, events.put, self._device(n)), daemon=True
            )
            for n, crew in enumerate(crews)
        ]
        for thread in threads:
            thread.start()
        try:
            left = len(threads)
            while left:
                event = events.get()
                if event is None:
                    left -= 1
                else:
                    tell(event)
        finally:
            for crew in crews:
                crew.stop()

    def _device(self, worker: int) -> str:
        return self._devices[worker % len(self._devices)] if self._devices else ""


class _Crew:
    """One worker at a time, with a log."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def serve(
        self,
        waiting: queue.SimpleQueue[tuple[int, Job]],
        tell: Callable[[Event | None], None],
        device: str,
    ) -> None:
        """Take jobs until none is left; tell None at the end."""
        try:
            while not self._stopped:
                try:
                    number, job = waiting.get_nowait()
                except queue.Empty:
                    return
                if device:
                    job = replace(job, spec=job.spec.model_copy(update={"device": device}))
                self._give(number, job, tell)
        finally:
            self.stop()
            tell(None)

    def _give(self, number: int, job: Job, tell: Callable[[Event | None], None]) -> None:
        process = self._running()
        ended = False
        try:
            _pipe(process.stdin).write(job.to_json() + "\n")
            _pipe(process.stdin).flush()
            for line in _pipe(process.stdout):
                told = json.loads(line)
                tell(Event(number, told["kind"], told.get("what", ""), told.get("share", 0.0)))
                if told["kind"] != "progress":
                    ended = True
                    break
        except (BrokenPipeError, ValueError, OSError) as error:
            _logger.debug("worker of %s: %r", job.folder, error)
        if not ended and not self._stopped:
            code = process.wait()
            _close(process)
            self._process = None
            what = f"its worker died, exit status {code}; see {self._log}; run it again to go on"
            tell(Event(number, "failed", what, 0.0))

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "atlasd.tools.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        return self._process

    def stop(self) -> None:
        """End the worker; its run can be resumed."""
        self._stopped = True
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait()
            _close(process)


def _close(process: subprocess.Popen[str]) -> None:
    with suppress(BrokenPipeError):  # what a dead worker never read
        _pipe(process.stdin).close()
    _pipe(process.stdout).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None  # noqa: S101  opened as a pipe
    return pipe
