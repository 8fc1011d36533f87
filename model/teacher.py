"""A frozen copy of the network as it was: what distilling methods learn from."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from .audio import AudioFeatures
from .fusion import ClassHead
from .lora import merge
from .method import Batch
from .network import Network, Output


class Teacher:
    """A network at an earlier moment, in `eval()`, without gradients."""

    def __init__(self, network: Network) -> None:
        """Copies what trains; frozen parts are shared with ``network``."""
        frozen = {id(p): p for p in network.parameters() if not p.requires_grad}
        frozen |= {id(b): b for b in network.buffers()}
        self._names = [n for n, p in network.named_parameters() if p.requires_grad]
        self.network = copy.deepcopy(network, dict(frozen)).requires_grad_(requires_grad=False)
        self.network.eval()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Output:
        """What it says of a batch."""
        return answer(self.network, batch)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that were copied."""
        state = self.network.state_dict()
        return {name: state[name] for name in self._names}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Become the teacher that `state_dict` was called on.

        Its class head may be smaller, and its decoder from before LoRA was put on it.
        """
        head = self.network.head
        rows = state.get("head.linear.weight")
        if head is not None and rows is not None and len(rows) != head.linear.out_features:
            new = ClassHead(head.linear.in_features, len(rows))
            self.network.head = new.to(head.linear.weight)
            self.network.head.requires_grad_(requires_grad=False)
        if any(name not in self.network.state_dict() for name in state):
            merge(self.network.get_submodule("decoder"))
        self._names = list(state)
        own = self.network.state_dict()
        for name, value in state.items():
            own[name].copy_(value)


def answer(network: Network, batch: Batch) -> Output:
    """Run a network on a batch; sounds that are waves are encoded first."""
    return network.forward_features(*inputs(network, batch))


def inputs(network: Network, batch: Batch) -> tuple[Tensor, AudioFeatures]:
    """A batch's pictures and sounds as `Network.forward_features` takes them."""
    device = next(network.parameters()).device
    if "tokens" in batch:
        audio = AudioFeatures(batch["tokens"].to(device), batch["embedding"].to(device))
    else:
        audio = network.encode_audio(network.log_mel(batch["waves"].to(device)))
    return network.normalise(batch["images"].to(device)), audio
