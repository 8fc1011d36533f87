"""The process that reads one live source and nothing else, so that it can be killed.

Opening a network source may hang in a name server, in a handshake, in a decoder's search for what
it is shown; a library may crash on what a stranger sends. Here none of it hurts the daemon. Options
come on stdin as one length-prefixed msgpack map (addresses hold passwords, and anybody may read a
command line); events leave by stdout, see `eventpipe`. It ends when its parent closes stdin, which
the parent's death does too.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, cast

import msgpack

from .eventpipe import EventWriter, Failed, Finished, Opened
from .live import open_live

LEAVE_S: Final = 0.5
"""How long a source that is being read may take to say goodbye to its server or device."""


def main() -> int:
    """Read the source that stdin names until its end or the parent's."""
    events = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no event
    options = _options()
    _bound_memory(options["memory_mb"])
    leaving = threading.Event()
    threading.Thread(target=_leave_with_parent, args=(leaving,), daemon=True).start()
    writer = EventWriter(events)
    try:
        _read(options["source"], writer, leaving)
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001 - the parent tells it
        writer.write(Failed.by(error))
    return 0


def _read(options: Mapping[str, Any], writer: EventWriter, leaving: threading.Event) -> None:
    with open_live(options) as source:
        writer.write(
            Opened(
                source.kind,
                source.has_audio,
                source.source_size_px,
                source.fps,
                source.duration_ns,
            )
        )
        for event in source:
            writer.write(event)
            if leaving.is_set():
                return
    writer.write(Finished())


def _options() -> Mapping[str, Any]:
    (size,) = struct.unpack("<I", _exactly(4))
    return cast("Mapping[str, Any]", msgpack.unpackb(_exactly(size)))


def _bound_memory(megabytes: int) -> None:
    """What a stranger sends may claim any size: an allocation fails before the machine suffers."""
    if megabytes:
        most = megabytes * 1_000_000
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            raise SystemExit("the options did not come whole: this is started by captureprocess")
        data += piece
    return data


def _leave_with_parent(leaving: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    leaving.set()
    time.sleep(LEAVE_S)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
