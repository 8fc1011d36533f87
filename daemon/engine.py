"""Engines: from samples to mask logits.

An engine owns a network on a device and the buffers in front of it. The pipeline knows only the
`Engine` protocol, so that another runtime can stand in. `TorchEngine` runs the serving form of the
network (LoRA merged, BatchNorm folded): fp32 on a CPU, autocast on CUDA with pinned staging.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ..model.network import Network, Preset
from ..streams.clips import Sample
from .cores import automatic_threads
from .devicetoken import FrameToken
from .ladder import Ladder, default_sides
from .staging import Staging
from .stopwatch import Stopwatch

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_BFLOAT16_SINCE = 8
"""The major compute capability (Ampere) from which on a GPU has it and does not imitate it."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_WARM_PASSES = 3
_TIMED_PASSES = 7


class EngineError(Exception):
    """A network, a device or a sample that an engine cannot work with."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Weights to be served instead of those that are.

    Attributes:
        version: their name.
        categories: names of the classes that they score.
        tensors: float32 by name, of the serving form; those that are not named stay.
    """

    version: str
    categories: tuple[str, ...]
    tensors: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What an engine says about one sample.

    Attributes:
        logits: float32 (H, W), at the network's resolution, whichever rung was used; above 0 the
            pixel sounds. The array belongs to the receiver: no later call writes into it.
        class_scores: float32 (C,), softmax over `categories`, or None without a head.
        rung: step of the ladder of input sizes that was used, 0 the largest.
        pre_ms: staging, colour normalisation, scaling and log-mel, for the whole batch.
        infer_ms: the forward pass of the whole batch.
        post_ms: scaling the batch's logits and bringing them to the host.
        preset: name of the network's preset.
        version: version of the weights.
        categories: the classes that these weights score.
        deadline_ms: what the three stages together may take, None: as long as they take.
    """

    logits: NDArray[np.float32]
    class_scores: NDArray[np.float32] | None
    rung: int
    pre_ms: float
    infer_ms: float
    post_ms: float
    preset: str
    version: str
    categories: tuple[str, ...] = ()
    deadline_ms: float | None = None


class Engine(Protocol):
    """What the pipeline needs of a network at work.

    Attributes:
        image_px: side of the square pictures that it takes.
        sample_rate_hz: rate of the sound that it takes.
        window_s: seconds of sound that belong to a picture.
        categories: names of the classes it scores; empty without a class head.
        preset: name of the network's preset.
        version: version of the weights.
        batch: most samples that one call takes.
        ladder: what chooses the input size of each frame; None: there is no deadline.
    """

    image_px: int
    sample_rate_hz: int
    window_s: float
    categories: tuple[str, ...]
    preset: str
    version: str
    batch: int
    ladder: Ladder | None

    @property
    def layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each tensor that `swap` may replace, by name."""
        ...

    def warm(self) -> None:
        """Make the first `infer` as fast as the later ones."""
        ...

    def infer(self, samples: Sequence[Sample]) -> list[Prediction]:
        """One prediction for each of 1 to ``batch`` samples, in order."""
        ...

    def swap(self, weights: Weights) -> float:
        """Serve other weights from the next `infer` on; milliseconds that it took."""
        ...

    def close(self) -> None:
        """Free the device's memory; closing twice is harmless."""
        ...


