"""Commands that a test interrupts."""

from __future__ import annotations

import sys

__all__ = ["INTERRUPTIBLE"]

INTERRUPTIBLE = [
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])",
]
"""Prefix of a command that SIGINT ends. A shell makes its background jobs ignore SIGINT, and so does what they start; a test
may run in such a job."""
