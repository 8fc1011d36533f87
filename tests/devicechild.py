"""The capture process as it is, but for its camera: that is opened at an address."""

import sys

import cv2
from atlasd.streams import capturechild, devices
from atlasd.streams.camera import Camera


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
    return capturechild.main()


if __name__ == "__main__":
    sys.exit(main())
