"""The command line answers at once, tells errors in one line, and agrees with what it calls."""

import inspect
import json
import subprocess
import sys
from dataclasses import fields

import pytest
import yaml
from atlasd.daemon.config import Config
from atlasd.tools import cli, clilabels, clilearner, cliresearch
from typer.testing import CliRunner

RUNNER = CliRunner()


def called(*words: str) -> str:
    result = RUNNER.invoke(cli.app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def in_a_process(*words: str, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "atlasd.tools.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("run",),
        ("segment",),
        ("subscribe",),
        ("label",),
        ("feed",),
        ("status",),
        ("proxy",),
        ("doctor",),
        ("train",),
        ("importance",),
        ("evaluate",),
        ("report",),
        ("dataset", "build"),
        ("dataset", "check"),
        ("score", "masks"),
        ("score", "sounds"),
        ("score", "photos"),
        ("bench", "pipeline"),
        ("bench", "metrics"),
        ("bench", "learning"),
        ("bench", "subscribers"),
        ("bench", "latency"),
        ("config", "check"),
        ("config", "show"),
        ("config", "schema"),
    ],
    ids=" ".join,
)
def test_every_command_has_help(words):
    assert "Usage" in called(*words, "--help")


def test_the_kind_of_a_source_is_forced_by_an_option(monkeypatch):
    from atlasd.daemon import service

    served = []
    monkeypatch.setattr(service, "run", lambda config: served.append(config) or 0)
    called("run", "http://cam/x", "--kind", "live", "--set", "source.kind=file")
    called("run", "http://cam/x", "--kind", "file")
    called("run", "http://cam/x", "--set", "source.kind=live")
    assert [config.source.kind for config in served] == ["live", "file", "live"]
    refused = RUNNER.invoke(cli.app, ["calibrate", "a.mp4", "--kind", "live"])
    assert "source.kind is live" in str(refused.exception)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom atlasd.tools import cli\n"
        "assert CliRunner().invoke(cli.app, ['--help']).exit_code == 0\n"
        "heavy = {'torch', 'av', 'numpy', 'zmq', 'timm', 'cv2', 'pydantic'} & set(sys.modules)\n"
        "print(*heavy, end='')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_help_answers_within_a_second_of_processor_time():
    """A third to two thirds of one on two cores, by the hour."""
    in_a_process("--help")  # warm
    assert min(resource_seconds(lambda: in_a_process("--help")) for _ in range(3)) < 1


def resource_seconds(work) -> float:
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_an_error_is_one_line_and_exit_code_2(tmp_path):
    done = in_a_process("config", "check", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "none.yaml: no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_config_show_prints_what_was_set():
    shown = yaml.safe_load(called("config", "show", "--set", "model.threads=3"))
    assert shown["model"]["threads"] == 3


def test_config_schema_is_the_models():
    assert json.loads(called("config", "schema")) == Config.model_json_schema()


def test_train_passes_every_option_on_with_the_same_default():
    from atlasd.tools.train import TrainOptions

    told = inspect.signature(cliresearch.train).parameters
    assert set(told) == {field.name for field in fields(TrainOptions)}
    for field in fields(TrainOptions):
        if field.name != "out":
            default = told[field.name].default
            if isinstance(field.default, tuple):  # a list on the command line, or none
                default = tuple(default or ())
            assert default == field.default, field.name


def test_feed_passes_every_option_on_with_the_same_default():
    from atlasd.tools.feed import FeedOptions

    told = inspect.signature(clilabels.feed).parameters
    for field in fields(FeedOptions):
        if field.name not in {"data", "endpoint", "attempts"}:
            assert told[field.name].default == field.default, field.name


def test_labels_go_where_the_intake_stands_by_default():
    endpoint = Config().intake.endpoint
    for command in (clilabels.label, clilabels.feed, clilearner.versions, clilearner.rollback):
        assert inspect.signature(command).parameters["endpoint"].default == endpoint
    assert inspect.signature(cli.status).parameters["endpoint"].default == (
        Config().publish.endpoint
    )


def test_version():
    assert called("--version").startswith("atlasd ")
