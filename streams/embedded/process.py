"""A server process that outlives its starter, found again by a pid file that a recycled pid cannot fool."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import ConfigError, NotReady

__all__ = ["Daemon", "answer_of", "port_is_free", "require_free_port", "wait_until"]

PORT_S = 2.0
"Seconds that the port of a process that died may stay taken."


def _started_at(pid: int) -> int | None:
    """Start time of a live process in clock ticks since boot (proc(5), field 22); None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    after_name = text.rpartition(")")[2].split()
    return None if after_name[0] == "Z" else int(after_name[19])


@dataclass(frozen=True, slots=True)
class Daemon:
    """One detached process with a pid file and a log."""

    name: str
    pid_file: Path
    log_file: Path

    def pid(self) -> int | None:
        """Pid of the live process that `start` made, else None."""
        return self._running()[0]

    def address(self) -> str:
        """Where the live process that `start` made listens; empty when none runs, or it was started without one."""
        return self._running()[1]

    def _running(self) -> tuple[int | None, str]:
        try:
            stored = json.loads(self.pid_file.read_text(encoding="utf-8"))
            pid, started, address = int(stored["pid"]), int(stored["started"]), str(stored.get("address", ""))
        except (OSError, ValueError, KeyError, TypeError):
            return None, ""
        return (pid, address) if _started_at(pid) == started else (None, "")

    def require_address(self, address: str, variable: str) -> None:
        """Check that a process that runs listens at `address`: another's there would be taken for it.

        Raises:
            ConfigError: it listens elsewhere; the message names the variable that says so.
        """
        there = self.address()
        if there and there != address:
            message = (
                f"{self.name} runs already, at {there}, and {variable} now says {address}: set it back, or riffle down first"
            )
            raise ConfigError("runs_elsewhere", message, variable)

    def start(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path, address: str = "") -> int:
        """Start `command` in its own session, its output appended to the log; `address` is where it will listen."""
        for folder in (self.pid_file.parent, self.log_file.parent, cwd):
            folder.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                list(command),
                env=dict(environment),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.record(process.pid, address)
        # it outlives this object on purpose: without a return code its destructor would warn
        process.returncode = 0
        return process.pid

    def record(self, pid: int, address: str = "") -> None:
        """Write the pid file for `pid`, atomically."""
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.pid_file.with_suffix(".tmp")
        facts = {"pid": pid, "started": _started_at(pid) or 0, "address": address}
        temporary.write_text(json.dumps(facts), encoding="utf-8")
        temporary.replace(self.pid_file)

    def stop(self, grace_s: float = 12.0) -> bool:
        """Terminate, then kill after `grace_s`; returns whether anything ran. Safe to call when nothing does."""
        pid = self.pid()
        if pid is not None:
            self._signal(pid, signal.SIGTERM)
            if not wait_until(lambda: self.pid() is None, grace_s):
                self._signal(pid, signal.SIGKILL)
                wait_until(lambda: self.pid() is None, 5.0)
            _reap(pid)
        self.pid_file.unlink(missing_ok=True)
        return pid is not None

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    def tail(self, lines: int = 5) -> str:
        """The last lines of the log."""
        try:
            return "\n".join(self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def await_ready(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `ready()`.

        Raises:
            NotReady: the process ended or `timeout_s` passed; the message shows the end of the log.
        """

        def settled() -> bool:
            return ready() or self.pid() is None

        wait_until(settled, timeout_s)
        if not ready():
            state = "ended" if self.pid() is None else f"did not become ready within {timeout_s:.0f} s"
            raise NotReady("not_started", f"{self.name} {state}; {self.log_file}:\n{self.tail()}")


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def wait_until(condition: Callable[[], bool], timeout_s: float, step_s: float = 0.05) -> bool:
    """Poll `condition`; returns its last answer."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(step_s)
    return True


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a listener could bind to `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def require_free_port(port: int, variable: str) -> None:
    """Check that `port` is free, or soon is: a process that was just killed may still hold it.

    Raises:
        ConfigError: it is not; the message names the variable to set.
    """
    if not wait_until(lambda: port_is_free(port), PORT_S):
        raise ConfigError("port_in_use", f"port {port} is in use by another program: set {variable} to a free one")


def answer_of(port: int, request: bytes, size: int, host: str = "127.0.0.1", timeout_s: float = 1.0) -> bytes | None:
    """The first `size` bytes at most that a server on `port` answers to `request`; None when there is none.

    With `size` 0 nothing is read, and a server is only connected to.
    """
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            if connection.getsockname() == connection.getpeername():
                # a port that the kernel hands to clients may be handed to this one, which then talks to itself (RFC 9293,
                # 3.5, simultaneous open); closed by a reset it leaves no TIME-WAIT that would keep the server from its port
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return None
            connection.sendall(request)
            return connection.recv(size) if size else b""
    except OSError:
        return None
