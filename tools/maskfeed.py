"""What the network learns masks from: one picture, several sounds, each with its own mask.

The clips that show the same pictures (swap partners) make one `voices.Scene`. An item shows one
picture of a scene together with several sounds: of each object in turn, of other recordings of the
same category, of both at once, of one that gives way to the other, of nothing in view. So the sound
must decide, and the picture is encoded once for all of its sounds. The audio encoder is frozen: the
features of all sounds are computed once, in several variations, and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.audio import AudioFeatures
from ..model.checkpoints import read_tensors, tensor_hash, write_tensors
from ..model.losses import CLASS_WEIGHT, NO_LABEL, total_loss
from ..model.network import Network
from ..model.training import Batch, LossFunction, Outcome
from ..streams.avsbench import frame_times_s, windows_at
from ..streams.sounds import noise
from .augmentation import mixed, spliced, varied_mel
from .soundfeed import Recorded, cut_over
from .views import draw_view, restyled, varied_colours
from .voices import Scene, Voice, segment_each

RESTYLED_SHARE = 0.3
"""Share of the objects that get other colours than they have."""

_BLOCK = 64
_MIN_END_S, _CLIP_S = 0.3, 5.0


@dataclass(frozen=True, slots=True)
class Item:
    """One picture with its sounds.

    Attributes:
        scene: index of the scene.
        frame: which of its pictures.
        masks: for each sound the voices whose masks are joined; none is an empty mask.
        labels: for each sound the index of the only category that sounds, or `NO_LABEL`.
    """

    scene: int
    frame: int
    masks: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]


class Heard(NamedTuple):
    """The sound of an item, before it is encoded.

    Attributes:
        first: float32 (n,), a window.
        second: float32 (n,), another; the same where there is one only.
        gain_db: the second is added, this much louder; None: it is not added.
        lasted_s: the second took over this long before the end; None: it did not.
    """

    first: NDArray[np.float32]
    second: NDArray[np.float32]
    gain_db: float | None = None
    lasted_s: float | None = None


class Casting:
    """Draws items: which picture meets which sounds."""

    def __init__(
        self,
        scenes: Sequence[Scene],
        categories: Sequence[str],
        *,
        sounds: int,
        sample_rate_hz: int,
        window_s: float,
        strangers: Sequence[Recorded] = (),
    ) -> None:
        """Lays out who can be heard.

        Args:
            scenes: the clips.
            categories: names of the labels, in order.
            sounds: how many a picture meets.
            sample_rate_hz: rate of all sounds.
            window_s: length of a window.
            strangers: sounds of what is never in view.
        """
        self.scenes = scenes
        self.categories = list(categories)
        self.sounds = sounds
        self.sample_rate_hz = sample_rate_hz
        self.window_s = window_s
        self.strangers = strangers
        self._by_category: dict[str, list[Voice]] = {}
        for voice in (v for scene in scenes for v in scene.voices):
            if voice.steady and len(voice.categories) == 1:
                self._by_category.setdefault(voice.categories[0], []).append(voice)

    def draw(self, index: int, rng: np.random.Generator) -> tuple[Item, list[Heard]]:
        """Draw an item of a scene, and what is heard in it.

        The first sounds are the scene's voices in turn; the last is one of the harder cases.
        """
        scene = self.scenes[index]
        frames = np.flatnonzero(np.all([v.labeled for v in scene.voices], axis=0))
        frame = int(rng.choice(frames)) if len(frames) else 0
        offset = int(rng.integers(len(scene.voices)))
        heard: list[Heard] = []
        shown: list[tuple[int, ...]] = []
        for slot in range(self.sounds):
            own = (offset + slot) % len(scene.voices)
            hard = slot == self.sounds - 1 and self.sounds > 1
            sound, voices = (self._hard if hard else self._one)(scene, own, frame, rng)
            heard.append(sound)
            shown.append(voices)
        labels = tuple(self._label(scene, voices) for voices in shown)
        return Item(index, frame, tuple(shown), labels), heard

    def _one(
        self, scene: Scene, own: int, frame: int, rng: np.random.Generator
    ) -> tuple[Heard, tuple[int, ...]]:
        window = self._window(scene.voices[own], frame, rng)
        return Heard(window, window), () if scene.voices[own].silent else (own,)

    def _hard(
        self, scene: Scene, own: int, frame: int, rng: np.random.Generator
    ) -> tuple[Heard, tuple[int, ...]]:
        """Nothing in view sounds, both voices do, or one gives way to another or to nothing."""
        voice, draw = scene.voices[own], rng.random()
        if draw < 0.35 or voice.silent:
            quiet = self._nothing(scene, rng)
            return Heard(quiet, quiet), ()
        if not voice.steady or (len(scene.voices) == 1 and draw >= 0.5):
            return self._one(scene, own, frame, rng)
        window = self._window(voice, frame, rng)
        if draw >= 0.5:
            other = 1 - own
            second, after = self._window(scene.voices[other], frame, rng), (other,)
            if draw < 0.7:
                return Heard(window, second, gain_db=rng.uniform(-6, 6)), (own, other)
        else:
            second, after = self._nothing(scene, rng), ()
            if draw < 0.4:
                (lasted_s,), _ = cut_over(rng, 1, self.window_s)
                return Heard(second, window, lasted_s=lasted_s), (own,)
        (lasted_s,), (lasts,) = cut_over(rng, 1, self.window_s)
        return Heard(window, second, lasted_s=lasted_s), (own, *after) if lasts else after

    def _label(self, scene: Scene, shown: tuple[int, ...]) -> int:
        names = {name for v in shown for name in scene.voices[v].categories}
        if len(names) != 1:
            return NO_LABEL
        (name,) = names
        return self.categories.index(name) if name in self.categories else NO_LABEL

    def _window(self, voice: Voice, frame: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """A window that goes with the picture; of a steady voice also another clip's."""
        if not voice.steady:
            # Within the second that the mask speaks of, and its tail too.
            return self._cut(voice.sound, frame_times_s()[frame] + rng.uniform(-0.4, 0.06))
        others = self._by_category.get(voice.categories[0]) if voice.categories else None
        if others and rng.random() < 0.5:
            voice = others[int(rng.integers(len(others)))]
        return self._cut(voice.sound, rng.uniform(_MIN_END_S, _CLIP_S))

    def _cut(self, sound: NDArray[np.float32], end_s: float) -> NDArray[np.float32]:
        end = np.array([end_s])
        return windows_at(sound, end, self.window_s, self.sample_rate_hz)[0]

    def _nothing(self, scene: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
        """Silence, noise, a stranger, or the sound of a category that no voice of the scene has."""
        n = round(self.window_s * self.sample_rate_hz)
        in_view = {name for voice in scene.voices for name in voice.categories}
        names = sorted(self._by_category.keys() - in_view)
        draw = rng.random()
        if draw < 0.2 or (draw > 0.5 and not names):
            return np.zeros(n, np.float32)
        if draw < 0.5:
            level = np.float32(10 ** (rng.uniform(-60, -15) / 20))
            return noise(rng, n, tilt=rng.uniform(0, 1)) * level
        if draw < 0.7 and self.strangers:
            sound = self.strangers[int(rng.integers(len(self.strangers)))].samples
            length_s = len(sound) / self.sample_rate_hz
            return self._cut(sound, rng.uniform(_MIN_END_S, max(_MIN_END_S, length_s)))
        voices = self._by_category[names[int(rng.integers(len(names)))]]
        voice = voices[int(rng.integers(len(voices)))]
        return self._cut(voice.sound, rng.uniform(_MIN_END_S, _CLIP_S))


@dataclass(frozen=True, slots=True)
class SoundFeatures:
    """Audio features of all items: tokens (N, K, T', Da) and embeddings (N, K, De), float16."""

    tokens: Tensor
    embedding: Tensor


def cast_items(
    casting: Casting, network: Network, *, variants: int, seed: int, progress: Callable[[], None]
) -> tuple[list[Item], Callable[[], SoundFeatures]]:
    """Draw ``variants`` items of every scene.

    Item ``v * len(scenes) + s`` is variation v of scene s.

    Returns:
        The items, and what encodes their sounds: a slow function, for `cached_features`.
    """
    scenes = range(len(casting.scenes))
    keys = [(seed, 0, variant, index) for variant in range(variants) for index in scenes]
    items = [casting.draw(key[-1], np.random.default_rng(key))[0] for key in keys]

    def encode() -> SoundFeatures:
        tokens: list[Tensor] = []
        embeddings: list[Tensor] = []
        for start in range(0, len(keys), _BLOCK):
            heard: list[Heard] = []
            for key in keys[start : start + _BLOCK]:
                heard += casting.draw(key[-1], np.random.default_rng(key))[1]
                progress()
            rng = np.random.default_rng((seed, 1, start))
            features = _encode(network, heard, casting.window_s, rng)
            tokens.append(features.tokens.half())
            embeddings.append(features.embedding.half())
        shape = (len(keys), casting.sounds)
        return SoundFeatures(
            torch.cat(tokens).unflatten(0, shape), torch.cat(embeddings).unflatten(0, shape)
        )

    return items, encode


@torch.no_grad()
def _encode(
    network: Network, heard: Sequence[Heard], window_s: float, rng: np.random.Generator
) -> AudioFeatures:
    """Encode sounds; three quarters of them are varied first."""
    one = network.log_mel(torch.from_numpy(np.stack([h.first for h in heard])))[:, 0]
    two = network.log_mel(torch.from_numpy(np.stack([h.second for h in heard])))[:, 0]
    N, T, _ = one.shape
    column = (N, 1, 1)
    gain = torch.tensor([h.gain_db or 0.0 for h in heard])
    added = torch.tensor([h.gain_db is not None for h in heard]).view(column)
    at = torch.tensor([T * (1 - (h.lasted_s or 0.0) / window_s) for h in heard]).round()
    mel = torch.where(added, mixed(one, two, gain), one)
    mel = spliced(mel, two, at)
    varied = torch.from_numpy(rng.random(column) < 0.75)
    mel = torch.where(varied, varied_mel(mel, rng), mel)
    return network.encode_audio(mel[:, None])


def cached_features(
    path: Path, key: Mapping[str, str], compute: Callable[[], SoundFeatures]
) -> SoundFeatures:
    """Features from a file written for the same key, else computed and written there."""
    if path.exists():
        tensors, metadata = read_tensors(path)
        if metadata == dict(key):
            return SoundFeatures(tensors["tokens"], tensors["embedding"])
    features = compute()
    write_tensors(path, {"tokens": features.tokens, "embedding": features.embedding}, key)
    return features


def encoder_key(network: Network) -> str:
    """Names the audio encoder's weights."""
    return tensor_hash(network.audio.state_dict())


class MaskFeed:
    """Batches of items; the same for the same seed, epoch and step.

    An epoch is ``passes`` passes over the scenes, each over another of the items' variations.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        items: Sequence[Item],
        features: SoundFeatures,
        *,
        batch_size: int,
        passes: int,
        seed: int,
        blended_share: float = 0.0,
        thinned_share: float = 0.3,
    ) -> None:
        """Lays the feed out.

        Args:
            scenes: the clips.
            items: from `cast_items`.
            features: of their sounds.
            batch_size: pictures a step.
            passes: over the scenes, in an epoch.
            seed: of the order, the views, the colours and what is thinned out.
            blended_share: share of the sounds of one thing whose features are drawn towards those
                of another recording of its category, so that fewer are learned by heart.
            thinned_share: share of the audio features' channels that a sound lacks in a batch. The
                encoder knows its few training recordings too well: with 0, masks of sounds that
                nobody had heard became worse from the third hundred of steps on.
        """
        self.scenes = scenes
        self.items = items
        self.features = features
        self.batch_size = batch_size
        self.passes = passes
        self.seed = seed
        self.blended_share = blended_share
        self.thinned_share = thinned_share
        self._alike: dict[int, list[tuple[int, int]]] = {}
        for number, item in enumerate(items):
            for slot, (label, voices) in enumerate(zip(item.labels, item.masks, strict=True)):
                if label != NO_LABEL and len(voices) == 1:
                    self._alike.setdefault(label, []).append((number, slot))

    @property
    def steps(self) -> int:
        """Batches an epoch; the rest of a pass that fills no batch is left out."""
        return self.passes * (len(self.scenes) // self.batch_size)

    def __call__(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """The epoch's batches from ``first_step`` on."""
        n = len(self.scenes)
        a_pass = n // self.batch_size
        variants = len(self.items) // n
        for step in range(first_step, self.steps):
            number, place = epoch * self.passes + step // a_pass, step % a_pass
            order = np.random.default_rng((self.seed, number)).permutation(n)
            chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
            rng = np.random.default_rng((self.seed, epoch, step))
            yield self._batch((number % variants) * n + chosen, rng)

    def _batch(self, numbers: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        pictures: list[NDArray[np.uint8]] = []
        masks: list[NDArray[np.uint8]] = []
        valid: list[bool] = []
        labels: list[int] = []
        for number in numbers:
            item = self.items[int(number)]
            scene = self.scenes[item.scene]
            image = scene.frames[item.frame]
            for voice in scene.voices:
                if rng.random() < RESTYLED_SHARE:
                    image = restyled(image, voice.masks[item.frame], rng)
            view = draw_view(rng, image.shape[1], image.shape[0])
            pictures.append(varied_colours(view.of_picture(image), rng))
            shown = [view.of_mask(v.masks[item.frame]) for v in scene.voices]
            for voices in item.masks:
                joined = [shown[v] for v in voices] or [np.zeros_like(shown[0])]
                masks.append(np.maximum.reduce(joined))
                valid.append(all(bool(scene.voices[v].labeled[item.frame]) for v in voices))
            labels += item.labels
        heard, thin = self._heard(numbers, labels, rng), self.thinned_share
        return {
            "images": torch.from_numpy(np.stack(pictures)),
            "masks": torch.from_numpy(np.stack(masks)),
            "valid": torch.tensor(valid),
            "labels": torch.tensor(labels),
            "tokens": _thinned(heard.tokens, thin, rng),
            "embedding": _thinned(heard.embedding[:, None], thin, rng)[:, 0],
        }

    def _heard(
        self, numbers: NDArray[np.int64], labels: Sequence[int], rng: np.random.Generator
    ) -> AudioFeatures:
        """The features of all sounds of some items, some of them blended."""
        index = torch.from_numpy(numbers)
        tokens = self.features.tokens[index].flatten(0, 1).float()
        embedding = self.features.embedding[index].flatten(0, 1).float()
        for row in np.flatnonzero(rng.random(len(labels)) < self.blended_share).tolist():
            alike = self._alike.get(labels[row], [])
            if alike:
                other = alike[int(rng.integers(len(alike)))]
                share = float(rng.random())
                tokens[row].lerp_(self.features.tokens[other].float(), share)
                embedding[row].lerp_(self.features.embedding[other].float(), share)
        return AudioFeatures(tokens, embedding)


def _thinned(features: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Drop some channels of features (N, T, C), the same at all T, and scale the others up."""
    N, _, C = features.shape
    kept = torch.from_numpy(rng.random((N, 1, C)) >= share)
    return features * kept / (1 - share)


def mask_objective(
    network: Network, *, dice_weight: float = 1.0, class_weight: float = CLASS_WEIGHT
) -> LossFunction:
    """The network's loss on the batches of a `MaskFeed`; the weights are `total_loss`'s."""

    def loss(batch: Batch) -> Outcome:
        audio = AudioFeatures(batch["tokens"], batch["embedding"])
        out = segment_each(network, batch["images"], audio)
        terms = total_loss(
            out,
            batch["masks"],
            batch["valid"],
            batch["labels"],
            dice_weight=dice_weight,
            class_weight=class_weight,
        )
        return Outcome(terms, out)

    return loss
