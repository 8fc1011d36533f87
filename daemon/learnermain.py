"""The learner's process: ``python -m atlasd.daemon.learnermain ENDPOINT DAEMON``.

DAEMON is the daemon's process id; the configuration comes on stdin. The daemon starts it, and
starts it again when it dies; see `supervisor`.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

import torch

from ..model.method import MethodError
from ..model.presets import WeightsError
from ..model.training import Part, TrainingError, undivided
from .config import Config
from .cores import available_cores
from .devicetoken import StepToken
from .engine import EngineError, resolved_device
from .foundation import LeavingError
from .infos import LearnerInfo
from .labels import Answer, Refused
from .learning import Learning, LearningError
from .learnline import LearnerEnd
from .learnstore import LearnStore
from .notices import Happening, LearningRules
from .onlinelearner import LearnSettings
from .orders import Carried, Order
from .parts import base_importance, build_network, note_pause, token_path
from .places import learned_folder, make_private, spool_folder
from .spool import Spool
from .spoolfile import SpoolError, passes

STOPPED, REFUSED = 0, 2
"""Exit codes: asked to leave; cannot learn, and starting again would not help."""

_WAIT_MS: Final = 200
_BEAT_NS: Final = 200_000_000
_LOCK_S: Final = 60.0
_RETRIES_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0)
"""Between two trials to begin; the last one for ever."""
_STREAM_OPTIONS: Final[Mapping[str, Mapping[str, int | float | str]]] = {
    "atlas": {"growth": "mean", "anchors": 3, "base_c": 100.0}
}
"""Where nobody tells boundaries; see `model.methods.atlas`."""
_PR_SET_PDEATHSIG: Final = 1
_REFUSALS = (
    LearningError,
    MethodError,
    TrainingError,
    WeightsError,
    EngineError,
    SpoolError,
    OSError,
)
_log = logging.getLogger(__name__)


def main() -> int:
    """Learn until the daemon says stop or dies; see the module for what is returned."""
    _follow(int(sys.argv[2]))
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = Config.model_validate_json(sys.stdin.read())
    logging.basicConfig(level=logging.INFO, format="%(levelname)s learner: %(message)s")
    torch.set_num_threads(config.learner.threads or available_cores())
    with LearnerEnd(sys.argv[1]) as line:
        line.say(LearnerInfo(state="starting", method=config.learner.method, pid=os.getpid()))
        try:
            _persist(config, line)
        except _REFUSALS as error:
            _log.error("cannot learn: %s", error)
            line.say(LearnerInfo(state="failed", detail=str(error)[:4000], pid=os.getpid()))
            return REFUSED
    return STOPPED


def learn_settings(config: Config) -> LearnSettings:
    """What the configuration says of learning."""
    learner = config.learner
    return LearnSettings(
        method=learner.method,
        options={**_STREAM_OPTIONS.get(learner.method, {}), **learner.options},
        parts=learner.parts,
        lr=learner.lr,
        weight_decay=learner.weight_decay,
        clip_norm=learner.clip_norm,
        frames=learner.frames,
        passes=learner.passes,
        consolidate=learner.consolidate,
        seed=learner.seed,
    )


def _persist(config: Config, line: LearnerEnd) -> None:
    """Serve; where what stands in the way may go by itself, say so and try again, ever later."""
    stopping = _Flag()
    signal.signal(signal.SIGTERM, stopping.raise_)
    for wait_s in itertools.chain(_RETRIES_S, itertools.repeat(_RETRIES_S[-1])):
        try:
            with _locked(learned_folder(config)):
                _serve(config, line, stopping)
        except (SpoolError, OSError) as error:
            if not passes(error):
                raise
            _wait_out(config, line, stopping, f"learning cannot begin: {error}", wait_s)
        else:
            return
        if stopping.is_raised:
            return


def _wait_out(config: Config, line: LearnerEnd, stopping: _Flag, why: str, wait_s: float) -> None:
    """Wait, until told to leave or to go on."""
    detail = f"{why}; masks go on, tried again in {wait_s:g} s"
    _log.warning("%s", detail)
    info = LearnerInfo(state="halted", detail=detail[:4000], pid=os.getpid())
    line.tell(Happening("learner_halted", info.detail))
    until = time.monotonic() + wait_s
    while time.monotonic() < until and not stopping.is_raised:
        line.say(info)
        for said in line.orders(_WAIT_MS):
            if said == "stop":
                stopping.is_raised = True
            elif said.order in {"pause", "resume"}:
                answer = _noted(config, said)
                line.answer(answer)
                if isinstance(answer, Carried) and said.order == "resume":
                    return
            else:
                line.answer(Refused(request=said.request, code="cannot", detail=info.detail))


def _noted(config: Config, order: Order) -> Answer:
    """Note a pause or its end before learning begins."""
    try:
        note_pause(config, order.order == "pause")
    except SpoolError as error:
        return Refused(request=order.request, code="cannot", detail=str(error)[:4000])
    detail = "it is tried again" if order.order == "resume" else "nothing is learned until resume"
    return Carried(request=order.request, order=order.order, detail=detail)


def _serve(config: Config, line: LearnerEnd, stopping: _Flag) -> None:
    learner, intake = config.learner, config.intake
    rules = LearningRules(
        learner.clips,
        learner.wait_s,
        learner.canary_drop,
        learner.canary_wait_s,
        learner.checkpoint_s,
    )
    spool = Spool(
        spool_folder(config), max_clips=intake.max_clips, max_bytes=intake.max_mb * 1_000_000
    )
    with spool:
        store = LearnStore(learned_folder(config), learner.keep)
        pulse = _Pulse(line)

        def beat() -> None:
            pulse.beat()
            stopping.interrupt()

        base, device = build_network(config), resolved_device(config.learner.device)
        importance = base_importance(config, base)
        learning = Learning(
            base.to(device),
            learn_settings(config),
            rules,
            spool,
            store,
            line.tell,
            importance=importance,
            beat=beat,
            part=_part(config, device),
        )
        pulse.info = learning.info
        wait_ms = 0
        while not stopping.is_raised:
            for said in line.orders(wait_ms):
                if said == "stop":
                    stopping.is_raised = True
                else:
                    line.answer(carry_out(learning, said))
            if stopping.is_raised:
                break
            with stopping.interrupting():
                wait_ms = 0 if learning.turn() else _WAIT_MS
            pulse.rest()
        learning.close()


def carry_out(learning: Learning, order: Order) -> Answer:
    """Do what a person orders, or say why not."""
    try:
        detail = _carried_out(learning, order)
    except (LearningError, SpoolError, OSError) as error:
        return Refused(request=order.request, code="cannot", detail=str(error)[:4000])
    versions = tuple(learning.versions())
    return Carried(request=order.request, order=order.order, detail=detail, versions=versions)


def _carried_out(learning: Learning, order: Order) -> str:
    match order.order:
        case "pause":
            learning.pause()
            detail = "nothing is learned until resume; labels are taken"
        case "resume":
            learning.resume()
            detail = "learning goes on"
        case "checkpoint":
            kept = learning.checkpoint()
            detail = f"version {kept.learned.version} is kept in {kept.weights}"
            if candidate := learning.info().candidate:
                detail += f"; batch {candidate}, learned since, waits for clips that judge it"
        case "consolidate":
            detail = "what was learned is held on to from now on"
            if not learning.consolidate():
                detail = (
                    "noted: what was learned is held on to once its last batch is learned, and "
                    "judged by the next clips"
                )
        case "versions":
            detail = "what can be gone back to"
        case "rollback":
            detail = f"gone back to version {learning.rollback(order.version)}"
        case "release":
            learning.release(order.batch)
            detail = f"the clips of batch {order.batch} wait to be learned again"
        case "discard":
            learning.discard(order.batch)
            detail = f"the clips of batch {order.batch} are thrown away"
    return detail


def _part(config: Config, device: torch.device) -> Part:
    """Parts of a step: alone on the device, where the daemon computes on it too."""
    path = token_path(config)
    if path is None:
        return undivided

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return StepToken(path, synchronise).held


class _Flag:
    """Raised by SIGTERM or by the daemon."""

    def __init__(self) -> None:
        self.is_raised = False
        self._interrupts = False

    @contextmanager
    def interrupting(self) -> Generator[None]:
        """While inside, `interrupt` ends what is at work, once the flag is raised."""
        self._interrupts = True
        try:
            yield
        except LeavingError:
            _log.info("leaves in the middle of a batch, which is begun anew next time")
        finally:
            self._interrupts = False

    def interrupt(self) -> None:
        """Called between two steps of what is at work.

        Raises:
            LeavingError: it ends here.
        """
        if self.is_raised and self._interrupts:
            raise LeavingError

    def raise_(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler."""
        del number, frame
        self.is_raised = True


