"""Checks that misbehave, for the doctor's tests: each is made in a process of its own."""

import os
import signal
import sys
import threading

from atlasd.tools.findings import Finding


def crashing(_):
    os.kill(os.getpid(), signal.SIGSEGV)


def failing(_):
    raise RuntimeError("no such driver")


def hanging(_):
    threading.Event().wait()


def chatting(case):
    sys.stdout.write("a library's greeting\n")
    os.write(1, b"and its C part's\n")
    return [Finding("chatting", "ok", case.config.model.preset)]
