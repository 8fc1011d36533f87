"""A microphone that is kept open: watched, and opened again after it has vanished."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
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
KEEP = 400
"""Blocks that wait for their consumer, six seconds; then the oldest go."""
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

    All calls into the sound system happen in that thread, so one that hangs holds up nobody.

    Args:
        open_microphone: opens it; raises `MediaError` where it cannot.
        first_sound_s: how long it may take to give its first block.
        silence_s: after so long without a block it has vanished.
        retry_s: seconds until it is tried again, doubled up to half a minute with each failure.
    """

    def __init__(
        self,
        open_microphone: Callable[[], OpenMicrophone],
        *,
        first_sound_s: float = FIRST_SOUND_S,
        silence_s: float = SILENCE_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self._open = open_microphone
        self._first_sound_s, self._silence_s, self._retry_s = first_sound_s, silence_s, retry_s
        self._told: deque[Told] = deque(maxlen=KEEP)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="atlasd-microphone", daemon=True)
        self._thread.start()

    def take(self) -> list[Told]:
        """What has happened and was heard since the last call, in order."""
        told: list[Told] = []
        while self._told:
            told.append(self._told.popleft())
        return told

    def close(self) -> None:
        """Stop listening and free the device; closing twice is harmless."""
        self._stop.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        wait_s, was_told = self._retry_s, False
        while not self._stop.is_set():
            try:
                microphone = self._open()
            except MediaError as error:
                reason, has_sounded = str(error), False
            else:
                self._told.append(Opened(microphone.name, microphone.rate_hz))
                was_told = False
                reason, has_sounded = self._listen(microphone)
            if reason and not was_told:
                self._told.append(Lost(reason))
                was_told = True
            wait_s = self._retry_s if has_sounded else min(2 * wait_s, MAX_RETRY_S)
            self._stop.wait(wait_s)

    def _listen(self, microphone: OpenMicrophone) -> tuple[str, bool]:
        """Fetch sound until the microphone vanishes or is not wanted: why, and whether any came."""
        has_sounded = False
        try:
            while not self._stop.wait(READ_S):
                blocks = microphone.read()
                self._told.extend(blocks)
                has_sounded |= bool(blocks)
                silence_s = microphone.silence_s
                if silence_s > (self._silence_s if has_sounded else self._first_sound_s):
                    gone = silence_s == float("inf")
                    what = "its stream has ended" if gone else f"silent for {silence_s:.1f} s"
                    return f"{microphone.name} has vanished: {what}", has_sounded
        finally:
            microphone.close()
        return "", has_sounded
