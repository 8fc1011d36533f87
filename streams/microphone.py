"""Microphones through PortAudio: what is there, and one that is open.

``sounddevice`` is imported only here, and only where a microphone is looked for or opened.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .capturering import Block, CaptureRing
from .clips import NS_PER_S
from .sources import MediaError

KEEP_S = 4.0
"""Sound that waits for its reader; a reader that is slower loses the oldest."""
_portaudio = threading.Lock()
_open_streams: set[int] = set()


@dataclass(frozen=True, slots=True)
class MicrophoneInfo:
    """A device that gives sound.

    Attributes:
        index: PortAudio's number of it; it changes as devices come and go.
        name: what PortAudio calls it.
        channels: most channels that it gives.
        rate_hz: the sample rate that it prefers.
        is_default: whether the system takes it where none is named.
    """

    index: int
    name: str
    channels: int
    rate_hz: int
    is_default: bool


class OpenMicrophone(Protocol):
    """An open microphone, as those see it who only listen.

    Attributes:
        name: what it is called.
        rate_hz: samples a second of its blocks.
    """

    name: str
    rate_hz: int

    @property
    def silence_s(self) -> float:
        """Seconds since it last gave anything; infinite once it has stopped for good."""
        ...

    def read(self) -> list[Block]:
        """All sound since the last reading."""
        ...

    def close(self) -> None:
        """Stop it; closing twice is harmless."""
        ...


def list_microphones() -> list[MicrophoneInfo]:
    """All devices that give sound, as they are now.

    Raises:
        MediaError: PortAudio is not installed, or does not work.
    """
    sd = _sounddevice()
    with _portaudio:
        try:
            _rescan(sd)
            default, devices = sd.default.device[0], list(sd.query_devices())
        except sd.PortAudioError as error:
            raise MediaError(f"PortAudio lists no devices: {error}") from None
    return [
        MicrophoneInfo(
            index=index,
            name=device["name"],
            channels=device["max_input_channels"],
            rate_hz=round(device["default_samplerate"]),
            is_default=index == default,
        )
        for index, device in enumerate(devices)
        if device["max_input_channels"] > 0
    ]


def find_microphone(wanted: str, found: Sequence[MicrophoneInfo]) -> MicrophoneInfo:
    """The microphone that is meant.

    Args:
        wanted: ``default``, an index, or a part of a name in any case.
        found: what is there.

    Raises:
        MediaError: none or several are meant; the error lists what is there.
    """
    there = "; ".join(f"{info.index}: {info.name}" for info in found) or "none at all"
    if wanted == "default":
        chosen = [info for info in found if info.is_default] or list(found[:1])
    elif wanted.isdecimal():
        chosen = [info for info in found if info.index == int(wanted)]
    else:
        named = [info for info in found if info.name.lower() == wanted.lower()]
        chosen = named or [info for info in found if wanted.lower() in info.name.lower()]
    if len(chosen) != 1:
        what = f"{len(chosen)} microphones are" if chosen else "no microphone is"
        raise MediaError(
            f"{what} meant by {wanted!r}; there are: {there}. Give `default`, an index or a part "
            "of a name; where yours is missing, see that it is plugged in and that you may use it "
            "(group `audio`, or a running PulseAudio or PipeWire)"
        )
    return chosen[0]


class Microphone:
    """A microphone that is open.

    PortAudio's callback copies each block into a ring that was made beforehand, with when it was
    heard, and does nothing else; `read` takes it out. Channels are mixed down to their mean.

    Args:
        wanted: see `find_microphone`.
        rate_hz: the sample rate wanted; None, or one that it does not offer: its own.

    Attributes:
        name: PortAudio's name of it.
        rate_hz: samples a second that it gives.
        channels: channels that are mixed down.

    Raises:
        MediaError: there is no such microphone, or it cannot be opened.
    """

    def __init__(self, wanted: str = "default", rate_hz: int | None = None) -> None:
        sd = _sounddevice()
        info = find_microphone(wanted, list_microphones())
        self.name = info.name
        self._is_finished = threading.Event()
        with _portaudio:
            self.rate_hz, self.channels = _offered(sd, info, rate_hz)
            self._open(sd, info)

    def _open(self, sd: ModuleType, info: MicrophoneInfo) -> None:
        try:
            self._stream = sd.InputStream(
                samplerate=self.rate_hz,
                blocksize=0,
                device=info.index,
                channels=self.channels,
                dtype="float32",
                latency="high",
                callback=self._callback,
                finished_callback=self._is_finished.set,
            )
        except sd.PortAudioError as error:
            raise _refused(info, error) from None
        latency_s = float(self._stream.latency)
        self._ring = CaptureRing(self.rate_hz, self.channels, KEEP_S, latency_s)
        self._opened_ns = time.monotonic_ns()
        try:
            self._stream.start()
        except sd.PortAudioError as error:
            self._stream.close(ignore_errors=True)
            raise _refused(info, error) from None
        _open_streams.add(id(self))

    def _callback(
        self,
        indata: NDArray[np.float32],
        _n: int,
        times: Any,  # noqa: ANN401 (a C structure)
        status: Any,  # noqa: ANN401 (sounddevice.CallbackFlags)
    ) -> None:
        age_s = times.currentTime - times.inputBufferAdcTime
        sane = times.inputBufferAdcTime > 0
        self._ring.put(indata, time.monotonic_ns(), age_s if sane else -1.0, status.input_overflow)

    @property
    def silence_s(self) -> float:
        """Seconds since the last block, or since the opening; infinite once it has stopped."""
        if self._is_finished.is_set():
            return float("inf")
        last_ns = self._ring.last_ns or self._opened_ns
        return (time.monotonic_ns() - last_ns) / NS_PER_S

    def read(self) -> list[Block]:
        """All sound since the last reading, in runs without a hole; mono float32 in [-1, 1]."""
        return self._ring.read()

    def close(self) -> None:
        """Stop and free the device; closing twice is harmless."""
        with _portaudio:
            if id(self) in _open_streams:
                self._stream.close(ignore_errors=True)
                _open_streams.discard(id(self))


def _refused(info: MicrophoneInfo, error: Exception) -> MediaError:
    return MediaError(
        f"microphone {info.name} cannot be opened: {error}. Close what else uses it, or choose "
        "another (`atlasd devices` lists them)"
    )


def _offered(sd: ModuleType, info: MicrophoneInfo, rate_hz: int | None) -> tuple[int, int]:
    """Rate and channels that it offers, as near to what is wanted as there are."""
    refusal = ""
    for rate in dict.fromkeys((rate_hz or info.rate_hz, info.rate_hz, 48000, 44100)):
        for channels in dict.fromkeys((min(2, info.channels), 1, info.channels)):
            try:
                sd.check_input_settings(
                    device=info.index, channels=channels, dtype="float32", samplerate=rate
                )
            except (sd.PortAudioError, ValueError) as error:
                refusal = str(error)
            else:
                return rate, channels
    raise MediaError(
        f"microphone {info.name} offers neither {info.rate_hz}, 48000 nor 44100 Hz with 1, 2 or "
        f"{info.channels} channels: {refusal}"
    )


def _sounddevice() -> ModuleType:
    _quiet_alsa()
    try:
        import sounddevice
    except OSError as error:
        raise MediaError(
            f"sound cannot be recorded: {error}; install PortAudio (Debian, Ubuntu: "
            "`apt install libportaudio2`; Fedora, Arch: `portaudio`), or run without a microphone"
        ) from None
    except Exception as error:  # its own class of errors, which cannot be imported either
        raise MediaError(
            f"PortAudio does not start: {error}; see that the sound server (PulseAudio, PipeWire) "
            "runs, or run without a microphone"
        ) from error
    return sounddevice


def _rescan(sd: ModuleType) -> None:
    """Have PortAudio look again, as it does when it is initialised; there is no public way.

    Where that failed the last time there is nothing to terminate.
    """
    if not _open_streams:
        if sd._initialized:
            sd._terminate()
        sd._initialize()


def _quiet_alsa() -> None:
    """Keep ALSA from writing a page to stderr for each device that it tries in vain.

    Its errors go to C's ``abs``, which does nothing with what it is given: threads of sound servers
    call it too, and are to run no Python.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        ignore = ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p)
        ctypes.CDLL("libasound.so.2").snd_lib_error_set_handler(ignore)
    except (OSError, AttributeError):
        return
