"""The folder of the sockets to learners: the user's alone, and nothing piles up in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import zmq
from atlasd.daemon.linefolder import LineFolder, LineFolderError

KILLED = """
import os, signal, sys, zmq
from atlasd.daemon.linefolder import LineFolder
path = LineFolder({"XDG_RUNTIME_DIR": sys.argv[1]}).socket(0)
zmq.Context().socket(zmq.PAIR).bind(f"ipc://{path}")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def environ(tmp_path):
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


def test_what_a_killed_process_left_is_taken_away_and_what_a_living_one_has_stays(
    tmp_path, environ
):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "atlasd").iterdir()
    living = tmp_path / "atlasd" / f"line-{os.getppid()}-0"
    living.touch()
    folder = LineFolder(environ)
    assert not left.exists()
    assert living.exists()
    mine = folder.socket(3)
    mine.touch()
    folder.clear()
    assert list(folder.path.iterdir()) == [living]


def test_a_socket_of_the_process_before_with_the_same_id_is_taken_away(tmp_path, environ):
    """As in a container, where every daemon may have the same one."""
    LineFolder(environ).socket(0).touch()
    assert not list(LineFolder(environ).path.iterdir())


def test_without_a_folder_of_the_session_it_lies_among_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = LineFolder({})
    assert folder.path == tmp_path / f"atlasd-{os.getuid()}"
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert LineFolder({}).path == folder.path
    assert len(str(folder.socket(999))) - len(str(tmp_path)) < 50


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_folder_that_is_not_the_users_alone_is_refused(tmp_path, environ, kind):
    path = tmp_path / "atlasd"
    match kind:
        case "open to others":
            path.mkdir(mode=0o755)
        case "a link":
            (tmp_path / "elsewhere").mkdir(mode=0o700)
            path.symlink_to(tmp_path / "elsewhere")
        case _:
            path.touch(mode=0o600)
    with pytest.raises(LineFolderError, match="XDG_RUNTIME_DIR"):
        LineFolder(environ)


def test_a_folder_that_somebody_took_away_is_made_again(environ):
    folder = LineFolder(environ)
    folder.path.rmdir()
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.bind(f"ipc://{folder.socket(0)}")
    folder.clear()
    assert not list(folder.path.iterdir())
