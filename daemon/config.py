"""What a run is told: sections with bounds, read strictly, wrong lines named.

Precedence: defaults here < the YAML file < ``ATLASD_SECTION__KEY`` < ``--set section.key=value``.
Unknown keys are refused wherever they come from. Each error names its place (a line of the file,
a variable, an option), what stands there and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from ..streams.addresses import (
    LIVE_SCHEMES,
    is_address,
    is_mistaken,
    redacted,
    without_secrets,
)
from .configlayers import ConfigError, environ_layer, file_layer, merge, override_layer
from .configsecrets import NO_DEVICE, is_secret, misplaced_secrets

DEFAULT_FILE = Path("config.yaml")
SAMPLE_URI = "sample"

Side = Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
CameraSide = Annotated[int, Field(ge=16, le=16384)]
DeviceName = Annotated[str, Field(min_length=1, max_length=256)]
StreamName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )


class SourceConfig(_Section):
    """What is watched and listened to."""

    uri: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] = SAMPLE_URI
    """A media file, a folder of frames, an address (rtsp://, http://, ...), or `sample`."""
    stream: StreamName = "main"
    """Name of the stream: the part of every topic after the slash."""
    pace: Literal["real", "free"] = "real"
    """Files: `real` gives each frame when it is due, `free` as fast as it is consumed."""
    policy: Literal["auto", "wait", "live"] = "auto"
    """`wait`: every frame, in order; `live`: the freshest; `auto`: wait for files, else live."""
    repeat: bool = False
    """Begin again at the end, for ever, each round an epoch: to learn beside a short clip."""
    folder_fps: float = Field(default=25.0, gt=0, le=1000)
    """Frames a second of a folder of frames without timestamps."""
    camera: Annotated[int, Field(ge=0)] | DeviceName | None = None
    """Instead of `uri`: a camera's number, path or part of its name (`atlasd devices`)."""
    microphone: Annotated[int, Field(ge=0)] | DeviceName | None = None
    """Beside a camera: `default`, a number or part of a name; none: no sound."""
    camera_size_px: tuple[CameraSide, CameraSide] | None = None
    """Width and height to ask the camera for, as in [1280, 720]; none: its own."""
    camera_fps: float | None = Field(default=None, gt=0, le=1000)
    """Frames a second to ask the camera for; none: its own."""
    camera_latency_ms: float = Field(default=0.0, ge=-2000, le=2000)
    """Delay from light to the camera's timestamp, where it is known; taken off capture times."""
    kind: Literal["auto", "file", "live"] = "auto"
    """Addresses: `file` has an end, `live` comes back; `auto`: web servers know which it is."""
    transport: Literal["tcp", "udp"] = "tcp"
    """RTSP: `tcp` loses nothing, `udp` never waits for what was lost."""
    open_timeout_s: float = Field(default=10.0, ge=0.1, le=600)
    """Addresses, devices (15 or more): seconds to the first picture, else an opening has failed."""
    stall_timeout_s: float = Field(default=10.0, ge=0.1, le=600)
    """Addresses, devices: seconds without a picture after which the source is lost."""
    reconnect_max_s: float = Field(default=30.0, ge=0.1, le=3600)
    """Live: longest pause between attempts to reach a source; the first is a second."""
    reconnect_limit: int | None = Field(default=None, ge=0, le=1_000_000)
    """Live: attempts in a row before it is given up; 0: the first failure ends it; none: never."""
    tls_verify: bool = True
    """`https://`: check the server's certificate; false for a camera that made its own."""
    memory_mb: int = Field(default=2000, ge=200, le=1_000_000)
    """Addresses, devices: most memory of the process that reads and decodes the stream."""

    @property
    def label(self) -> str:
        """What is watched, for people; without what is secret in an address."""
        if self.camera is None:
            return redacted(self.uri)
        sound = "no microphone" if self.microphone is None else f"microphone {self.microphone}"
        return f"camera {self.camera}, {sound}"

    @field_validator("uri")
    @classmethod
    def _is_no_mistake(cls, uri: str) -> str:
        if is_mistaken(uri):
            raise ValueError(
                "this looks like an address and is none, and is not shown, as it may hold a"
                " password; write SCHEME://HOST:PORT/PATH, before the host USER:PASSWORD and an @;"
                " and a file with such a name as ./NAME"
            )
        return uri

    @field_validator("camera", "microphone")
    @classmethod
    def _is_a_device(cls, device: int | str | None) -> int | str | None:
        if isinstance(device, str) and (is_address(device) or is_mistaken(device)):
            raise ValueError(NO_DEVICE)
        return device

    @model_validator(mode="after")
    def _is_one_source(self) -> Self:
        if self.microphone is not None and self.camera is None:
            raise ValueError(
                "microphone is set and camera is not: what is segmented is a picture, and sound"
                " alone has none; set source.camera too"
            )
        if self.camera is not None and self.uri != SAMPLE_URI:
            raise ValueError(
                "camera and uri are both set, and only one can be watched; leave out one of them"
            )
        if self.camera is not None and self.repeat:
            raise ValueError("repeat is true, and a camera has no end to begin again at")
        scheme = self.uri.partition("://")[0].lower()
        if self.repeat and self.kind == "auto" and scheme in LIVE_SCHEMES:
            raise ValueError(
                f"repeat is true, and what is at {scheme}:// is live: it has no end to begin again"
                " at; set repeat to false, or kind to file where it is a recording"
            )
        return self


class ModelConfig(_Section):
    """Which network, with which weights, on what."""

    preset: str = Field(default="atlas-lite", min_length=1)
    """`atlas-lite` (shipped weights, real time on two cores) or `atlas` (the paper's)."""
    weights: Path | None = None
    """A checkpoint of the preset; none: the shipped or published one."""
    backbone_weights: Path | None = None
    """The visual backbone's pretrained weights, where they cannot be fetched."""
    audio_weights: Path | None = None
    """The audio encoder's pretrained weights (Cnn14), where they cannot be fetched."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto` takes the first CUDA device, else the CPU."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of the network; 0: chosen by the machine."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: fp32 on a CPU, bf16 or fp16 autocast on CUDA."""
    batch: int = Field(default=1, ge=1, le=64)
    """Samples in one forward pass; more than one only where the policy is `wait`."""
    deadline_ms: float | None = Field(default=None, gt=0, le=60_000)
    """Most ms from staging to logits on the host, queues apart, for 95 % of frames; none: any."""
    ladder: list[Side] = Field(default=[], max_length=16)
    """Picture sides to choose from to keep it, falling; none: the preset's, by eighths to half."""

    @field_validator("ladder")
    @classmethod
    def _falls(cls, sides: list[int]) -> list[int]:
        if any(a <= b for a, b in pairwise(sides)):
            raise ValueError("the sides must fall from the largest to the smallest")
        return sides


class SyncConfig(_Section):
    """Which sound belongs to a frame."""

    anchor: Literal["end", "center"] = "end"
    """Where the frame lies in its window; `end` needs no sound from the future."""
    lag_ms: float = Field(default=0.0, ge=-2000, le=2000)
    """Shifts the window later: how much later the sound is stamped (`atlasd calibrate`)."""
    audio_wait_ms: float = Field(default=80.0, ge=0, le=5000)
    """Live: how long a frame waits for sound once its window is over; then it goes on as `late`."""
    audio_slack_ms: float = Field(default=20.0, ge=0, le=200)
    """Live: the last so much of a window is not waited for: it ends earlier, as its times say."""


class QueueConfig(_Section):
    """What lies between capture and network."""

    capacity: int | None = Field(default=None, ge=1, le=4096)
    """Samples that may wait; full, `wait` holds the source, `live` drops; none: 32, live 8."""
    max_wait_ms: float | None = Field(default=None, gt=0, le=60_000)
    """Live: how long a sample may wait once a newer one is (nearly) there; none: half a period."""
    max_age_ms: float = Field(default=500.0, gt=0, le=60_000)
    """Live: a sample older than this, from the end of its window on, is dropped, and counted."""


class PublishConfig(_Section):
    """The bus."""

    endpoint: str = Field(default="tcp://127.0.0.1:5557", pattern=r"^(tcp|ipc)://.+")
    """Where subscribers connect; loopback or ipc unless `insecure`."""
    insecure: bool = False
    """Allow an address that other machines reach, without encryption."""
    encoding: Literal["bits", "bits+zstd", "rle", "prob8"] = "bits+zstd"
    """How masks travel; see docs/protocol.md."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """A pixel belongs to the mask where its probability is above this."""
    wait_for_subscriber_s: float = Field(default=10.0, ge=0, le=3600)
    """Policy `wait`: how long the first frame is held for a first subscriber."""
    send_timeout_s: float = Field(default=5.0, gt=0, le=600)
    """Policy `wait`: how long a subscriber that does not read may hold the bus."""
    status_interval_s: float = Field(default=1.0, gt=0, le=60)
    """Seconds between two status messages."""
    hello_interval_s: float = Field(default=2.0, gt=0, le=60)
    """Seconds between two hello messages."""


class IntakeConfig(_Section):
    """Where labeled clips are put, to be learned."""

    enabled: bool = False
    """Accept labeled clips, and keep them on disk until they are learned."""
    endpoint: str = Field(default="tcp://127.0.0.1:5558", pattern=r"^(tcp|ipc)://.+")
    """Where labelers connect; loopback or ipc unless `insecure`."""
    insecure: bool = False
    """Allow an address that other machines reach, without encryption."""
    spool: Path | None = None
    """Folder of the clips; none: `atlasd/spool/STREAM` in $XDG_STATE_HOME or ~/.local/state."""
    max_clips: int = Field(default=10_000, ge=1, le=10_000_000)
    """Most clips that wait; more are refused. As many that were learned may be kept beside them."""
    max_mb: int = Field(default=4000, ge=1, le=10_000_000)
    """Most megabytes of them, likewise."""
    classes: Literal["open", "closed"] = "open"
    """`closed`: only classes that the network knows; `open`: new ones too."""
    replay_s: float = Field(default=30.0, ge=0, le=3600)
    """How long a frame that was shown can be labeled by its time alone."""
    replay_mb: int = Field(default=256, ge=0, le=1_000_000)
    """Most megabytes of such frames with their sound."""


class LearnerConfig(_Section):
    """What becomes of labeled clips: a process of its own learns them, and masks get better."""

    enabled: bool = False
    """Learn what the intake takes; needs `intake.enabled`."""
    method: str = Field(default="atlas", pattern=r"^[a-z][a-z0-9_+-]*$")
    """Continual-learning method, one that needs no boundaries: `atlas`, `finetune`, `si`, `mas`."""
    options: dict[str, bool | int | float | str] = {}
    """The method's options, over those that suit a stream (docs/learning.md)."""
    base: Literal["ship", "zero"] = "ship"
    """`ship`: hold what the weights know by the importances beside them (`atlas`); `zero`: not."""
    parts: Literal["adapters", "all"] = "adapters"
    """`adapters`: LoRA, conditioning, fusion, head over a frozen base; `all`: the decoder too."""
    lr: float = Field(default=1e-3, gt=0, le=1)
    """AdamW's learning rate."""
    weight_decay: float = Field(default=5e-4, ge=0, le=1)
    """AdamW's weight decay."""
    clip_norm: float = Field(default=1.0, ge=0, le=1e6)
    """Largest norm of a step's gradient; 0: any."""
    frames: int = Field(default=8, ge=1, le=256)
    """Most frames of an optimizer step."""
    passes: int = Field(default=2, ge=1, le=100)
    """Passes over the frames of a batch of clips."""
    consolidate: str = Field(default="plateau", pattern=r"^(plateau|every:[1-9][0-9]{0,8})$")
    """When the method holds on to what was learned: `plateau` of the loss, or `every:N` steps."""
    seed: int = Field(default=0, ge=0, le=2**31)
    """Of everything random in learning."""
    clips: int = Field(default=8, ge=1, le=1024)
    """Clips that are learned together."""
    wait_s: float = Field(default=10.0, ge=0, le=86_400)
    """How long a clip waits for so many."""
    canary_drop: float = Field(default=0.1, ge=0, le=1)
    """New weights are refused whose J on the next clips is by so much below older ones'."""
    canary_wait_s: float = Field(default=10.0, ge=0, le=86_400)
    """How long new weights wait for next clips before they are served unjudged."""
    checkpoint_s: float = Field(default=30.0, ge=0, le=86_400)
    """Least seconds between two checkpoints; what lies between is learned again after a crash."""
    keep: int = Field(default=3, ge=1, le=64)
    """Checkpoints that are kept, to go back to."""
    state: Path | None = None
    """Folder of the checkpoints; none: `learned` beside the spool's clips."""
    device: str = Field(default="cpu", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where to learn; it may be another GPU than the masks'."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads; 0: all cores, of which it takes only what masks leave (Linux)."""
    token: Literal["auto", "always", "never"] = "auto"  # noqa: S105  a lock, no secret
    """Learner and masks compute in turn, masks first: `auto`: where both are on one GPU."""
    hang_s: float = Field(default=120.0, gt=0, le=86_400)
    """Seconds of computing without progress after which the learner is taken for hung."""
    max_restarts: int = Field(default=5, ge=0, le=1000)
    """How often the learner is started again within ten minutes before it is given up."""


class RunConfig(_Section):
    """The run itself."""

    out: Path | None = None
    """A folder for the resolved configuration and the summary; none: nothing is written."""


class Config(_Section):
    """All that `atlasd run` and `atlasd segment` are told."""

    source: SourceConfig = SourceConfig()
    model: ModelConfig = ModelConfig()
    sync: SyncConfig = SyncConfig()
    queue: QueueConfig = QueueConfig()
    publish: PublishConfig = PublishConfig()
    intake: IntakeConfig = IntakeConfig()
    learner: LearnerConfig = LearnerConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.model.batch > 1 and self.source.policy == "live":
            raise ValueError(
                f"model.batch is {self.model.batch} and source.policy is live: a live stream is"
                " answered frame by frame; set model.batch to 1 or source.policy to wait"
            )
        if self.queue.capacity is not None and self.model.batch > self.queue.capacity:
            raise ValueError(
                f"model.batch is {self.model.batch} but queue.capacity only {self.queue.capacity};"
                " a batch must fit into the queue"
            )
        if self.model.batch > 1 and self.model.deadline_ms is not None:
            raise ValueError(
                f"model.deadline_ms is {self.model.deadline_ms:g} and model.batch"
                f" {self.model.batch}: a deadline is kept frame by frame; set model.batch to 1"
            )
        if self.sync.audio_wait_ms >= self.queue.max_age_ms:
            raise ValueError(
                f"sync.audio_wait_ms is {self.sync.audio_wait_ms:g} and queue.max_age_ms"
                f" {self.queue.max_age_ms:g}: a frame whose sound is late would be too old once it"
                " has waited; set queue.max_age_ms higher or sync.audio_wait_ms lower"
            )
        if self.learner.enabled and not self.intake.enabled:
            raise ValueError(
                "learner.enabled is true and intake.enabled is not: there is nothing to learn from;"
                " set intake.enabled"
            )
        if self.source.repeat and self.source.kind == "live":
            raise ValueError(
                "source.repeat is true and source.kind is live: what is live has no end to begin"
                " again at; set one of them otherwise"
            )
        if self.intake.enabled and self.intake.endpoint == self.publish.endpoint:
            raise ValueError(
                f"publish.endpoint and intake.endpoint are both {self.intake.endpoint}; each needs"
                " an address of its own"
            )
        return self


def _uri_of(values: Mapping[str, Any]) -> str:
    source = values.get("source")
    return str(source.get("uri", "")) if isinstance(source, dict) else ""


def load_config(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
) -> Config:
    """Read, merge and check.

    Args:
        path: the YAML file; None reads no file.
        environ: variables, of which those named ``ATLASD_SECTION__KEY`` count.
        overrides: ``section.key=value``, each value read as YAML.

    Raises:
        ConfigError: an unreadable file, bad YAML, an unknown or repeated key, a wrong type or
            bound; all faults found are told at once.
    """
    layers = [file_layer(path)] if path is not None else []
    layers += [environ_layer(environ or {}), override_layer(overrides)]
    merged: dict[str, Any] = {}
    places: dict[tuple[str, ...], str] = {}
    for layer in layers:
        merge(merged, layer.values)
        places |= layer.places
    if secrets := "\n".join(misplaced_secrets(merged, lambda key: _place_of(key, places))):
        raise ConfigError(secrets)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        faults = "\n".join(_faults(error, places))
        raise ConfigError(without_secrets(faults, _uri_of(merged))) from None


def public(config: Config) -> Config:
    """The configuration without what is secret in its address, to be shown, kept and sent on."""
    source = config.source.model_copy(update={"uri": redacted(config.source.uri)})
    return config.model_copy(update={"source": source})


def dump_config(config: Config) -> str:
    """The configuration as commented YAML that `load_config` reads back equal.

    But for what is secret in an address: such files are shown, kept and sent to others.
    """
    lines = ["# Each value can also be set by ATLASD_SECTION__KEY or --set section.key=value."]
    shown = public(config)
    if shown != config:
        lines.append("# What is secret in source.uri is *** here: give it by ATLASD_SOURCE__URI.")
    values = shown.model_dump(mode="json")
    for name in Config.model_fields:
        section: _Section = getattr(shown, name)
        lines += ["", f"# {section.__doc__}", f"{name}:"]
        for key, field in type(section).model_fields.items():
            value = values[name][key]
            flow = None if isinstance(value, dict | list) else False
            line = yaml.safe_dump({key: value}, width=math.inf, default_flow_style=flow).rstrip(
                "\n"
            )
            lines += [f"  # {field.description}", f"  {line}"]
    return "\n".join(lines) + "\n"


def _place_of(key: tuple[str, ...], places: Mapping[tuple[str, ...], str]) -> str:
    """Where a key stands, or else what is around it."""
    above = (places.get(key[:n]) for n in range(len(key), 0, -1))
    return next((place for place in above if place), "defaults")


def _faults(error: ValidationError, places: Mapping[tuple[str, ...], str]) -> Iterator[str]:
    for fault in error.errors():
        key = tuple(str(part) for part in fault["loc"])
        name = ".".join(key) or "configuration"
        place = _place_of(key, places)
        if fault["type"] == "extra_forbidden":
            yield f"{place}: {name} is not known here; known: {', '.join(_known(key[:-1]))}"
        else:
            came = fault["input"]
            is_told = not (isinstance(came, dict) or (isinstance(came, str) and is_secret(came)))
            got = f"; got {came!r}" if is_told else ""
            yield f"{place}: {name}: {fault['msg']}{got}"


def _known(section: tuple[str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in section:
        annotation = model.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
