"""The loss that every method learns a task by."""

from __future__ import annotations

from .losses import total_loss
from .method import Batch
from .network import Network
from .teacher import answer
from .training import LossFunction, Outcome


def task_loss(network: Network, class_weight: float) -> LossFunction:
    """The task's loss (Eq. 7, 8, 10) of a batch; encodes sounds that are waves."""

    def loss(batch: Batch) -> Outcome:
        encode_sounds(network, batch)
        out = answer(network, batch)
        terms = total_loss(
            out, batch["masks"], batch["valid"], batch["labels"], class_weight=class_weight
        )
        return Outcome(terms, out)

    return loss


def encode_sounds(network: Network, batch: Batch) -> None:
    """Put the features of a batch's waves into it, if it has any: whoever reads it needs them."""
    if "waves" in batch:
        features = network.encode_audio(network.log_mel(batch["waves"]))
        batch["tokens"], batch["embedding"] = features.tokens, features.embedding
