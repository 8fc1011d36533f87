"""The learner's process by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

from served import tiny_checkpoint, tiny_config


def test_a_learner_whose_daemon_died_before_it_was_loaded_touches_nothing(tmp_path):
    """Else it would learn for nobody, and lock out the learner of the next daemon."""
    config = tiny_config(
        tiny_checkpoint(tmp_path),
        tmp_path / "none.mp4",
        f"ipc://{tmp_path}/bus",
        "intake.enabled=true",
        f"intake.endpoint=ipc://{tmp_path}/labels",
        f"intake.spool={tmp_path / 'spool'}",
        "learner.enabled=true",
    )
    settings = tmp_path / "config.json"
    settings.write_text(config.model_dump_json())
    learner = [sys.executable, "-m", "atlasd.daemon.learnermain", f"ipc://{tmp_path}/line"]
    daemon = ["sh", "-c", '"$@" $$ <"$0" &', str(settings), *learner]
    process = subprocess.Popen(daemon, stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        _, log = process.communicate(timeout=90)  # ends when the learner has
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert log == ""
    assert not (tmp_path / "spool").exists()
