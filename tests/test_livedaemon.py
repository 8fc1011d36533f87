"""A daemon under watch: deaths of its learner that nobody ordered are seen, whatever killed it."""

from __future__ import annotations

import os
import signal

import pytest
from atlasd.tools.faultstrial import trial_config
from atlasd.tools.livedaemon import LiveDaemon

PATIENCE_S = 300.0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_learner_that_the_system_kills_has_died_and_one_that_was_ordered_away_has_not(tmp_path):
    config = trial_config("tiny", 1, tmp_path)
    with LiveDaemon(config, tmp_path, PATIENCE_S) as daemon:
        daemon.until(lambda: daemon.is_at_work, "at work")
        daemon.kill_learner()
        daemon.until(lambda: daemon.is_at_work, "at work again")
        assert (daemon.deaths, len(daemon.learner_back_s)) == (0, 1)
        os.kill(daemon.learner.pid, signal.SIGKILL)
        daemon.until(lambda: daemon.deaths == 1, "seen dead")
