"""One thread for all that computes, here and in the processes that tests start.

Networks in tests are so small that threads wait for each other longer than they compute: on two
cores, with other processes at work on them, a step of `tiny` took 20 ms with one thread and over a
second with two. Torch and numpy read this when they are imported, which is after this file is.
"""

import os
import sys

import pytest

os.environ["OMP_NUM_THREADS"] = "1"

pytest_plugins = ["pulse"]  # a sound server of the test's own


@pytest.fixture(autouse=True)
def one_thread():
    """Take back what a test's engine or learner chose for the whole process."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
