"""A source that is read in a process of its own, which a deadline can kill."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self, cast

import msgpack

from .addresses import without_secrets
from .clips import NS_PER_S, VideoFrame
from .eventpipe import EventPipeError, EventReader, Failed, Finished, Opened
from .sources import AbandonedError, MediaError, Quiet, SourceEvent, SourceKind, Trouble

QUIET_S: Final = 0.03
"""Longest wait for an event before the reader hears that there is none."""
GRACE_S: Final = 0.5
"""What a child has beyond its deadline, to say in its own words that it kept none."""
LEAVE_S: Final = 1.0
"""How long a child may take to leave before it is killed."""
_TAIL_BYTES: Final = 4096
_Received = SourceEvent | Opened | Finished


class ProcessSource:
    """What `live.open_live` opens in a child process, as a source here.

    The constructor only starts the child; `wait` says when the source is open. Deadlines are the
    parent's own: a child that does not keep them is killed. The stall counts from picture to
    picture, for without pictures there are no masks; time that the caller takes does not count.

    Args:
        options: what `live.open_live` is told: plain values. They travel by a pipe, since command
            lines can be read by anybody.
        label: names the source in errors; it holds no secret.
        stream: name that every event carries.
        open_timeout_s: seconds from the start to an opened source.
        stall_timeout_s: seconds without a picture after which it counts as lost.
        memory_mb: most memory that the child may take (its data; Linux), 0: any.
        clock: host monotonic clock in nanoseconds.
        command: what starts the child.

    Attributes:
        stream: name of the stream.
        kind, has_audio, source_size_px, fps, duration_ns: see `sources.Source`; the child's, once
            `wait` has returned True.
        pid: of the child.

    Raises:
        MediaError: the system has no process, memory or file left for a child at present.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        label: str,
        stream: str = "main",
        open_timeout_s: float = 10.0,
        stall_timeout_s: float = 10.0,
        memory_mb: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
        command: tuple[str, ...] = (sys.executable, "-m", "atlasd.streams.capturechild"),
    ) -> None:
        self.stream: Final = stream
        self.kind: SourceKind = "live"
        self.has_audio = False
        self.source_size_px = (0, 0)
        self.fps: float | None = None
        self.duration_ns: int | None = None
        self._label = label
        self._address = str(options.get("address", ""))
        self._open_timeout_s, self._stall_timeout_s = open_timeout_s, stall_timeout_s
        self._clock = clock
        self._waited_ns = 0
        self._is_open = self._is_closed = False
        self._tail = b""
        self._child = _started(command, label)
        self.pid: Final = self._child.pid
        assert self._child.stdin and self._child.stdout and self._child.stderr  # noqa: S101
        self._stdin, self._stdout = self._child.stdin, self._child.stdout
        self._stderr = self._child.stderr
        self._reader = EventReader(self._stdout.fileno(), stream)
        os.set_blocking(self._stderr.fileno(), False)
        self._instruct({"memory_mb": memory_mb, "source": dict(options)})

    def _instruct(self, options: Mapping[str, Any]) -> None:
        data = cast("bytes", msgpack.packb(options))
        with suppress(BrokenPipeError):  # it died: reading says so
            self._stdin.write(struct.pack("<I", len(data)) + data)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the source to be open.

        Args:
            timeout_s: how long this call may take.

        Returns:
            Whether it is open.

        Raises:
            MediaError: it could not be opened, or not within the deadline; the child is gone.
            UnsupportedError: it never will.
        """
        while not self._is_open:
            began_ns = self._clock()
            message = self._receive(timeout_s)
            match message:
                case None:
                    if self._has_waited(self._open_timeout_s):
                        raise self._gone(f"gave no picture within {self._open_timeout_s:g} s")
                    return False
                case Opened():
                    self._is_open, self._waited_ns = True, 0
                    self.kind, self.has_audio = message.kind, message.has_audio
                    self.source_size_px, self.fps = message.source_size_px, message.fps
                    self.duration_ns = message.duration_ns
                case _:
                    raise self._gone(f"sent {type(message).__name__} before it was open")
            timeout_s = max(0.0, timeout_s - (self._clock() - began_ns) / NS_PER_S)
        return True

    def opened(self, is_wanted: Callable[[], bool] = lambda: True) -> Self:
        """Wait until the source is open, at most until its deadline.

        Args:
            is_wanted: asked now and then; where it says no, this closes the source.

        Raises:
            MediaError: as `wait`.
            AbandonedError: it was not wanted any more.
        """
        while not self.wait(QUIET_S):
            if not is_wanted():
                self.close()
                raise AbandonedError(f"{self._label} was not awaited any longer")
        return self

    def __iter__(self) -> Iterator[SourceEvent]:
        """Events until the end.

        Raises:
            MediaError: the source failed, stalled, or its process died.
        """
        self.opened()
        while True:
            message = self._receive(QUIET_S)
            if isinstance(message, Finished):
                return
            if isinstance(message, Opened):
                raise self._gone("was opened twice")
            if isinstance(message, VideoFrame):
                self._waited_ns = 0
            elif self._has_waited(self._stall_timeout_s):
                raise self._gone(f"gave no picture for {self._stall_timeout_s:g} s")
            yield Quiet() if message is None else message

    def close(self) -> None:
        """End the child: it is asked, and killed where it does not leave. Twice is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        self._stdout.close()
        with suppress(OSError):
            self._stdin.close()
        try:
            self._child.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._kill()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _receive(self, timeout_s: float) -> _Received | None:
        """The next message, or None; raises what ends the source."""
        if self._is_closed:
            raise MediaError(f"{self._label} was closed while it was read")
        began_ns = self._clock()
        try:
            message = self._reader.read(timeout_s)
        except EOFError:
            raise self._gone(self._death()) from None
        except EventPipeError as error:
            raise self._gone(f"was garbled by its process: {error}") from error
        self._waited_ns += self._clock() - began_ns
        if message is None:
            self._listen()
        if isinstance(message, Failed):
            self.close()
            raise message.error(without_secrets(message.detail, self._address))
        if isinstance(message, Trouble):
            return replace(message, detail=without_secrets(message.detail, self._address))
        return message

    def _has_waited(self, timeout_s: float) -> bool:
        return self._waited_ns > (timeout_s + GRACE_S) * NS_PER_S

    def _gone(self, why: str) -> MediaError:
        """Kill the child, since it may hang in anything."""
        if not self._is_closed:
            self._kill()
            self.close()
        return MediaError(f"{self._label} {why}")

    def _death(self) -> str:
        try:
            code = self._child.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._kill()
            code = self._child.poll()
        if code is None:
            return "was lost: the process that reads it says nothing more and cannot be killed"
        self._listen()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        said = without_secrets(self._tail.decode(errors="replace"), self._address)
        last = said.strip().splitlines()[-1:]
        return f"was lost: the process that reads it died ({how}{''.join(f': {x}' for x in last)})"

    def _kill(self) -> None:
        self._child.kill()
        with suppress(subprocess.TimeoutExpired):  # in a driver that does not let go
            self._child.wait(LEAVE_S)

    def _listen(self) -> None:
        """Keep the last of what the child's libraries complain about."""
        with suppress(BlockingIOError, OSError):
            while piece := os.read(self._stderr.fileno(), 65536):
                self._tail = (self._tail + piece)[-_TAIL_BYTES:]


def _started(command: tuple[str, ...], label: str) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=_environment(),
            process_group=0,  # a terminal's Ctrl-C is the daemon's to handle
        )
    except OSError as error:
        raise MediaError(
            f"{label} cannot be opened: no process can be started to read it: {error.strerror}"
        ) from error


def _environment() -> dict[str, str]:
    """Ours, without settings (one may be the address), and without threads for arithmetic."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("ATLASD_")}
    return ours | {"OPENBLAS_NUM_THREADS": "1"}
