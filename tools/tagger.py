"""A teacher for the audio encoder: YAMNet, an audio tagger of Google's (Apache-2.0), as tflite.

It is used while training only, through the PyPI package ``ai-edge-litert``, which is no
dependency: who distils installs it.
"""

from __future__ import annotations

import importlib
import threading
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

RATE_HZ = 16_000
WINDOW = 15_600
"""Samples of its one input, 0.975 s."""


class TeacherError(Exception):
    """The teacher cannot be had: what is missing, what to do."""


class Taught(NamedTuple):
    """What a teacher says of a window.

    Attributes:
        scores: float32 (K,) in [0, 1], of the classes that it knows.
        embedding: float32 (H,), what its scores are computed from.
    """

    scores: NDArray[np.float32]
    embedding: NDArray[np.float32]


class Yamnet:
    """Scores of AudioSet's classes for windows of sound, and the features behind them.

    It may be called from several threads at once; each gets an interpreter of its own.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._runtime: Any = importlib.import_module("ai_edge_litert.interpreter")
        except ImportError as error:
            raise TeacherError(
                "a teacher needs the package ai-edge-litert (pip install ai-edge-litert)"
            ) from error
        if not path.is_file():
            raise TeacherError(f"{path} is no file; name YAMNet's tflite model")
        self._path = path
        self._own = threading.local()
        model = self._interpreter()
        (entry,) = model.get_input_details()
        found = tuple(int(n) for n in entry["shape"])
        if found != (WINDOW,):
            raise TeacherError(f"{path} takes {found}; YAMNet takes ({WINDOW},) at 16 kHz")
        self._input = int(entry["index"])
        self._output = int(model.get_output_details()[0]["index"])
        pooled = [d for d in model.get_tensor_details() if "global_average_pool" in d["name"]]
        if not pooled:
            raise TeacherError(f"{path} has no global average pool; YAMNet has one")
        # Constants of the operation share its name; its result is the largest.
        self._embedding = int(max(pooled, key=lambda d: int(np.prod(d["shape"])))["index"])

    def __call__(self, samples: NDArray[np.float32], sample_rate_hz: int) -> Taught:
        """What it says of the end of a window, float32 (n,) mono."""
        wave = soxr.resample(samples, sample_rate_hz, RATE_HZ)[-WINDOW:]
        wave = np.pad(wave, (WINDOW - len(wave), 0)).astype(np.float32)
        model = self._interpreter()
        model.set_tensor(self._input, wave)
        model.invoke()
        scores, embedding = (
            np.array(model.get_tensor(index), np.float32).reshape(-1)
            for index in (self._output, self._embedding)
        )
        return Taught(scores, embedding)

    def _interpreter(self) -> Any:  # noqa: ANN401  the runtime has no types
        model: Any = getattr(self._own, "model", None)
        if model is None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # keeping inner tensors is meant
                    model = self._runtime.Interpreter(
                        str(self._path), num_threads=1, experimental_preserve_all_tensors=True
                    )
                model.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                raise TeacherError(f"{self._path} is not a tflite model: {error}") from error
            self._own.model = model
        return model
