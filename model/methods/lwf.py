"""LwF: Learning without Forgetting.

Li, Hoiem (arXiv 1606.09282), Eq. 2 to 4: the network as it was before the segment teaches the one
that learns, on the segment's own data: `L = L_task + λ·KD`, temperature T = 2.

On masks (ours; the paper has classes): `KD = T²·mean over pixels of
BCE(m/T, sigmoid(m_old/T))`, and on the old rows of the class head the paper's cross-entropy of
softened scores, times T². A teacher that never saw what sounds now says "nothing", and so pushes
new objects into the background; ``where="background"`` distils only pixels that the truth leaves
empty. ``everywhere`` is the plain one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..atlas import Output
from ..distillation import class_distillation, mask_distillation
from ..method import Batch, Method, MethodError
from ..teacher import Teacher


@dataclass(eq=False)
class LwF(Method):
    """Distils all that trains.

    Attributes:
        lam: λ.
        temperature: T.
        where: ``everywhere`` or ``background``.
    """

    strength: ClassVar[str] = "lam"

    lam: float = 1.0
    temperature: float = 2.0
    where: str = "everywhere"

    def __post_init__(self) -> None:
        self._teacher: Teacher | None = None
        if self.lam < 0 or self.temperature <= 0:
            raise MethodError(
                f"lam {self.lam}, temperature {self.temperature}: at least 0, and above 0"
            )
        if self.where not in ("everywhere", "background"):
            raise MethodError(f"where is {self.where!r}; allowed: 'everywhere', 'background'")

    def extra_loss(self, batch: Batch, out: Output) -> dict[str, Tensor]:
        """`λ·KD`, from the second segment on."""
        if self._teacher is None or self.lam == 0:
            return {}
        old = self._teacher(batch)
        pixels = batch["masks"] == 0 if self.where == "background" else None
        terms = {"kd": self.lam * mask_distillation(out, old, self.temperature, pixels)}
        if old.class_logits is not None:
            terms["kd_class"] = self.lam * class_distillation(out, old, self.temperature)
        return terms

    def consolidate(self, data: Iterable[Batch]) -> None:
        """The network of now is the next segment's teacher."""
        if self.lam == 0:
            return
        self._teacher = Teacher(self.network)
        self.state = self._teacher.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Makes the teacher anew."""
        super().load_state_dict(state)
        if state:
            self._teacher = Teacher(self.network)
            self._teacher.load_state_dict(state)
            self.state = self._teacher.state_dict()
