"""A microphone that is kept open: watched, and opened again after it has vanished."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from .capturering import Block
from .microphone import OpenMicrophone
from .sources import MediaError

READ_S = 0.015
"""How often sound is fetched: well under the period of a camera."""
FIRST_SOUND_S = 5.0
"""How long a microphone may take to give its first block; PulseAudio's take a second or two."""
SILENCE_S = 1.0
"""A microphone that has given nothing for so long has vanished."""
RETRY_S, MAX_RETRY_S = 0.5, 30.0
"""How long it waits before it tries again: at first, and at most. Each look for devices costs 80 ms
and leaks 12 KB in ALSA, and sound servers crash under many."""
SLOW_S = 10.0
"""A call into the sound system that takes longer is told of: there is no sound meanwhile."""
STUCK_S, STUCK_UNHEARD_S = 30.0, 600.0
"""A call that takes longer is given up, and with it this process, for no other call can be made
beside it. Where nothing was ever heard, a process begun anew has hardly better prospects, and
costs a second of pictures: so it is done seldom."""
KEEP = 400
"""What waits for its consumer, six seconds of blocks; then the oldest blocks go."""
CLOSE_S = 2.0
"""How long closing waits for a sound server that does not answer."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The microphone is open: for the first time, or again."""

    name: str
    rate_hz: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The microphone has vanished or cannot be opened; it is tried again in the background."""

    reason: str


Told = Opened | Lost | Block


class Listener:
    """Keeps a microphone open in a thread of its own, whatever becomes of it.

    All calls into the sound system happen in that thread, so one that hangs holds up nobody. It is
    told as a loss; where it never comes back, `take` says so by an error.

    Args:
        open_microphone: opens it; whatever it raises is told, and it is tried again.
        first_sound_s: how long it may take to give its first block.
        silence_s: after so long without a block it has vanished.
        retry_s: seconds until it is tried again, doubled up to half a minute with each failure.
        slow_s: a call that takes so long is a loss.
        stuck_s: one that takes so long is given up: where sound was heard before, and where not.
    """

    def __init__(
        self,
        open_microphone: Callable[[], OpenMicrophone],
        *,
        first_sound_s: float = FIRST_SOUND_S,
        silence_s: float = SILENCE_S,
        retry_s: float = RETRY_S,
        slow_s: float = SLOW_S,
        stuck_s: tuple[float, float] = (STUCK_S, STUCK_UNHEARD_S),
    ) -> None:
        self._open = open_microphone
        self._first_sound_s, self._silence_s, self._retry_s = first_sound_s, silence_s, retry_s
        self._slow_s, self._stuck_s = slow_s, stuck_s
        self._told: deque[Told] = deque()
        self._lock = threading.RLock()
        self._call: tuple[str, float] | None = None
        self._is_lost = self._was_heard = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="atlasd-microphone", daemon=True)
        self._thread.start()

    def take(self) -> list[Told]:
        """What has happened and was heard since the last call, in order.

        Where it was not taken for long, the oldest sound is missing; openings and losses are only
        where these alone are more than `KEEP`.

        Raises:
            MediaError: the sound system has hung for so long that only another process can help.
        """
        self._watch()
        with self._lock:
            told = list(self._told)
            self._told.clear()
        return told

    def close(self) -> None:
        """Stop listening and free the device; closing twice is harmless."""
        self._stop.set()
        self._thread.join(CLOSE_S)

    def _watch(self) -> None:
        """Tell of a call that hangs, and give it up."""
        with self._lock:
            if self._call is None:
                return
            doing, began_s = self._call
            passed_s = time.monotonic() - began_s
            if passed_s > self._slow_s:
                self._lose(f"the sound system does not answer while the microphone is {doing}")
        if passed_s > self._stuck_s[not self._was_heard]:
            raise MediaError(
                f"the sound system has not answered for {passed_s:.0f} s, while the microphone was "
                f"{doing}; where another attempt does not help, restart the sound server "
                "(PulseAudio, PipeWire), or plug the microphone out and in"
            )

    def _lose(self, reason: str) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._tell(Lost(reason))

    def _tell(self, told: Told) -> None:
        """Keep it until it is taken. Blocks go first: without its opening none can be read."""
        with self._lock:
            self._told.append(told)
            if len(self._told) > KEEP:
                blocks = (i for i, one in enumerate(self._told) if isinstance(one, Block))
                del self._told[next(blocks, 0)]

    # The listener's thread.

    def _run(self) -> None:
        wait_s = self._retry_s
        while not self._stop.is_set():
            has_sounded = self._attend()
            wait_s = self._retry_s if has_sounded else min(2 * wait_s, MAX_RETRY_S)
            self._stop.wait(wait_s)

    def _attend(self) -> bool:
        """Open it and listen until it is lost; whether any sound came."""
        microphone, has_sounded = None, False
        try:
            with self._calling("opened"):
                microphone = self._open()
            self._tell(Opened(microphone.name, microphone.rate_hz))
            self._is_lost = False
            has_sounded, reason = self._listen(microphone)
        except Exception as error:  # noqa: BLE001 - PortAudio's own among them
            reason = str(error) if isinstance(error, MediaError) else _described(error)
        if reason:
            self._lose(reason)  # before the device is freed, which may never end
        if microphone is not None:
            self._free(microphone)
        return has_sounded

    def _listen(self, microphone: OpenMicrophone) -> tuple[bool, str]:
        """Fetch sound until it vanishes or is not wanted: whether any came, and why it is over."""
        has_sounded = False
        while not self._stop.wait(READ_S):
            blocks, silence_s = microphone.read(), microphone.silence_s
            for block in blocks:
                self._tell(block)
            has_sounded |= bool(blocks)
            self._was_heard |= has_sounded
            if silence_s > (self._silence_s if has_sounded else self._first_sound_s):
                gone = silence_s == float("inf")
                what = "its stream has ended" if gone else f"silent for {silence_s:.1f} s"
                return has_sounded, f"{microphone.name} has vanished: {what}"
        return has_sounded, ""

    def _free(self, microphone: OpenMicrophone) -> None:
        try:
            with self._calling("closed"):
                microphone.close()
        except Exception as error:  # noqa: BLE001 - the device is gone as it is
            self._lose(_described(error))

    @contextmanager
    def _calling(self, doing: str) -> Generator[None]:
        """Mark the time of a call into the sound system, which may never end."""
        self._call = (doing, time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                self._call = None


def _described(error: Exception) -> str:
    return f"the sound system fails: {type(error).__name__}: {error}"
