"""The desk: one request in, one answer out, and nothing granted that is not on disk."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Literal

from .infos import MAX_REASONS, IntakeInfo
from .labelclips import read_clip, resolve
from .labels import (
    Answer,
    Delete,
    Granted,
    Label,
    LabelError,
    PutClip,
    PutFrame,
    Refused,
    digest,
    pack_stored,
    unpack_request,
)
from .orders import Order
from .replayring import ReplayRing
from .spoolclips import SpoolClips
from .spooled import Outcome
from .spoolfile import SpoolError
from .wire import MAX_ENTRIES

_DETAIL_CHARACTERS = 4000
_REASON_CHARACTERS = 500
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRules:
    """What labels must fit.

    Attributes:
        window_s: seconds of sound that belong to a picture.
        categories: classes of the network; empty without a class head.
        closed: refuse other classes.
        instance: names this run of the daemon, which references may do too.
    """

    window_s: float = 1.0
    categories: tuple[str, ...] = ()
    closed: bool = False
    instance: str = ""


@dataclass(slots=True)
class LabelDesk:
    """Answers requests; it belongs to one thread.

    Attributes:
        spool: where clips are kept.
        ring: what labels by reference refer to.
        rules: what they must fit.
        clock: nanoseconds since 1970.
        learner: takes orders; None: nothing is learned.
        granted: requests granted, by outcome.
        refused: requests refused, by code.
    """

    spool: SpoolClips
    ring: ReplayRing
    rules: LabelRules
    clock: Callable[[], int] = time.time_ns
    learner: Callable[[Order], Future[Answer]] | None = None
    granted: Counter[str] = field(default_factory=Counter[str])
    refused: Counter[str] = field(default_factory=Counter[str])

    def answer(self, data: bytes) -> Answer | Future[Answer]:
        """Do what a request asks, or say why not; no request makes this raise.

        Orders to the learner are answered later, by the learner.
        """
        number = None
        try:
            request = unpack_request(data)
            number = request.request
            if isinstance(request, Order):
                return self._pass_on(request)
            state = self._do(request)
        except LabelError as error:
            return self.refuse(error.request if number is None else number, error.code, str(error))
        except SpoolError as error:
            if error.code in {"storage", "disk_full", "corrupt"}:
                _log.error("a label could not be stored: %s", error)
            return self.refuse(number, error.code, str(error))
        except Exception as error:  # noqa: BLE001 - one request must not end the others
            _log.exception("a label could not be handled")
            return self.refuse(number, "internal", f"{type(error).__name__}: {error}")
        self.granted[state] += 1
        return Granted(request=number, id=request.id, state=state)

    def refuse(self, number: int | None, code: str, detail: str) -> Refused:
        """Refuse a request, and count it.

        Args:
            number: the request's, None where it could not be read.
            code: a short stable name, see docs/protocol.md.
            detail: what came, what is allowed, what to do.
        """
        self.refused[code] += 1
        return Refused(request=number, code=code, detail=detail[:_DETAIL_CHARACTERS])

    def info(self, endpoint: str) -> IntakeInfo:
        """What status says; a spool that cannot be read is told in `IntakeInfo.detail`."""
        frames, size = self.ring.size
        known = IntakeInfo(
            endpoint=endpoint,
            answered=dict(self.granted),
            refused=dict(self.refused),
            replay_frames=frames,
            replay_bytes=size,
        )
        try:
            status = self.spool.status()
        except SpoolError as error:
            return replace(known, detail=str(error)[:_DETAIL_CHARACTERS])
        latest = status.set_aside[-MAX_REASONS:]
        reasons = {str(each.number): each.reason[:_REASON_CHARACTERS] for each in latest}
        age_s = None if status.oldest_ns is None else (self.clock() - status.oldest_ns) / 1e9
        return replace(
            known,
            clips={str(state): n for state, n in status.clips.items()},
            held=status.held,
            bytes=status.bytes,
            oldest_s=None if age_s is None else max(0.0, age_s),
            batches=status.journaled_up_to,
            aside=len(status.set_aside),
            reasons=reasons or None,
        )

    def _pass_on(self, order: Order) -> Answer | Future[Answer]:
        """Give an order to the learner, or say that there is none."""
        if self.learner is None:
            return self.refuse(
                order.request,
                "no_learner",
                "this daemon learns nothing: start it with learner.enabled (atlasd run --learn)",
            )
        return self.learner(order)

    def _do(self, request: Label | Delete) -> Outcome | Literal["deleted"]:
        if isinstance(request, Delete):
            self.spool.delete(request.id)
            return "deleted"
        return self._put(request)

    def _put(self, label: Label) -> Outcome:
        """Store a label as a whole clip; one that is there is known before it is looked at.

        So a label by reference may be sent again when its picture is no longer kept. It means a
        picture of one run of the daemon: another run's picture at the same time is another clip.
        """
        if isinstance(label, PutFrame) and not label.instance:
            label = replace(label, instance=self.rules.instance)
        said = digest(label)
        known = self.spool.recognise(label.id, said, replace=label.replace)
        if known is not None:
            return known
        self._check_class(label)
        if isinstance(label, PutClip):
            read_clip(label, self.rules.window_s)
            clip = label
        else:
            self._check_instance(label.instance)
            clip = resolve(label, self.ring.find(label.stream, label.epoch, label.pts_ns))
        return self.spool.append(
            label.id,
            pack_stored(clip),
            digest=said,
            replace=label.replace,
            category=label.category,
        )

    def _check_class(self, label: Label) -> None:
        known, category = self.rules.categories, label.category
        if category is None or category in known:
            return
        if not category.strip():
            raise LabelError(
                "bad_class",
                f"the class is {category!r}; it must have a visible character: send nil for a clip "
                "whose class is not known",
            )
        if self.rules.closed:
            raise LabelError(
                "unknown_class",
                f"the class is {category!r}; the network knows {', '.join(known) or 'none'}, and "
                "intake.classes is closed",
            )
        classes = self.spool.classes | {*known}
        if category not in classes and len(classes) >= MAX_ENTRIES:
            raise LabelError(
                "too_many_classes",
                f"the class {category!r} would be number {len(classes) + 1}; a network has at most "
                f"{MAX_ENTRIES}: use one of those that were named, or send nil",
            )

    def _check_instance(self, instance: str) -> None:
        if instance != self.rules.instance:
            raise LabelError(
                "expired",
                f"the picture was shown by run {instance!r} of the daemon; this is "
                f"{self.rules.instance!r}, which does not keep it: put the whole clip",
            )
