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
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal, Protocol

from .diskcache import DiskCache
from .runfolder import RunError, RunFolder, write_json, write_text
from .runspec import RunSpec

_logger = logging.getLogger(__name__)

_GOING_S = 5.0
"""Seconds that a worker that closed its output has to end by itself, with its own status."""


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
        save_s: seconds between two saved states.
    """

    spec: RunSpec
    folder: Path
    methods: tuple[Path, ...]
    cache: Path
    cache_bytes: int
    twin: Path | None = None
    save_s: float = 60.0

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
                "save_s": self.save_s,
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
            told["save_s"],
        )

    def on(self, device: str) -> Job:
        """The same on a device; "": on the run's own."""
        return replace(self, spec=self.spec.model_copy(update={"device": device} if device else {}))


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

    def __init__(self, device: str = "") -> None:
        """Args: ``device`` to compute on; "": as runs say."""
        self._device = device

    def run(self, jobs: Sequence[Job], tell: Callable[[Event], None]) -> None:
        """See `Launcher`."""
        for number, job in enumerate(jobs):
            here = job.on(self._device)
            why = make(here, lambda what, share, n=number: tell(Event(n, "progress", what, share)))
            tell(Event(number, "failed" if why else "done", why, 1.0))


def make(job: Job, progress: Callable[[str, float], None]) -> str:
    """Make one run; return why it failed, "" if it did not.

    A folder that is the run's own keeps the reason in ``failed.json``; what may be a fault of the
    program leaves its traceback in ``failed.log``.
    """
    files = RunFolder(job.folder)
    try:
        with files.alone():
            files.claim(job.spec)
            for old in (files.failed, files.log):
                old.unlink(missing_ok=True)
            return _replayed(job, files, progress)
    except (RunError, OSError) as error:
        return f"{type(error).__name__}: {error}"


def _replayed(job: Job, files: RunFolder, progress: Callable[[str, float], None]) -> str:
    """Why the run failed, "" if it did not."""
    from .replay import replay

    try:
        replay(
            job.spec,
            job.folder,
            methods=job.methods,
            cache=DiskCache(job.cache, job.cache_bytes),
            twin=job.twin,
            save_s=job.save_s,
            progress=progress,
        )
    except Exception as error:  # noqa: BLE001  whatever it is, the other runs go on
        return _failed(files, error)
    return ""


def _failed(files: RunFolder, error: Exception) -> str:
    """Leave in the folder, as far as it can be written, why a run failed; return it."""
    why = f"{type(error).__name__}: {error}"
    with suppress(RunError):
        if not type(error).__module__.startswith("atlasd."):
            write_text(files.log, "".join(traceback.format_exception(error)))
            why += f" ({_remedy(error)}its traceback is in {files.log})"
    with suppress(RunError):
        write_json(files.failed, {"why": why})
    return why


def _remedy(error: Exception) -> str:
    """What to do about a failure that is not this program's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "memory is short: set a smaller batch, or fewer workers a device; "
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
                self._give(number, job.on(device), tell)
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
                event = _event(number, line)
                if event is None:
                    _logger.debug("worker of %s says %r, which is no event", job.folder, line)
                    continue
                tell(event)
                if event.kind != "progress":
                    ended = True
                    break
        except (BrokenPipeError, ValueError, OSError) as error:
            _logger.debug("worker of %s: %r", job.folder, error)
        if not ended and not self._stopped:
            code = _ended(process)
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


def _event(number: int, line: str) -> Event | None:
    """What a worker's line says of a job; None: nothing."""
    try:
        told = json.loads(line)
        if told["kind"] not in ("progress", "done", "failed"):
            return None
        return Event(number, told["kind"], str(told["what"]), float(told["share"]))
    except (ValueError, KeyError, TypeError):
        return None


def _ended(process: subprocess.Popen[str]) -> int:
    """The exit status of a worker that says no more; one that still lives would wait for ever."""
    try:
        return process.wait(timeout=_GOING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _close(process: subprocess.Popen[str]) -> None:
    with suppress(BrokenPipeError):  # what a dead worker never read
        _pipe(process.stdin).close()
    _pipe(process.stdout).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None  # noqa: S101  opened as a pipe
    return pipe
