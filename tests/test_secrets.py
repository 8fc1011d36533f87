"""What is secret in an address is in no output, wherever and however people write it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from unittest import mock

import pytest
import typer
from atlasd.daemon.config import Config, ConfigError, SourceConfig, dump_config, load_config
from atlasd.streams.addresses import redacted, without_accounts
from atlasd.tools import cli
from atlasd.tools.discretion import DiscreetFormatter
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from served import tiny_checkpoint

SECRET = "s3cr3t"  # noqa: S105 (what the tests look for)
WELL_WRITTEN = [
    "rtsp://joe:{}@127.0.0.1:9/x",
    "RTSP://{}@127.0.0.1:9/x",
    "http://127.0.0.1:9/v?token={}&w=1",
    "http://127.0.0.1:9/v#{}",
    "rtsp://joe:a/{}@127.0.0.1:9/x",
    "rtsp://joe:%40{}@127.0.0.1:9/x",
]
MISTAKEN = [
    "rtsp:/joe:{}@127.0.0.1/x",
    "rtsp:joe:{}@127.0.0.1/x",
    "rtsp:///joe:{}@127.0.0.1/x",
    "rtsp//joe:{}@127.0.0.1/x",
    "rtsp:\\\\joe:{}@127.0.0.1\\x",
    "//joe:{}@127.0.0.1/x",
    "joe:{}@127.0.0.1/x",
    "joe:p w{}@127.0.0.1",
    "http:/127.0.0.1/v?token={}",
    '"rtsp://joe:{}@127.0.0.1/x"',
    "<rtsp://joe:{}@127.0.0.1/x>",
    "uri=rtsp://joe:{}@127.0.0.1/x",
    "rtsp ://joe:{}@127.0.0.1/x",
    "gopher://joe:{}@127.0.0.1/x",
    "rtsp://joe:{}@[::1/x",
]
BLANKS = ["", " ", "\t", "\n"]
KEYS = [
    f"{name}.{key}"
    for name in Config.model_fields
    for key in getattr(Config(), name).__class__.model_fields
]
UNKNOWN = ["source.ur", "sauce.uri", "source.url", "run.camera"]
SHAPES = ["{}", "[{}]", "{{a: {}}}", "{{{}: 1}}", "[1, [{}]]"]
SPELLINGS = st.builds(
    lambda before, text, after: before + text.format(SECRET) + after,
    st.sampled_from(BLANKS),
    st.sampled_from(WELL_WRITTEN + MISTAKEN),
    st.sampled_from(BLANKS),
)
COMMAND = typer.main.get_command(cli.app)  # made once: that takes longer than what it does here


def said(*words: str, environ: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and all that a command of this process prints, with the error that ended it."""
    printed = io.StringIO()
    code, error = 0, ""
    with (
        mock.patch.dict(os.environ, environ or {}),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        try:
            COMMAND.main(list(words), "atlasd")
        except SystemExit as left:
            code = int(left.code or 0)
        except Exception as failure:  # noqa: BLE001 (as `cli.main`, which prints it)
            code, error = 2, f"{failure!r}"
    return code, printed.getvalue() + error


def quoted(text: str) -> str:
    return json.dumps(text)


@settings(max_examples=100, deadline=None)
@given(
    key=st.sampled_from(KEYS + UNKNOWN),
    text=SPELLINGS,
    shape=st.sampled_from(SHAPES),
    place=st.sampled_from(["set", "bare", "environment", "file"]),
    command=st.sampled_from(["show", "check"]),
)
def test_no_setting_shows_it_in_whatever_key_form_and_place(
    tmp_path_factory, key, text, shape, place, command
):
    section, name = key.split(".")
    value = shape.format(quoted(text))
    file = tmp_path_factory.mktemp("set") / "my.yaml"
    file.write_text(f"{section}:\n  {name}: {value}\n" if place == "file" else "run: {}\n")
    words = ["config", command, *(["--config"] if command == "show" else []), str(file)]
    environ = None
    if place == "environment":
        environ = {f"ATLASD_{section.upper()}__{name.upper()}": value}
    elif place != "file":
        words += ["--set", f"{key}={text if place == 'bare' else value}"]
    assert SECRET not in said(*words, environ=environ)[1]


@settings(max_examples=40, deadline=None)
@given(
    text=SPELLINGS,
    words=st.sampled_from(
        [
            ("run", "--camera", "{}"),
            ("run", "--camera", "0", "--mic", "{}"),
            ("run", "--camera={}"),
            ("run", "--pace", "{}"),
            ("run", "--pace={}"),
            ("run", "--kind", "{}"),
            ("run", "--set", "{}"),
            ("run", "--set", "source.uri:{}"),
            ("run", "--endpoint", "{}"),
            ("run", "a.mp4", "{}"),
            ("run", "--no-such-option={}"),
            ("run", "--config", "{}"),
            ("{}",),
            ("config", "{}"),
            ("config", "check", "{}"),
            ("calibrate", "--camera", "{}"),
            ("calibrate", "a.mp4", "--seconds", "{}"),
        ]
    ),
)
def test_no_option_shows_it_where_something_else_belongs(text, words):
    """In a process the last word is `cli.main`'s; here what it would print is the exception."""
    code, output = said(*(word.format(text) for word in words))
    assert code != 0
    shown = cli.discreet(output, [word.format(text) for word in words])
    assert SECRET not in shown
    if "Error(" not in output:  # a usage error is printed by the command itself
        assert SECRET not in output


@pytest.mark.parametrize("text", [*WELL_WRITTEN, *MISTAKEN])
def test_a_run_writes_it_nowhere(tmp_path, text, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG, "atlasd")
    monkeypatch.chdir(tmp_path)
    checkpoint, out = tmp_path / "tiny.safetensors", tmp_path / "out"
    tiny_checkpoint(tmp_path)
    code, output = said(
        *(
            "run",
            f" {text.format(SECRET)}",
            "--out",
            str(out),
            "--endpoint",
            f"ipc://{tmp_path}/bus",
        ),
        *("--set", "source.reconnect_limit=0", "--set", "model.preset=tiny"),
        *("--set", f"model.weights={checkpoint}", "--set", "model.threads=1"),
    )
    assert code != 0
    assert SECRET not in output + caplog.text
    for path in out.iterdir() if out.exists() else ():
        assert SECRET not in path.read_text()
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--camera", "{}"], ["{}"], ["{}", "--pace", "{}"]])
def test_a_process_says_it_nowhere(tmp_path, words):
    text = f" {WELL_WRITTEN[0].format(SECRET)}"
    told = [word.format(text) for word in words]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "atlasd.tools.cli", "run", *told, "--out", "out"),
            *("--set", "source.reconnect_limit=1", "--endpoint", f"ipc://{tmp_path}/bus"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode in {1, 2}
    kept = "".join(p.read_text() for p in tmp_path.glob("out/*"))
    assert SECRET not in done.stdout + done.stderr + kept
    assert ("***@127.0.0.1:9" in kept) == (words == ["{}"])


def test_an_address_is_no_camera_and_no_microphone():
    for name in ("camera", "microphone"):
        with pytest.raises(ConfigError, match="give it as the source") as caught:
            load_config(overrides=["source.camera=0", f"source.{name}=rtsp://cam/x"])
        assert f"--set source.{name}: source.{name}: " in str(caught.value)
        with pytest.raises(ValidationError) as refused:
            SourceConfig(**{"camera": "0", name: f"rtsp://joe:{SECRET}@cam/x"})
        assert SECRET not in str(refused.value)


def test_the_place_of_a_fault_is_the_key_of_its_override():
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=["queue.capacity=many", f"source.ur=rtsp://joe:{SECRET}@cam/x"])
    assert str(caught.value).startswith("--set source.ur: source.ur: this looks like an address")
    with pytest.raises(ConfigError, match=r"--set queue.capacity: queue.capacity: .*'many'"):
        load_config(overrides=["queue.capacity=many"])


