"""The one training loop.

`Trainer` makes optimizer steps from batches and can be saved and restored between any two of them
so exactly that an interrupted run ends with the same bits as an uninterrupted one (same machine,
same thread count). `epochs.fit` drives it over epochs.

The loop owns no data, no loss and no method: a feed gives the batches of an epoch, a function turns
a batch into named scalars of which ``loss`` is differentiated, a continual-learning method
(`method.Method`) hooks into each step. A feed must give the same batches for the
same epoch and first step; that, with the saved state of torch's random numbers, is what makes
resuming exact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoints import read_metadata, read_tensors, write_tensors
from .consolidator import Consolidator
from .method import Batch, Method
from .network import Output
from .pretrained import WeightsError

__all__ = ["Batch", "Feed", "LossFunction", "Outcome", "Settings", "Trainer", "TrainingError"]


class Outcome(NamedTuple):
    """What a loss function makes of a batch.

    Attributes:
        terms: scalars by name; ``loss`` is the one that is differentiated.
        out: what the network said, for methods that add to the loss.
    """

    terms: Mapping[str, Tensor]
    out: Output | None = None


LossFunction = Callable[[Batch], Outcome]

Feed = Callable[[int, int], Iterable[Batch]]
"""``feed(epoch, first_step)``: the batches of an epoch (from 0) from a step (from 0) on."""

Part = Callable[[str], AbstractContextManager[object]]
"""``part(name)``: a context for what is computed in one go, as ``forward``, ``backward``."""

STATE_FORMAT = 1


def undivided(name: str) -> AbstractContextManager[object]:
    """A `Part` that does nothing."""
    del name
    return nullcontext()


class TrainingError(Exception):
    """Training cannot go on: what happened, where its evidence lies, what to do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to optimise. The defaults are the paper's.

    Attributes:
        epochs: passes over the feed.
        lr: AdamW's learning rate after warm-up.
        weight_decay: AdamW's.
        warmup_steps: steps over which the rate grows linearly from zero.
        final_lr: the rate at the last step as a share of ``lr``, reached along a cosine; 1.0
            keeps it constant.
        clip_norm: largest norm of the whole gradient; 0 leaves it as it is.
        average: decay per step of the moving average of the weights that is validated and kept
            instead of the weights themselves; 0 turns it off.
        bfloat16: run the forward pass under bfloat16 autocast.
    """

    epochs: int = 30
    lr: float = 1e-3
    weight_decay: float = 5e-4
    warmup_steps: int = 0
    final_lr: float = 1.0
    clip_norm: float = 0.0
    average: float = 0.0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        bounds = {
            "epochs": self.epochs >= 1,
            "lr": self.lr > 0,
            "weight_decay": self.weight_decay >= 0,
            "warmup_steps": self.warmup_steps >= 0,
            "final_lr": 0 <= self.final_lr <= 1,
            "clip_norm": self.clip_norm >= 0,
            "average": 0 <= self.average < 1,
        }
        for name, ok in bounds.items():
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)}, which is out of its bounds")

    def rate(self, step: int, total_steps: int) -> float:
        """The learning rate of a step, counted from 0 over the whole run."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        span = max(1, total_steps - self.warmup_steps)
        done = min(1.0, (step - self.warmup_steps) / span)
        share = self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
        return self.lr * share


