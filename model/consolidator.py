"""When a method consolidates: at told boundaries, every N steps, or on plateaus of the loss.

The plateau rule follows Aljundi et al., "Task-Free Continual Learning" (arXiv 1812.03596), §3.1:
consolidate where the loss lies still after it rose and fell again. What is watched is the task's
loss before each update, never the penalised one: a penalty that grows would latch the detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Rule = Literal["oracle", "every", "plateau"]
_MOST_OF_LEAST = 8
"""As many steps make a consolidation due, in units of the least: 200 of 25."""


class Consolidator:
    """Watches the task's loss step by step and says when to consolidate.

    Attributes:
        rule: ``oracle`` leaves it to whoever knows the boundaries; ``every`` counts steps;
            ``plateau`` watches.
        lifted: how often a consolidation was due for so long, and vetoed because the loss was bad,
            that it came all the same: after a shift the loss may stay where it is. Someone should
            look. Counted since this object was made.
    """

    def __init__(
        self,
        rule: Rule = "oracle",
        *,
        every: int = 100,
        window: int = 20,
        least: int = 25,
        most: int = 200,
        spread: float = 0.15,
        fall: float = 0.005,
        veto: float = 1.5,
    ) -> None:
        """Sets the rule up.

        Args:
            rule: see the class.
            every: steps between consolidations of ``every``.
            window: steps over which the loss is looked at.
            least: steps that must lie between two consolidations.
            most: steps after which one is due, plateau or not.
            spread: on a plateau the window's standard deviation is below this share of its mean.
            fall: and its mean falls by no more than this share a step.
            veto: a window whose mean is over this many times the last plateau's is no state to
                keep, until twice `most` steps are over.

        Raises:
            ValueError: a number is out of its bounds.
        """
        if rule not in ("oracle", "every", "plateau"):
            raise ValueError(f"rule is {rule!r}; allowed are oracle, every and plateau")
        if every < 1 or window < 2 or not window <= least <= most:
            raise ValueError(
                f"every {every}, window {window}, least {least}, most {most}: every must be at "
                "least 1, window at least 2, and window <= least <= most"
            )
        self.rule: Rule = rule
        self._every, self._least, self._most = every, least, most
        self._spread, self._fall, self._veto = spread, fall, veto
        self._window = window
        self._losses: list[float] = []
        self._steps = 0
        self._armed = True
        self._last: tuple[float, float] | None = None
        self.lifted = 0

    def observe(self, loss: float) -> bool:
        """Take a step's task loss in; whether to consolidate now."""
        self._steps += 1
        if self.rule == "every":
            return self._restart(self._steps >= self._every)
        if self.rule == "oracle":
            return False
        self._losses = [*self._losses, loss][-self._window :]
        if len(self._losses) < self._window:
            return False
        seen = torch.tensor(self._losses, dtype=torch.float64)
        mean, sd = float(seen.mean()), float(seen.std())
        bad = False
        if self._last is not None:
            last_mean, last_sd = self._last
            self._armed |= mean > last_mean + max(last_sd, 0.05 * last_mean)
            bad = mean > self._veto * last_mean
        due = self._steps >= self._most or (
            self._armed and self._steps >= self._least and self._lies_still(seen)
        )
        if not due or (bad and self._steps < 2 * self._most):
            return False
        self.lifted += bad
        self._armed, self._last = False, (mean, sd)
        return self._restart(True)

    def _lies_still(self, losses: Tensor) -> bool:
        at = torch.arange(len(losses), dtype=torch.float64)
        at = at - at.mean()
        slope = (at * losses).sum() / at.square().sum()
        mean = losses.mean()
        return bool(losses.std() < self._spread * mean and slope >= -self._fall * mean)

    def _restart(self, now: bool) -> bool:
        if now:
            self._steps = 0
        return now

    def state_dict(self) -> dict[str, Tensor]:
        """All state, by name; ``oracle`` has none."""
        if self.rule == "oracle":
            return {}
        numbers = [float(self._steps), float(self._armed), *(self._last or ())]
        return {
            "losses": torch.tensor(self._losses, dtype=torch.float64),
            "numbers": torch.tensor(numbers, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state_dict` was called."""
        if self.rule == "oracle":
            return
        self._losses = state["losses"].tolist()
        steps, armed, *last = state["numbers"].tolist()
        self._steps, self._armed = int(steps), bool(armed)
        self._last = (last[0], last[1]) if last else None


def consolidator_of(rule: str) -> Consolidator:
    """A consolidator by its rule in words.

    Args:
        rule: ``oracle``, ``every:N``, ``plateau``, or ``plateau:WINDOW:LEAST`` with the window and
            the least steps between two; the most are eight times the least.

    Raises:
        ValueError: it is none of them, or its numbers are out of their bounds.
    """
    match rule.split(":"):
        case ["oracle"]:
            return Consolidator()
        case ["plateau"]:
            return Consolidator("plateau")
        case ["every", n] if n.isdecimal():
            return Consolidator("every", every=int(n))
        case ["plateau", window, least] if window.isdecimal() and least.isdecimal():
            most = _MOST_OF_LEAST * int(least)
            return Consolidator("plateau", window=int(window), least=int(least), most=most)
        case _:
            raise ValueError(
                f"rule is {rule!r}; allowed are oracle, every:N, plateau and plateau:WINDOW:LEAST"
            )
