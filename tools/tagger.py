"""A teacher for the audio encoder: YAMNet, an audio tagger of Google's (Apache-2.0), as tflite.

It is used while training only, through the PyPI package ``ai-edge-litert``, which is no
dependency: who distils installs it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

RATE_HZ = 16_000
WINDOW = 15_600
"""Samples of its one input, 0.975 s."""


class TeacherError(Exception):
    """The teacher cannot be had: what is missing, what to do."""


class Yamnet:
    """Scores of AudioSet's classes for windows of sound."""

    def __init__(self, path: Path) -> None:
        try:
            interpreter: Any = importlib.import_module("ai_edge_litert.interpreter")
        except ImportError as error:
            raise TeacherError(
                "a teacher needs the package ai-edge-litert (pip install ai-edge-litert)"
            ) from error
        if not path.is_file():
            raise TeacherError(f"{path} is no file; name YAMNet's tflite model")
        try:
            self._model = interpreter.Interpreter(str(path), num_threads=1)
            self._model.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise TeacherError(f"{path} is not a tflite model: {error}") from error
        (self._input,) = self._model.get_input_details()
        self._output = self._model.get_output_details()[0]
        found = tuple(int(n) for n in self._input["shape"])
        if found != (WINDOW,):
            raise TeacherError(f"{path} takes {found}; YAMNet takes ({WINDOW},) at 16 kHz")

    def scores(self, samples: NDArray[np.float32], sample_rate_hz: int) -> NDArray[np.float32]:
        """Scores of the end of a window: float32 (n,) mono to float32 (521,) in [0, 1]."""
        wave = soxr.resample(samples, sample_rate_hz, RATE_HZ)[-WINDOW:]
        wave = np.pad(wave, (WINDOW - len(wave), 0)).astype(np.float32)
        self._model.set_tensor(self._input["index"], wave)
        self._model.invoke()
        return np.asarray(self._model.get_tensor(self._output["index"]), np.float32).reshape(-1)