class TorchEngine:
    """The serving form of an ATLAS network in torch.

    Call it from one thread. Input buffers are made once, pinned on CUDA, and reused.

    With a deadline each frame takes the rung of a `Ladder`. Pictures come in at `image_px`
    whichever it is; a smaller rung scales them down on the device (bilinear, antialiased, after
    normalising) and its logits up again (bilinear), so that masks have one shape. At `image_px`
    nothing is scaled: the bits are those of an engine without a deadline.

    Args:
        network: a network; its serving form is made here, the network itself stays as it is.
        device: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of torch in this process; 0 chooses by the machine, see
            `automatic_threads`.
        precision: ``auto`` is fp32 on a CPU and bf16 (fp16 on older devices) autocast on CUDA.
            The log-mel front end is fp32 always.
        batch: most samples that one call of `infer` takes.
        deadline_ms: what staging, forward pass and bringing logits to the host may take together,
            for 95 % of the frames; None: as long as they take.
        ladder: sides in pixels of the input sizes to choose from, falling multiples of 32; none:
            `default_sides` of the network's own. Without a deadline it is not used.
        clock: seconds, as `time.perf_counter` gives them; on CUDA, events tell most of the time.
        allow_untrained: serve a network whose decoder was never trained: tests and benchmarks.
        token: held while this engine computes for a frame, where a learner shares its device;
            waiting for it counts as staging. None: nobody does.

    Raises:
        WeightsError: an untrained network.
        EngineError: a device that is not here, fp16 on a CPU, a ladder that does not fit the
            network, a deadline for more than one sample at once.
    """

    def __init__(
        self,
        network: Network,
        device: str = "auto",
        threads: int = 0,
        precision: Precision = "auto",
        *,
        batch: int = 1,
        deadline_ms: float | None = None,
        ladder: Sequence[int] = (),
        clock: Callable[[], float] = time.perf_counter,
        allow_untrained: bool = False,
        token: FrameToken | None = None,
    ) -> None:
        preset = network.preset
        if not allow_untrained:
            network.require_trained()
        self.device = resolved_device(device)
        self.threads = threads or automatic_threads()
        self.image_px = preset.image_px
        self.sample_rate_hz = preset.sample_rate_hz
        self.window_s = preset.window_s
        self.categories = tuple(preset.categories)
        self.preset = preset.name
        self.version = network.version
        self.batch = batch
        self.ladder = _ladder(preset, deadline_ms, ladder, batch)
        self._clock = clock
        self._token = token
        self._dtype = _autocast_dtype(precision, self.device)
        torch.set_num_threads(self.threads)
        self._network: Network | None = network.for_serving().to(self.device)
        self._fused_shape: torch.Size | None = None
        self._host = self._staging(torch.device("cpu"))
        self._input = self._host if self.device.type == "cpu" else self._staging(self.device)

    def _staging(self, device: torch.device) -> Staging:
        pinned = device.type == "cpu" and self.device.type == "cuda"
        n_samples = round(self.window_s * self.sample_rate_hz)
        sizes = (self.batch, self.image_px, n_samples, self.sample_rate_hz)
        return Staging.allocate(*sizes, device=device, pinned=pinned)

    @property
    def network(self) -> Network:
        """The serving form of the network, on the engine's device.

        Raises:
            EngineError: the engine is closed.
        """
        if self._network is None:
            raise EngineError("this engine is closed; make another one")
        return self._network

    def warm(self) -> None:
        """Run a few empty batches, so that kernels are chosen and memory is there.

        With a deadline at each rung, and some more to time them, which sets the ladder.
        """
        torch.set_num_threads(self.threads)
        self._host.clear()
        sides = (self.image_px,) if self.ladder is None else self.ladder.sides_px
        for _ in range(_WARM_PASSES):
            for side in sides:
                self._run(self.batch, side)
        if self.ladder is not None:
            rounds = [[self._run(1, px).ms for px in sides] for _ in range(_TIMED_PASSES)]
            self.ladder.calibrate(list(zip(*rounds, strict=True)))

    def infer(self, samples: Sequence[Sample]) -> list[Prediction]:
        """One prediction for each sample, in order.

        Raises:
            EngineError: too many samples, or one of another size or rate than the network takes.
        """
        begin = self._clock()
        if not 1 <= len(samples) <= self.batch:
            raise EngineError(
                f"got {len(samples)} samples; this engine takes 1 to {self.batch} at once"
            )
        try:
            for place, sample in enumerate(samples):
                self._host.put(place, sample)
        except ValueError as error:
            raise EngineError(str(error)) from error
        if self.ladder is None:
            with self._alone():
                answer = self._run(len(samples), self.image_px, begin)
            return self._predictions(answer, rung=0, deadline_ms=None)
        rung = self.ladder.rung
        with self._alone():
            answer = self._run(len(samples), self.ladder.side_px, begin)
        self.ladder.note(answer.ms)
        return self._predictions(answer, rung, self.ladder.deadline_ms)

    @property
    def layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each tensor of the serving form, by name; a class head is among them.

        Where the network has none, as `swap` makes it for one class.
        """
        network = self.network
        if network.head is None:
            shared = {id(tensor): tensor for tensor in network.state_dict(keep_vars=True).values()}
            network = copy.deepcopy(network, dict(shared))
            network.grow(("any",))
        state = network.state_dict()
        return {n: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in state.items()}

    @torch.no_grad()
    def swap(self, weights: Weights) -> float:
        """Copy other weights into place, between two calls of `infer`; nothing is allocated.

        So what was warm stays warm. Only a class head that grew is made anew, and warmed.

        Args:
            weights: of this network's serving form, as `layout` tells.

        Returns:
            Milliseconds in which no frame could be predicted.

        Raises:
            EngineError: the engine is closed.
        """
        begin = time.perf_counter()
        network = self.network
        with self._alone(for_frame=False):
            has_grown = weights.categories != self.categories
            if has_grown:
                self._reshape_head(weights.categories)
            state = network.state_dict()
            for name, array in weights.tensors.items():
                state[name].copy_(torch.from_numpy(array))
            if has_grown:
                self._warm_head()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        self.version, self.categories = weights.version, weights.categories
        return 1e3 * (time.perf_counter() - begin)

    def _reshape_head(self, categories: tuple[str, ...]) -> None:
        """A head with so many rows; what they are comes with the weights."""
        network = self.network
        network.head = None
        network.preset = network.preset.classify(())
        network.grow(categories)
        network.requires_grad_(requires_grad=False).to(self.device)

    def _warm_head(self) -> None:
        """Let the head of another size choose its kernels before a frame comes."""
        head, shape = self.network.head, self._fused_shape
        if head is not None and shape is not None:
            with self.autocast():
                head(torch.zeros(shape, device=self.device))

    def close(self) -> None:
        """Free the network and, on CUDA, its cached memory."""
        if self._network is None:
            return
        self._network = None
        self._input = self._host
        if self._token is not None:
            self._token.close()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _alone(self, *, for_frame: bool = True) -> AbstractContextManager[object]:
        """While inside, the learner does not compute on a device that it shares."""
        return nullcontext() if self._token is None else self._token.held(for_frame=for_frame)

    @torch.inference_mode()
    def _run(self, n: int, side_px: int, begin: float | None = None) -> _Answer:
        """Predict from the first ``n`` staged samples; ``begin`` is when staging began."""
        network = self.network
        watch = Stopwatch(self.device, self._clock, begin)
        images, sound = self._input.images[:n], self._input.sound[:n]
        if self._input is not self._host:
            images.copy_(self._host.images[:n], non_blocking=True)
            sound.copy_(self._host.sound[:n], non_blocking=True)
        frames = _scaled(network.normalise(images), side_px)
        log_mel = network.log_mel(sound)
        watch.lap()
        with self.autocast():
            out = network(frames, log_mel)
        self._fused_shape = None if out.fused is None else out.fused.shape
        watch.lap()
        logits = _scaled(out.mask_logits.float()[:, None], self.image_px)[:, 0].cpu().numpy()
        classes = out.class_logits
        scores = None if classes is None else classes.float().softmax(dim=-1).cpu().numpy()
        return _Answer(logits, scores, *watch.laps_ms())

    def _predictions(
        self, answer: _Answer, rung: int, deadline_ms: float | None
    ) -> list[Prediction]:
        """An answer by sample."""
        return [
            Prediction(
                logits=logits,
                class_scores=None if answer.scores is None else answer.scores[i],
                rung=rung,
                pre_ms=answer.pre_ms,
                infer_ms=answer.infer_ms,
                post_ms=answer.post_ms,
                preset=self.preset,
                version=self.version,
                categories=self.categories,
                deadline_ms=deadline_ms,
            )
            for i, logits in enumerate(answer.logits)
        ]

    def autocast(self) -> AbstractContextManager[object]:
        """The precision that the forward pass runs in, as a context."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """Of a batch: ``logits`` (B, H, W), ``scores`` (B, C) or None, and what each stage took."""

    logits: NDArray[np.float32]
    scores: NDArray[np.float32] | None
    pre_ms: float
    infer_ms: float
    post_ms: float

    @property
    def ms(self) -> float:
        """What a deadline is about."""
        return self.pre_ms + self.infer_ms + self.post_ms


def _scaled(pictures: torch.Tensor, side_px: int) -> torch.Tensor:
    """Float (B, C, H, W) as (B, C, side_px, side_px); of this size already, the tensor itself."""
    if pictures.shape[-2:] == (side_px, side_px):
        return pictures
    smaller = side_px < pictures.shape[-1]
    return F.interpolate(pictures, (side_px, side_px), mode="bilinear", antialias=smaller)


def _ladder(
    preset: Preset, deadline_ms: float | None, sides_px: Sequence[int], batch: int
) -> Ladder | None:
    if deadline_ms is None:
        return None
    if batch > 1:
        raise EngineError(
            f"model.deadline_ms is {deadline_ms:g} and model.batch {batch}: a deadline is kept"
            " frame by frame; set model.batch to 1"
        )
    sides = tuple(sides_px) or default_sides(preset.image_px)
    if sides[0] > preset.image_px:
        raise EngineError(
            f"model.ladder begins with {sides[0]} px, and {preset.name} takes pictures of"
            f" {preset.image_px} px: a rung cannot be larger"
        )
    try:
        return Ladder(sides, deadline_ms)
    except ValueError as error:
        raise EngineError(str(error)) from error


def resolved_device(name: str) -> torch.device:
    """A device by its name; ``auto`` is the first CUDA device, else the CPU.

    Raises:
        EngineError: it is not known, or not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"device {name!r} is not known; use auto, cpu or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise EngineError(f"device {name!r} is not supported; use auto, cpu or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(
            f"device {name!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices;"
            " use auto or cpu"
        )
    return device


def _autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The autocast type, or None for fp32 (on CUDA with torch's TF32 in convolutions)."""
    if precision == "auto":
        if device.type == "cpu":
            return None
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= _BFLOAT16_SINCE else torch.float16
    if precision == "fp16" and device.type == "cpu":
        raise EngineError("precision fp16 needs a CUDA device; use auto, fp32 or bf16 on a CPU")
    return _DTYPES.get(precision)
