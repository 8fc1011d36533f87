"""The capture process as it is, but for its camera: that is opened at an address.

A second argument is the seconds after which a sound system that hangs is given up.
"""

import functools
import sys

import cv2
from atlasd.streams import capturechild, devices
from atlasd.streams.camera import Camera
from atlasd.streams.listener import Listener


def main() -> int:
    address = sys.argv[1]

    def open_camera(_wanted, options, *, clock):
        return Camera(
            address,
            options,
            open_capture=lambda _: cv2.VideoCapture(address, cv2.CAP_FFMPEG),
            clock=clock,
        )

    devices.Camera = open_camera
    if len(sys.argv) > 2:
        stuck_s = float(sys.argv[2])
        devices.Listener = functools.partial(
            Listener, slow_s=stuck_s / 2, stuck_s=(stuck_s, 20 * stuck_s)
        )
    return capturechild.main()


if __name__ == "__main__":
    sys.exit(main())