def test_blanks_around_an_address_are_taken_off():
    source = load_config(overrides=['source.uri=" rtsp://cam/x\\t"']).source
    assert (source.uri, source.label) == ("rtsp://cam/x", "rtsp://cam/x")


@pytest.mark.parametrize("text", MISTAKEN[:2] + MISTAKEN[3:13])
def test_what_was_meant_as_an_address_is_refused_with_its_form(text):
    with pytest.raises(ConfigError, match="write SCHEME://HOST:PORT/PATH"):
        load_config(environ={"ATLASD_SOURCE__URI": quoted(text.format(SECRET))})


@pytest.mark.parametrize(
    "path",
    [
        *("a.mp4", "/media/12:30@home.mp4", "./12:30@home.mp4", "../a:b@c", "file:///a:b@c.mp4"),
        *("C:\\a.mp4", "http/frames", "12:30.mp4", "me@home.mp4", "café crème.mkv"),
    ],
)
def test_paths_are_paths(path):
    assert SourceConfig(uri=path).label == path
    assert load_config(overrides=[f"source.uri={quoted(path)}"]).source.uri == path


def test_a_word_of_yaml_that_is_no_value_is_refused_in_one_line(tmp_path):
    path = tmp_path / "my.yaml"
    for text in (f"source: {{uri: !x {SECRET}}}", "run: {out: 2001-99-99}", f"? [{SECRET}]\n: 1"):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match=r"--set run\.out is not a YAML value"):
        load_config(overrides=["run.out=2001-99-99"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot open rtsp://joe:pw@cam/x: refused", "cannot open rtsp://***@cam/x: refused"),
        ("'joe:pw@cam' and http://a:b@c", "'***@cam' and http://***@c"),
        ("rtsp://***@cam/x", "rtsp://***@cam/x"),
        ("my.yaml:3: write to me@home", "my.yaml:3: write to me@home"),
        ("tcp://127.0.0.1:5557, 12:30", "tcp://127.0.0.1:5557, 12:30"),
    ],
)
def test_prose_loses_accounts_and_nothing_else(text, shown):
    assert without_accounts(text) == shown


def test_the_log_hides_what_any_library_writes():
    formatter = DiscreetFormatter("%(message)s")
    try:
        raise OSError(f"cannot reach rtsp://joe:{SECRET}@cam")
    except OSError:
        record = logging.LogRecord("x", 40, "x", 1, "at %s", (f"joe:{SECRET}@cam",), sys.exc_info())
    line = formatter.format(record)
    assert SECRET not in line
    assert "at ***@cam" in line
    assert "OSError: cannot reach rtsp://***@cam" in line


def test_kept_files_are_their_owners_alone_even_where_others_made_them(tmp_path):
    out, old = tmp_path / "out", os.umask(0)
    try:
        out.mkdir()
        for name in ("config.yaml", "config.yaml.part"):
            (out / name).write_text("old")
        said(
            *("run", "no such file.mp4", "--out", str(out), "--set", "model.preset=tiny"),
            *("--set", f"model.weights={tiny_checkpoint(tmp_path)}"),
        )
    finally:
        os.umask(old)
    kept = out / "config.yaml"
    assert "no such file.mp4" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_configuration_that_is_shown_has_no_secret():
    for text in WELL_WRITTEN:
        config = load_config(environ={"ATLASD_SOURCE__URI": text.format(SECRET)})
        assert SECRET in config.source.uri
        assert SECRET not in dump_config(config) + config.source.label
        assert redacted(config.source.label) == config.source.label