class Trainer:
    """AdamW on the trainable parameters of a network, one batch at a time.

    Attributes:
        network: what is trained; only parameters with ``requires_grad`` move.
        settings: how.
        steps_per_epoch: batches of a whole epoch.
        epoch: the epoch of the next step, from 0.
        step_in_epoch: the next step in it, from 0.
        best: the best validation score so far, minus infinity before the first.
        consolidations: that the method was told of through this trainer.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: LossFunction,
        settings: Settings,
        steps_per_epoch: int,
        folder: Path | None = None,
        *,
        method: Method | None = None,
        consolidator: Consolidator | None = None,
        seed: int = 0,
        notes: Mapping[str, int | str] | None = None,
        part: Part = undivided,
    ) -> None:
        """Prepares the optimizer.

        Args:
            network: see the class.
            loss: of a batch.
            settings: how to optimise.
            steps_per_epoch: batches of a whole epoch.
            folder: receives the batch on which training broke, if it does.
            method: hooks into each step, after its `prepare` and `begin`; None: nothing does.
            consolidator: decides when the method consolidates within the run; None: never.
            seed: of the method's random numbers.
            notes: name the part of a larger run that this trainer makes; saved states carry them.
            part: entered for each part of a step that computes on the device.

        Raises:
            ValueError: no steps, or nothing to train.
        """
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch is {steps_per_epoch}; it must be at least 1")
        self.network = network
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.epoch = 0
        self.step_in_epoch = 0
        self.best = -math.inf
        self.consolidations = 0
        self.method = method or Method()
        self.consolidator = consolidator or Consolidator()
        self._loss = loss
        self._folder = folder
        self._seed = seed
        self._part = part
        self._notes = dict(notes or {})
        self._params = {n: p for n, p in network.named_parameters() if p.requires_grad}
        if not self._params:
            raise ValueError("the network has no trainable parameter")
        self._device = next(iter(self._params.values())).device
        self._optimizer = self._fresh_optimizer()
        self._average = (
            {n: p.detach().clone() for n, p in self._params.items()} if settings.average else {}
        )

    @property
    def step_count(self) -> int:
        """Steps made so far."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.settings.epochs

    @property
    def notes(self) -> Mapping[str, int | str]:
        """What names this part of a larger run."""
        return self._notes

    def step(self, batch: Batch) -> dict[str, float]:
        """Learn one batch.

        Returns:
            The loss's scalars, ``grad_norm`` (before clipping) and ``lr``.

        Raises:
            TrainingError: if the loss or a gradient is not finite. The weights are as they were
                before the batch, and the batch is saved where a folder was given.
        """
        rate = self.settings.rate(self.step_count, self.settings.epochs * self.steps_per_epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with self._part("forward"):
            batch = {name: value.to(self._device) for name, value in batch.items()}
            rng = np.random.default_rng((self._seed, self.step_count))
            batch = self.method.transform(batch, rng)
            loss, scalars, task_loss = self._forward(batch)
        with self._part("backward"):
            if loss.requires_grad:  # a method may freeze all of a network within a run
                loss.backward()
        with self._part("update"):
            self.method.edit_grads()
            limit = self.settings.clip_norm or math.inf
            norm = float(nn.utils.clip_grad_norm_(self._params.values(), limit))
            scalars |= {"grad_norm": norm, "lr": rate}
            if not math.isfinite(norm):
                raise self._broken("a gradient is not finite", batch, scalars)
            self._optimizer.step()
            self.method.after_step()
            self._update_average()
        self._advance()
        if self.consolidator.observe(task_loss):
            self.consolidate([batch])
        return scalars

    def _forward(self, batch: Batch) -> tuple[Tensor, dict[str, float], float]:
        """The loss to differentiate, all scalars, and the task's loss alone."""
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            self._device.type, dtype=torch.bfloat16, enabled=self.settings.bfloat16
        ):
            terms, out = self._loss(batch)
            extra = self.method.extra_loss(batch, out) if out is not None else {}
        loss = sum(extra.values(), terms["loss"])
        scalars = {name: float(value.detach()) for name, value in (dict(terms) | extra).items()}
        scalars["loss"] = float(loss.detach())
        if not math.isfinite(scalars["loss"]):
            raise self._broken("the loss is not finite", batch, scalars)
        return loss, scalars, float(terms["loss"].detach())

    def consolidate(self, data: Iterable[Batch] = ()) -> None:
        """Let the method keep what was learned now; see `Method.consolidate`."""
        with self._part("consolidate"):
            self.method.consolidate(data)
        self.consolidations += self.method.consolidates

    def _advance(self) -> None:
        self.step_in_epoch += 1
        if self.step_in_epoch == self.steps_per_epoch:
            self.epoch, self.step_in_epoch = self.epoch + 1, 0

    @torch.no_grad()
    def _update_average(self) -> None:
        if not self._average:
            return
        # Young averages forget fast, so that the random start does not linger.
        made = self.step_count + 1
        decay = min(self.settings.average, made / (made + 9))
        for name, average in self._average.items():
            average.lerp_(self._params[name], 1 - decay)

    @contextmanager
    def averaged(self) -> Generator[None]:
        """Inside, the network has the averaged weights (where averaging is on)."""
        raw = {name: p.detach().clone() for name, p in self._params.items()}
        self._set(self._average or raw)
        try:
            yield
        finally:
            self._set(raw)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._params.items():
            parameter.copy_(values[name])

    def _broken(self, why: str, batch: Batch, scalars: Mapping[str, float]) -> TrainingError:
        where = f"epoch {self.epoch}, step {self.step_in_epoch}"
        kept = "the batch was not saved, as no folder was given"
        if self._folder is not None:
            path = self._folder / "bad-batch.safetensors"
            write_tensors(path, batch, {"why": why, "where": where, "scalars": repr(dict(scalars))})
            kept = f"the batch is in {path}"
        return TrainingError(
            f"{why} at {where} ({dict(scalars)}); {kept}. "
            "Try a lower learning rate or clip_norm, or look for bad values in the batch."
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the rest of the run depends on: tensors by name, and a manifest."""
        tensors = {f"parameter.{n}": p.detach() for n, p in self._params.items()}
        tensors |= {f"buffer.{n}": b for n, b in self.network.named_buffers()}
        tensors |= {f"average.{n}": a for n, a in self._average.items()}
        for name, parameter in self._params.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors |= {f"method.{n}": value for n, value in self.method.state_dict().items()}
        tensors |= {f"consolidator.{n}": v for n, v in self.consolidator.state_dict().items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if self._device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self._device)
        best = self.best if math.isfinite(self.best) else None
        manifest = {
            "format": STATE_FORMAT,
            "settings": asdict(self.settings),
            "steps_per_epoch": self.steps_per_epoch,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "best": best,
            "consolidations": self.consolidations,
            "notes": self._notes,
        }
        return tensors, manifest

    def save(self, path: Path) -> None:
        """Write `state` in one file, atomically."""
        tensors, manifest = self.state()
        write_tensors(path, tensors, {"manifest": json.dumps(manifest)})

    def next_part(self, steps_per_epoch: int, notes: Mapping[str, int | str]) -> None:
        """Go on with another part of a larger run, from its first epoch; see `adopt`."""
        self.adopt()
        self.steps_per_epoch = steps_per_epoch
        self.epoch = self.step_in_epoch = 0
        self._notes = dict(notes)

    def adopt(self) -> None:
        """Go on with the parameters that the network has now.

        The optimizer's state stays, but for parameters that were replaced (a class head that grew);
        those begin anew. What a method froze meanwhile stays in the saved state.
        """
        old, held = self._optimizer.state, self._params
        named = self.network.named_parameters()
        self._params = {n: p for n, p in named if p.requires_grad or n in held}
        self._optimizer = self._fresh_optimizer()
        for parameter in self._params.values():
            if parameter in old:
                self._optimizer.state[parameter] = old[parameter]

    def _fresh_optimizer(self) -> torch.optim.AdamW:
        settings = self.settings
        return torch.optim.AdamW(
            self._params.values(), lr=settings.lr, weight_decay=settings.weight_decay
        )

    def steps_in(self, path: Path) -> int | None:
        """Steps made in a saved state with our notes, of this part of the run; None: it is none."""
        if not path.exists():
            return None
        manifest = json.loads(read_metadata(path).get("manifest", "{}"))
        if manifest.get("notes", {}) != self._notes:
            return None
        return manifest["epoch"] * manifest["steps_per_epoch"] + manifest["step_in_epoch"]

    def restore(self, path: Path) -> None:
        """Continue where `save` was called.

        Raises:
            TrainingError: if the file cannot be read, is not a saved state, or belongs to a run
                with other settings or another network. The trainer is then as it was.
        """
        try:
            tensors, metadata = read_tensors(path)
            manifest = json.loads(metadata["manifest"])
        except (WeightsError, KeyError, ValueError) as error:
            raise TrainingError(f"{path} is not the state of a training run: {error}") from error
        self.load_state(tensors, manifest, str(path))

    def load_state(
        self, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any], source: str
    ) -> None:
        """Continue where `state` was called; ``source`` names it in errors (see `restore`)."""
        self._check(source, manifest, tensors)
        self._set(_under("parameter.", tensors))
        buffers = dict(self.network.named_buffers())
        for name, value in _under("buffer.", tensors).items():
            buffers[name].copy_(value)
        for name, value in _under("average.", tensors).items():
            self._average[name].copy_(value)
        for key, value in _under("optimizer.", tensors).items():
            slot, name = key.split(".", 1)
            state = self._optimizer.state[self._params[name]]
            there = value.device if slot == "step" else self._device
            state[slot] = value.to(there, copy=True)  # what was given may be loaded once more
        self.method.load_state_dict(_under("method.", tensors))
        self.consolidator.load_state_dict(_under("consolidator.", tensors))
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors and self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng.cuda"], self._device)
        self.epoch, self.step_in_epoch = manifest["epoch"], manifest["step_in_epoch"]
        self.best = -math.inf if manifest["best"] is None else manifest["best"]
        self.consolidations = manifest.get("consolidations", 0)  # states of before say nothing

    def _check(self, path: str, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        found_format = manifest.get("format")
        if found_format != STATE_FORMAT:
            raise TrainingError(f"{path} has format {found_format}; this one reads {STATE_FORMAT}")
        own = asdict(self.settings) | {"steps_per_epoch": self.steps_per_epoch}
        saved = manifest["settings"] | {"steps_per_epoch": manifest["steps_per_epoch"]}
        other = [f"{k} {saved.get(k)} there, {v} here" for k, v in own.items() if saved.get(k) != v]
        if other:
            raise TrainingError(
                f"{path} belongs to a run with other settings ({'; '.join(other)}); "
                "resume with the same, or start another run in another folder"
            )
        shapes = {n: tuple(p.shape) for n, p in self._params.items()}
        found = {n: tuple(t.shape) for n, t in _under("parameter.", tensors).items()}
        if shapes != found:
            names = sorted(set(shapes.items()) ^ set(found.items()))[:3]
            raise TrainingError(f"{path} belongs to another network: it differs in {names}")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}
