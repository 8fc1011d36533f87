"""The clips of a data set as a network takes them: decoded, and with their sounds encoded.

Both are slow and the same in every epoch and every run, so they are kept: some in memory, all on
disk. The audio encoder is frozen, so a sound's features follow from the encoder, the clip and the
number of the variation, and their last bits from where it computes. A clip whose files have another
size or time of change is another clip.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..model.audio import AudioFeatures
from ..model.checkpoints import tensor_hash
from ..model.network import Network
from ..streams.avsbench import AVSBench, DatasetError, Entry, Split, Subset
from ..streams.avslayout import FRAMES_PER_CLIP
from .augmentation import varied_mel
from .diskcache import Arrays, DiskCache
from .filestamps import source_of, stamp_of

_IN_MEMORY = 3 << 30
_ALL = range(FRAMES_PER_CLIP)


class ClipStore:
    """Clips by id.

    Attributes:
        entries: all clips of the subset, by id, in the table's order.
    """

    def __init__(
        self, root: Path, subset: Subset, network: Network, cache: DiskCache, *, seed: int
    ) -> None:
        """Reads the table.

        Args:
            root: a data set in AVSBench's layout.
            subset: which half of it.
            network: whose input size and audio encoder count.
            cache: on disk.
            seed: of the variations of sounds.

        Raises:
            DatasetError: the subset is not there.
        """
        self.entries = read_entries(root, subset)
        self._source = source_of(root, next(iter(self.entries.values())).folder)
        self._stamps: dict[str, str] = {}
        self._network = network
        self._encoder = f"{tensor_hash(network.audio.state_dict())} {computes_on(network)}"
        self._cache = cache
        self._seed = seed
        self._memory: OrderedDict[str, Arrays] = OrderedDict()
        self._held = 0

    def pictures(self, clip: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
        """Pictures (5, H, W, 3), masks (5, H, W) in {0, 1} at the network's size; which exist (5,).

        In S4's training clips the first mask alone exists (AVSBench's protocol).
        """
        px = self._network.preset.image_px

        def decode() -> Arrays:
            masks, labeled = self.entries[clip].masks(px)
            return {"frames": self.entries[clip].frames(px), "masks": masks, "labeled": labeled}

        found = self._kept(f"pictures {self._named(clip)} {px}", decode)
        return (
            found["frames"].astype(np.uint8, copy=False),
            found["masks"].astype(np.uint8, copy=False),
            found["labeled"].astype(np.bool_, copy=False),
        )

    def truth(self, clip: str, size_px: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Masks (5, size_px, size_px), and which of them exist (5,)."""

        def decode() -> Arrays:
            masks, labeled = self.entries[clip].masks(size_px)
            return {"masks": np.packbits(masks.astype(np.bool_), axis=-1), "labeled": labeled}

        found = self._kept(f"truth {self._named(clip)} {size_px}", decode)
        packed = found["masks"].astype(np.uint8, copy=False)
        masks = np.unpackbits(packed, axis=-1, count=size_px).astype(np.bool_)
        return masks, found["labeled"].astype(np.bool_, copy=False)

    def windows(self, clip: str) -> NDArray[np.float32]:
        """The sound that ends at each picture, (5, n) at the network's rate."""
        preset = self._network.preset

        def decode() -> Arrays:
            return {"waves": self.entries[clip].windows(preset.window_s, preset.sample_rate_hz)}

        key = f"windows {self._named(clip)} {preset.window_s} {preset.sample_rate_hz}"
        return self._kept(key, decode)["waves"].astype(np.float32, copy=False)

    def features(self, clip: str, variant: int = 0) -> AudioFeatures:
        """The encoded sound at each picture: tokens (5, T', Da), embeddings (5, De).

        Args:
            clip: its id.
            variant: 0 is the sound as it is; others have another level, colour, noise.
        """

        def encode() -> Arrays:
            return self._encoded(clip, variant)

        seed = self._seed if variant else 0
        key = f"features {self._named(clip)} {self._encoder} {seed} {variant}"
        found = self._kept(key, encode)
        return AudioFeatures(
            torch.from_numpy(found["tokens"]), torch.from_numpy(found["embedding"])
        )

    def kept(
        self, clip: str, what: str, make: Callable[[], Mapping[str, NDArray[np.generic]]]
    ) -> Arrays:
        """Arrays of a clip, computed once.

        Args:
            clip: its id.
            what: names all that they depend on besides the clip.
            make: computes them, by name.
        """
        return self._kept(f"{what} {self._named(clip)}", make)

    def heard(self, clip: str, frames: Sequence[int]) -> AudioFeatures:
        """The sounds at some of the pictures, encoded together without the others.

        As the live learner encodes a clip, which has no other pictures: the last bits depend on how
        many sounds an encoder is given at once.

        Args:
            clip: its id.
            frames: of 0 to 4.

        Returns:
            Tokens (n, T', Da), embeddings (n, De).
        """
        if len(frames) == FRAMES_PER_CLIP:
            return self.features(clip)

        def encode() -> Arrays:
            return self._encoded(clip, 0, list(frames))

        key = f"features {self._named(clip)} {self._encoder} at {' '.join(map(str, frames))}"
        found = self._kept(key, encode)
        return AudioFeatures(
            torch.from_numpy(found["tokens"]), torch.from_numpy(found["embedding"])
        )

    def _named(self, clip: str) -> str:
        """What a clip's arrays in the cache depend on; its files are looked at once a run."""
        if clip not in self._stamps:
            entry = self.entries[clip]
            self._stamps[clip] = stamp_of(entry.folder.files(entry.row))
        return f"{self._source} {clip} {self._stamps[clip]}"

    def _encoded(self, clip: str, variant: int, frames: Sequence[int] = _ALL) -> Arrays:
        device = next(self._network.parameters()).device
        with torch.no_grad():
            waves = torch.from_numpy(self.windows(clip)[list(frames)])
            mel = self._network.log_mel(waves.to(device))
            if variant:
                rng = np.random.default_rng((self._seed, variant, *clip.encode()))
                mel = varied_mel(mel[:, 0].cpu(), rng)[:, None].to(device)
            features = self._network.encode_audio(mel)
        return {
            "tokens": features.tokens.float().cpu().numpy(),
            "embedding": features.embedding.float().cpu().numpy(),
        }

    def _kept(self, key: str, make: Callable[[], Mapping[str, NDArray[np.generic]]]) -> Arrays:
        found = self._memory.get(key)
        if found is None:
            found = self._cache.get(key, make)
            self._memory[key] = found
            self._held += _size(found)
            while self._held > _IN_MEMORY:
                _, dropped = self._memory.popitem(last=False)
                self._held -= _size(dropped)
        return found


def computes_on(network: Network) -> str:
    """The kind of device that a network is on, on which the last bits of what it says depend.

    With the number of threads that sums are divided among, on a CPU.
    """
    device = next(network.parameters()).device.type
    return f"cpu {torch.get_num_threads()}" if device == "cpu" else device


def read_entries(root: Path, subset: Subset) -> dict[str, Entry]:
    """The clips of a subset by id, in the table's order; of S4's training clips the first mask.

    Raises:
        DatasetError: the subset is not there, or holds no clip.
    """
    reader = AVSBench(root, subset, labels="first" if subset == "s4" else "all")
    splits: tuple[Split, ...] = ("train", "val", "test")
    found = {clip_id(entry): entry for split in splits for entry in reader.clips(split)}
    if not found:
        raise DatasetError(f"{reader.folder.table} lists no clip of train, val or test")
    return found


def clip_id(entry: Entry) -> str:
    """The clip's name for ever, as `Entry.labeled_clip` gives it."""
    return f"{entry.folder.subset}/{entry.row.split}/{entry.name}"


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
