"""Processes of other homes on this machine: which home the process that listens on a port belongs to."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from streams.embedded.process import Daemon, listens

__all__ = ["home_of", "listener_of"]

PIDS = ("kafka.pid", "redis.pid", "worker.pid", "serving.pid", "kafka-controller.pid")
"Names of the files in `run` of a home that name its listening processes."


def listener_of(port: int) -> int | None:
    """Return the process that listens on TCP `port` on this machine; None if there is none, or it is not shown."""
    return next((pid for pid in _pids() if listens(pid, port, unknown=False)), None)


def home_of(pid: int) -> Path | None:
    """Return the home that a process belongs to, if it is a part of one: its pid file is there."""
    for home in _homes_named_by(pid):
        with contextlib.suppress(OSError):
            if any(Daemon("", home / "run" / name, home).pid() == pid for name in PIDS):
                return home
    return None


def _homes_named_by(pid: int) -> list[Path]:
    """Return folders that may be the home of a process: by its environment, and by the folder in which it works."""
    folder = Path(f"/proc/{pid}")
    try:
        works_in = (folder / "cwd").readlink()
        environment = dict(entry.partition(b"=")[::2] for entry in (folder / "environ").read_bytes().split(b"\0"))
    except OSError:
        return []
    named = environment.get(b"RIFFLE_HOME")
    # servers work in data/NAME of their home, workers in the home
    return [*([works_in / os.fsdecode(named)] if named else []), works_in, *works_in.parents[:2]]


def _pids() -> list[int]:
    try:
        return sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
    except OSError:
        return []
