"""The parts of a daemon, made as the configuration says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from ..model.baseimportance import FILE, BaseImportance
from ..model.baseimportance import read as read_importance
from ..model.checkpoints import tensors_of
from ..model.network import Network
from ..model.presets import WeightsError, build, load, shipped
from ..model.pretrained import tensor_hash
from ..streams.addresses import is_address
from ..streams.files import open_source
from ..streams.repeated import RepeatedSource
from ..streams.sources import MediaError, Source
from .config import Config, SourceConfig
from .cores import automatic_threads
from .devicestream import open_device_stream
from .devicetoken import FrameToken
from .engine import Engine, TorchEngine, resolved_device
from .intake import Intake
from .labeldesk import LabelDesk, LabelRules
from .labels import Answer
from .learnstore import LearnStore
from .networkstream import open_network_stream
from .orders import Order
from .pipeline import PipelineOptions
from .places import learned_folder, make_private, spool_folder
from .publisher import Publisher
from .replayring import ReplayRing
from .spool import Spool
from .spoolclips import SpoolClips
from .spoolfile import FILE_NAME as SPOOL_FILE
from .spoolfile import SpoolError

_log = logging.getLogger(__name__)


def build_network(config: Config) -> Network:
    """The configured network, before anything was learned in service.

    Raises:
        WeightsError: weights that are missing, broken, of another preset or never trained.
    """
    model = config.model
    network = build(
        model.preset,
        weights=model.weights,
        backbone_weights=model.backbone_weights,
        audio_weights=model.audio_weights,
    )
    network.require_trained()
    return network


def base_importance(config: Config, base: Network) -> BaseImportance | None:
    """The importances beside the configured weights; None: there are none, or none are wanted.

    Args:
        config: all that the daemon is told.
        base: `build_network`'s, before anything is learned.

    Raises:
        WeightsError: they belong to other weights.
    """
    if config.learner.base == "zero":
        return None
    folder = config.model.weights or shipped(config.model.preset)
    if not (folder / FILE).exists():
        _log.warning(
            "%s has no importances (%s): until the first consolidation nothing of what it knows "
            "is held; measure them with `atlasd importance`, or set learner.base to zero",
            folder,
            FILE,
        )
        return None
    return read_importance(folder, base)


def build_engine(config: Config) -> TorchEngine:
    """The configured network on the configured device, with what it has learned in service.

    Raises:
        WeightsError: weights that are missing, broken, of another preset or never trained.
        EngineError: a device or a precision that is not here, a ladder that does not fit.
    """
    model = config.model
    network = build_network(config)
    if config.learner.enabled:
        network = _as_learned(config, network)
    return TorchEngine(
        network,
        model.device,
        model.threads or automatic_threads(is_paced=config.source.pace == "real"),
        model.precision,
        batch=model.batch,
        deadline_ms=model.deadline_ms,
        ladder=model.ladder,
        token=_frame_token(config),
    )


def token_path(config: Config) -> Path | None:
    """The file of the device token; None where daemon and learner need none.

    Raises:
        EngineError: a device that is not here.
        OSError: its folder cannot be made.
    """
    learner = config.learner
    if not learner.enabled:
        return None
    match learner.token:
        case "always":
            is_wanted = True
        case "never":
            is_wanted = False
        case "auto":
            is_wanted = _is_one_gpu(config.model.device, learner.device)
    if not is_wanted:
        return None
    folder = learned_folder(config)
    make_private(folder)
    return folder / "device"


def _is_one_gpu(*names: str) -> bool:
    devices = {resolved_device(name) for name in names}
    return all(d.type == "cuda" for d in devices) and len({d.index or 0 for d in devices}) == 1


def open_stream(
    config: Config,
    engine: Engine,
    *,
    keep_full: bool = False,
    repeat: bool = False,
    clock: Callable[[], int] = time.monotonic_ns,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Source:
    """The configured source, at the size and rate that the engine takes.

    Args:
        config: all that the daemon is told.
        engine: whose size and rate count.
        keep_full: also keep the unscaled pictures.
        repeat: begin again at the end.
        clock: monotonic nanoseconds.
        is_wanted: asked while addresses and devices are awaited; no ends the opening.

    Raises:
        MediaError: it cannot be opened.
        AbandonedError: it was not wanted any more.
    """

    def opened() -> Source:
        return open_media(
            config.source.model_copy(update={"repeat": repeat}),
            image_size_px=(engine.image_px, engine.image_px),
            sample_rate_hz=engine.sample_rate_hz,
            keep_full=keep_full,
            clock=clock,
            is_wanted=is_wanted,
        )

    return RepeatedSource(opened) if repeat else opened()


def open_media(
    source: SourceConfig,
    *,
    image_size_px: tuple[int, int],
    sample_rate_hz: int,
    keep_full: bool = False,
    clock: Callable[[], int] = time.monotonic_ns,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Source:
    """The configured devices, address, file or folder, once.

    Args:
        source: what is watched.
        image_size_px: (width, height) that pictures are scaled to.
        sample_rate_hz: rate of the sound that comes out.
        keep_full: also keep the unscaled pictures.
        clock: monotonic nanoseconds.
        is_wanted: asked while addresses and devices are awaited; no ends the opening.

    Raises:
        MediaError: it cannot be opened.
        AbandonedError: it was not wanted any more.
    """
    if source.camera is None and not is_address(source.uri):
        if source.kind == "live":
            raise MediaError(
                f"{source.uri} is no address, and source.kind is live: leave it at auto, and to "
                "drop what is late of a file set source.policy to live"
            )
        return open_source(
            source.uri,
            stream=source.stream,
            image_size_px=image_size_px,
            keep_full=keep_full,
            sample_rate_hz=sample_rate_hz,
            fps=source.folder_fps,
            clock=clock,
        )
    opener = open_network_stream if source.camera is None else open_device_stream
    return opener(
        source,
        image_size_px=image_size_px,
        sample_rate_hz=sample_rate_hz,
        keep_full=keep_full,
        clock=clock,
        is_wanted=is_wanted,
    )


def pipeline_options(config: Config) -> PipelineOptions:
    """What the configuration says about the pipeline."""
    return PipelineOptions(
        policy=config.source.policy,
        pace=config.source.pace,
        capacity=config.queue.capacity,
        max_age_ms=config.queue.max_age_ms,
        max_wait_ms=config.queue.max_wait_ms,
        anchor=config.sync.anchor,
        lag_ms=config.sync.lag_ms,
        audio_wait_ms=config.sync.audio_wait_ms,
        audio_slack_ms=config.sync.audio_slack_ms,
    )


def open_bus(config: Config, clock: Callable[[], int] = time.monotonic_ns) -> Publisher:
    """The configured bus, at work, before its source is known.

    Its policy is that of the source, as far as can be told: only of a web server it is open whether
    it is one of a file or a camera, and a camera is expected.

    Raises:
        EndpointError: the address is malformed, public, in use or not permitted.
    """
    publish, source = config.publish, config.source
    is_file = source.camera is None and not is_address(source.uri)
    waits = is_file or source.repeat or source.kind == "file"
    return Publisher(
        publish.endpoint,
        ("wait" if waits else "live") if source.policy == "auto" else source.policy,
        insecure=publish.insecure,
        stall_timeout_s=publish.send_timeout_s,
        hello_s=publish.hello_interval_s,
        status_s=publish.status_interval_s,
        clock=clock,
    )


def open_intake(
    config: Config,
    engine: Engine,
    ring: ReplayRing,
    instance: str,
    learner: Callable[[Order], Future[Answer]] | None = None,
) -> Intake:
    """The configured intake of labels, at work.

    Args:
        config: all that the daemon is told.
        engine: the network that labels are for.
        ring: what it is shown, for labels by reference.
        instance: names this run of the daemon.
        learner: takes orders; None: nothing is learned.

    Raises:
        SpoolError: the spool cannot be opened.
        EndpointError: the address is malformed, public, in use or not permitted.
    """
    intake = config.intake
    folder = spool_folder(config)
    spool = SpoolClips(folder, max_clips=intake.max_clips, max_bytes=intake.max_mb * 1_000_000)
    rules = LabelRules(
        window_s=engine.window_s,
        categories=engine.categories,
        closed=intake.classes == "closed",
        instance=instance,
    )
    try:
        desk = LabelDesk(spool, ring, rules, learner=learner)
        opened = Intake(intake.endpoint, desk, insecure=intake.insecure)
    except BaseException:
        spool.close()
        raise
    _log.info("labels at %s, kept in %s", opened.endpoint, folder)
    return opened


def note_pause(config: Config, wanted: bool) -> None:
    """Let nothing be learned from the configured spool until this is taken back.

    Raises:
        SpoolError: it cannot be noted; nothing was changed.
    """
    with SpoolClips(spool_folder(config)) as spool:
        spool.pause(wanted)


def _frame_token(config: Config) -> FrameToken | None:
    path = token_path(config)
    return None if path is None else FrameToken(path)


def _as_learned(config: Config, base: Network) -> Network:
    """The newest checkpoint of the learner that was not gone back from; the base, where none is."""
    content = tensor_hash(tensors_of(base))
    to, lineage = _gone_back_to(config)
    for kept in reversed(LearnStore(learned_folder(config)).all()):
        learned = kept.learned
        if to is not None and learned.lineage == lineage and learned.cursor > to:
            continue
        if learned.base == content and learned.cursor:
            try:
                network = load(
                    kept.weights,
                    backbone_weights=config.model.backbone_weights,
                    audio_weights=config.model.audio_weights,
                )
            except WeightsError as error:
                _log.warning("version %s is passed over: %s", learned.version, error)
                continue
            _log.info("version %s is served, as learned before", learned.version)
            return network
    return base


def _gone_back_to(config: Config) -> tuple[int | None, str | None]:
    """Cursor and lineage of a rollback that was cut before its checkpoints were deleted."""
    folder = spool_folder(config)
    if not (folder / SPOOL_FILE).exists():
        return None, None
    try:
        with Spool(folder) as spool:
            return spool.rewound, spool.lineage
    except SpoolError as error:
        _log.warning("whether a version was gone back from cannot be told: %s", error)
        return None, None