class _Pulse:
    """Says how learning goes, and that it goes on: within a turn, and between turns."""

    def __init__(self, line: LearnerEnd) -> None:
        self._line = line
        self._said_ns = 0
        self.info: Callable[[], LearnerInfo] = lambda: LearnerInfo(state="starting")

    def beat(self) -> None:
        """A clip was read, a batch scored, a step made, a checkpoint written."""
        if time.monotonic_ns() - self._said_ns >= _BEAT_NS:
            info = self.info()
            self._say(info if info.state == "starting" else replace(info, state="learning"))

    def rest(self) -> None:
        """A turn is over."""
        self._say(self.info())

    def _say(self, info: LearnerInfo) -> None:
        self._line.say(replace(info, pid=os.getpid()))
        self._said_ns = time.monotonic_ns()


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """The folder is this process's alone; a learner of before may still be on its way out.

    Raises:
        LearningError: another process does not let it go.
    """
    make_private(folder)
    deadline = time.monotonic() + _LOCK_S
    with (folder / "lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise LearningError(
                        f"{folder} belongs to another learner; stop that daemon, or give this one "
                        "another source.stream or learner.state"
                    ) from error
                time.sleep(0.1)
        yield


def _follow(daemon: int) -> None:
    """Die when the daemon does, however it dies (Linux); end where it is dead already.

    It may be: this program takes seconds to be loaded. An orphan that went on would hold the
    folder's lock, and the learner of the next daemon could not learn.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != daemon:
        sys.exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main())
