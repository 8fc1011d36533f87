"""The configuration is read strictly and its faults are told with their place."""

from pathlib import Path

import pytest
import yaml
from atlasd.daemon.config import Config, ConfigError, dump_config, load_config
from atlasd.streams.addresses import is_mistaken
from hypothesis import example, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent


def refused(path: Path | None = None, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, **kwargs)
    return str(caught.value)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_the_shipped_file_is_the_defaults():
    assert load_config(ROOT / "config.yaml") == Config()
    assert (ROOT / "config.yaml").read_text() == dump_config(Config())


def test_precedence_is_defaults_then_file_then_environment_then_set(tmp_path):
    path = written(tmp_path, "queue: {capacity: 2, max_age_ms: 222}\nmodel: {threads: 2}\n")
    environ = {"ATLASD_QUEUE__CAPACITY": "3", "ATLASD_QUEUE__MAX_AGE_MS": "333", "HOME": "/"}

    config = load_config(path, environ=environ, overrides=["queue.capacity=4"])

    assert config.queue.capacity == 4
    assert config.queue.max_age_ms == 333
    assert config.model.threads == 2
    assert config.publish == Config().publish


def test_an_unknown_key_is_named_with_its_line_and_the_known_ones(tmp_path):
    path = written(tmp_path, "source:\n  uri: x\n  strem: main\n")
    message = refused(path)
    assert f"{path}:3: source.strem is not known" in message
    assert "stream" in message


def test_an_unknown_section_is_refused(tmp_path):
    assert ":1: sauce is not known here" in refused(written(tmp_path, "sauce: {}\n"))


def test_a_wrong_type_is_told_with_line_and_value(tmp_path):
    message = refused(written(tmp_path, "model:\n\n  threads: many\n"))
    assert ":3: model.threads" in message
    assert "'many'" in message


def test_all_faults_are_told_at_once(tmp_path):
    path = written(tmp_path, "model: {batch: 900}\nsync: {anchor: middle}\n")
    assert len(refused(path).splitlines()) == 2


def test_a_repeated_key_is_refused_with_both_lines(tmp_path):
    message = refused(written(tmp_path, "model:\n  threads: 1\n  threads: 2\n"))
    assert ":3: model.threads stands twice" in message
    assert ":2)" in message


def test_a_missing_file_says_what_to_do(tmp_path):
    assert "no such file; give --config" in refused(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "part"),
    [("source: [unclosed", "not valid YAML"), ("- 1\n", "must map sections"), ("\x00", "YAML")],
)
def test_what_is_not_a_mapping_in_yaml_is_refused(tmp_path, text, part):
    assert part in refused(written(tmp_path, text))


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00\xd8")
    assert "cannot be read" in refused(path)


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load_config(written(tmp_path, "# nothing\n")) == Config()


@pytest.mark.parametrize("override", ["threads=2", "model.threads", "a.b.c=1", "=3"])
def test_a_malformed_set_says_its_form(override):
    assert "must read section.key=value" in refused(overrides=[override])


def test_faults_of_the_environment_name_the_variable():
    assert refused(environ={"ATLASD_MODEL__THREADS": "-1"}).startswith("ATLASD_MODEL__THREADS:")
    assert "ATLASD_MODEL__TREADS" in refused(environ={"ATLASD_MODEL__TREADS": "1"})


def test_a_batch_must_fit_the_queue_and_the_policy():
    assert "must fit into the queue" in refused(
        overrides=["model.batch=8", "queue.capacity=4", "source.policy=wait"]
    )
    assert "answered frame by frame" in refused(overrides=["model.batch=2", "source.policy=live"])


def test_a_frame_may_not_wait_for_its_sound_until_it_is_too_old():
    assert "would be too old once it has waited" in refused(overrides=["sync.audio_wait_ms=500"])
    load_config(overrides=["sync.audio_wait_ms=499", "sync.lag_ms=2000"])


@settings(max_examples=25, deadline=None)
@given(
    capacity=st.integers(1, 4096),
    age=st.floats(80.001, 60_000, allow_nan=False),
    uri=st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), min_size=1).filter(
        lambda text: not is_mistaken(text.strip()) and text.strip() != ""
    ),
)
@example(capacity=1, age=81.0, uri="./:@")
def test_what_is_dumped_is_read_back_equal(tmp_path_factory, capacity, age, uri):
    values = {"queue": {"capacity": capacity, "max_age_ms": age}, "source": {"uri": uri}}
    config = Config.model_validate(values)
    path = tmp_path_factory.mktemp("dumped") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_the_schema_describes_every_key():
    schema = Config.model_json_schema()
    for section in schema["$defs"].values():
        assert section["additionalProperties"] is False
        assert all("description" in key for key in section["properties"].values())


def test_the_dump_is_plain_yaml():
    assert yaml.safe_load(dump_config(Config())) == Config().model_dump(mode="json")


def test_bus_and_intake_need_an_address_each():
    message = refused(
        overrides=["intake.enabled=true", "intake.endpoint=ipc:///x", "publish.endpoint=ipc:///x"]
    )
    assert "each needs an address of its own" in message


def test_a_deadline_and_its_ladder_are_read_and_dumped(tmp_path):
    config = load_config(overrides=["model.deadline_ms=40", "model.ladder=[256, 192]"])
    assert (config.model.deadline_ms, config.model.ladder) == (40.0, [256, 192])
    assert load_config(written(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[192, 256]", "must fall from the largest to the smallest"),
        ("[192, 192]", "must fall"),
        ("[256, 100]", "multiple of 32"),
        ("[0]", "greater than or equal to 32"),
        ("[2048]", "less than or equal to 1024"),
        (f"{list(range(1024, 480, -32))}", "at most 16"),
        ("256", "valid list"),
    ],
)
def test_a_malformed_ladder_is_told_with_its_place(tmp_path, value, said):
    message = refused(written(tmp_path, f"model:\n  threads: 1\n  ladder: {value}\n"))
    assert ":3: model.ladder" in message
    assert said in message


@pytest.mark.parametrize("value", ["0", "-5", "1e9", "soon"])
def test_a_deadline_has_bounds(value):
    assert "model.deadline_ms" in refused(overrides=[f"model.deadline_ms={value}"])


def test_a_deadline_is_kept_frame_by_frame():
    message = refused(overrides=["model.deadline_ms=40", "model.batch=2", "source.policy=wait"])
    assert "a deadline is kept frame by frame; set model.batch to 1" in message
