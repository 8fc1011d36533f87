"""One value of a configuration changes; the rest of the file is a person's, and stays."""

from __future__ import annotations

import contextlib
import os
import stat
import sys

import pytest
from atlasd.daemon.config import Config, ConfigError, dump_config, load_config
from atlasd.daemon.configline import with_value, write_value

COMMENTED = """\
# My camera in the hall.
source:
  uri: film.mp4   # a film

sync:
  # measured in May
  lag_ms: 12.5  # by ear
  anchor: end
run:
  out: null
"""


def test_one_line_changes_and_comments_stay():
    changed = with_value(COMMENTED, "sync", "lag_ms", -41.2)
    assert changed == COMMENTED.replace("12.5", "-41.2")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing yet\n",
        "source:\n  uri: a.mp4\n",
        "source:\n  uri: a.mp4",
        "sync:\n  anchor: end  # so\n",
        "sync:\n    # deep\n    anchor: end\nrun:\n  out: null\n",
        "sync: {anchor: end}\n",
        "sync: {}\n",
        COMMENTED,
        dump_config(Config()),
    ],
)
def test_whatever_stands_there_it_reads_back_as_the_value(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    before = load_config(path) if text.strip() else Config()
    write_value(path, "sync", "lag_ms", 41.5)
    after = load_config(path)
    assert after.sync.lag_ms == 41.5
    assert after.model_copy(update={"sync": before.sync}) == before
    assert after.sync.anchor == before.sync.anchor
    lines = set(path.read_text().splitlines())
    kept = [line for line in text.splitlines() if "sync" not in line and "lag_ms" not in line]
    assert lines.issuperset(kept)


def test_a_file_that_is_not_there_is_made(tmp_path):
    write_value(tmp_path / "new.yaml", "sync", "lag_ms", 7.0)
    assert load_config(tmp_path / "new.yaml").sync.lag_ms == 7
    assert [path.name for path in tmp_path.iterdir()] == ["new.yaml"]


@pytest.mark.parametrize(
    "text", ["sync: [1]\n", "sync:\n", "a list\n", "sync:\n  lag: 3\n", "sync:\n\tlag_ms: 3\n"]
)
def test_a_file_that_is_no_configuration_is_left_as_it_was(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        write_value(path, "sync", "lag_ms", 7.0)
    assert path.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_value_out_of_bounds_is_refused_and_the_file_stays(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(COMMENTED)
    with pytest.raises(ConfigError, match="lag_ms"):
        write_value(path, "sync", "lag_ms", 1e6)
    assert path.read_text() == COMMENTED


def test_who_may_read_the_file_stays(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(COMMENTED)
    path.chmod(0o600)
    write_value(path, "sync", "lag_ms", 1.0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.fixture
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_nobody_else_can_read_the_new_file_at_any_moment(tmp_path, usual_umask):
    """Looked at before each line that runs; also where an attempt that was killed left its part."""
    path, part = tmp_path / "config.yaml", tmp_path / ".config.yaml.part"
    path.write_text("source:\n  uri: rtsp://me:hunter2@camera/1\n")
    path.chmod(0o600)
    part.touch(0o644)
    modes = set()

    def look(_frame, _event, _argument):
        for file in (path, part):
            with contextlib.suppress(FileNotFoundError):
                held = file.stat()
                if held.st_size:
                    modes.add(stat.S_IMODE(held.st_mode))
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        write_value(path, "sync", "lag_ms", 1.0)
    finally:
        sys.settrace(before)
    assert modes == {0o600}


def test_who_may_read_it_may_read_it_after_and_a_new_file_is_as_any_other(tmp_path, usual_umask):
    shared = tmp_path / "shared.yaml"
    shared.write_text(COMMENTED)
    shared.chmod(0o664)
    for path, mode in ((shared, 0o664), (tmp_path / "new.yaml", 0o644)):
        write_value(path, "sync", "lag_ms", 1.0)
        assert stat.S_IMODE(path.stat().st_mode) == mode
