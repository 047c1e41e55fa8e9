"""A process that ends when the one that started it does, however that ended."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have Linux end this process with the one that started it, unless that was a user's shell.

    A server that is killed cannot tell its engine, which would keep the device's memory from the next one.
    """
    if multiprocessing.parent_process() is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
