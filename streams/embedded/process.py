"""A server process that outlives its starter, found again by a pid file that a recycled pid cannot fool."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar
from urllib.parse import urlsplit

from schemas.errors import ConfigError, NotReady
from schemas.masking import masked
from schemas.settings import Settings
from streams.embedded.patience import WHOLE, Patience

__all__ = [
    "PORT_S",
    "Daemon",
    "Steps",
    "answer_of",
    "driven",
    "exchanged",
    "exit_status",
    "is_alive",
    "listens",
    "polled",
    "port_is_free",
    "python",
    "require_free_ports",
    "riffle",
    "serving",
    "uninterrupted",
    "wait_until",
]

PORT_S = 2.0
"Seconds that the port of a dead process may stay taken."
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"Environment of Python processes that keeps their own Python children from importing from the current folder."
LISTENING = "0A"
"State of a listening socket in proc(5), net/tcp."
TAIL_BYTES = 65_536
REAP_S = 2.0
"Seconds for which a process that was stopped may have threads that have not ended."
T = TypeVar("T")
Steps = Generator[str, None, T]
"Work that waits: after each step it yields what it waits for, and whoever takes the steps pauses, or does other work."


def python(*arguments: str) -> list[str]:
    """A command that runs this Python without the current folder on its path: a `polars.py` there is not imported."""
    return [sys.executable, "-P", *arguments]


def riffle(*arguments: str) -> list[str]:
    """A command that runs `riffle`, wherever its script is."""
    return python("-c", "from agents.cli import main; main()", *arguments)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Defer SIGINT and SIGTERM to the end of the block, because an exception of a handler would separate two steps.

    In a thread other than the main one nothing is deferred, because Python runs no handlers there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def later(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        came.append(number)

    before = {number: signal.signal(number, later) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for reset, handler in before.items():
            signal.signal(reset, signal.SIG_DFL if handler is None else handler)
        for number in came[:1]:
            signal.raise_signal(number)


def listens(pid: int, port: int, *, unknown: bool = True) -> bool:
    """Whether a process listens on TCP `port`; `unknown` where the system does not show it."""
    folder = Path(f"/proc/{pid}")
    try:
        rows = [row.split() for name in ("tcp", "tcp6") for row in (folder / "net" / name).read_text("ascii").splitlines()[1:]]
        sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == LISTENING and int(row[1].rpartition(":")[2], 16) == port}
        handles = list((folder / "fd").iterdir())
    except ProcessLookupError:
        return False
    except (OSError, ValueError, IndexError):
        return unknown and _started_at(pid) is not None
    for handle in handles:
        with contextlib.suppress(OSError):  # it was closed in the meantime
            if str(handle.readlink()) in sockets:
                return True
    return False


def _started_at(pid: int) -> int | None:
    """Start time of a live process in clock ticks since boot (proc(5), field 22); None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    after_name = text.rpartition(")")[2].split()
    return None if after_name[0] == "Z" else int(after_name[19])


def is_alive(pid: int) -> bool:
    """Whether the process exists and has not ended."""
    return _started_at(pid) is not None


@dataclass(frozen=True, slots=True)
class Daemon:
    """One detached process with a pid file and a log."""

    name: str
    pid_file: Path
    log_file: Path

    def pid(self) -> int | None:
        """Pid of the live process that `start` created, else None."""
        return self._running()[0]

    def last_pid(self) -> int:
        """Pid of the process that `start` created last, alive or not; 0 when unknown."""
        try:
            return int(json.loads(self.pid_file.read_text(encoding="utf-8"))["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def address(self) -> str:
        """Listening address of the live process that `start` created; empty when none runs, or it was started without one."""
        return self._running()[1]

    def _running(self) -> tuple[int | None, str]:
        try:
            stored = json.loads(self.pid_file.read_text(encoding="utf-8"))
            pid, started, address = int(stored["pid"]), int(stored["started"]), str(stored.get("address", ""))
        except (OSError, ValueError, KeyError, TypeError):
            return None, ""
        return (pid, address) if _started_at(pid) == started else (None, "")

    def require_address(self, address: str, port: str, host: str = "", certificate: str = "") -> None:
        """Check that a running process listens at `address`, because another server there would be mistaken for it.

        `port`, `host`, `certificate`: the variables that set these parts of the address; a certificate makes it one of TLS.

        Raises:
            ConfigError: it listens elsewhere; the message names the variables that differ, and what to do.
        """
        there = self.address()
        if not there or there == address:
            return
        old, new = (urlsplit(place if "//" in place else f"//{place}") for place in (there, address))
        changed = {port: f"is now {new.port}"} if old.port != new.port else {}
        if old.hostname != new.hostname:
            changed[host or port] = f"is now {address}"
        if old.scheme != new.scheme:
            changed[certificate or port] = "is now set" if new.scheme == "https" else "is no longer set"
        changed = changed or {port: f"is now {address}"}
        what = " and ".join(f"{variable} {state}" for variable, state in changed.items())
        back = ", ".join(changed)
        message = f"{self.name} is already running at {there}, but {what}: `riffle down`, then `riffle up`; or set {back} back"
        raise ConfigError("runs_elsewhere", masked(message), next(iter(changed)))

    def start(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path, address: str = "") -> int:
        """Start `command` in its own session and append its output to the log; `address` is where it will listen."""
        for folder in (self.pid_file.parent, self.log_file.parent, cwd):
            folder.mkdir(parents=True, exist_ok=True)
        # both the process and its pid file, or neither: a process without a pid file could not be stopped
        with uninterrupted(), self.log_file.open("ab") as log:
            process = subprocess.Popen(
                list(command),
                env=dict(environment),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            # it outlives this object on purpose: without a return code its destructor would warn
            process.returncode = 0
            self.record(process.pid, address)
        return process.pid

    def listens(self, port: int) -> bool:
        """Whether the live process that `start` created listens on `port`."""
        pid = self.pid()
        return pid is not None and listens(pid, port)

    def record(self, pid: int, address: str = "") -> None:
        """Write the pid file for `pid`, atomically."""
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.pid_file.with_suffix(".tmp")
        facts = {"pid": pid, "started": _started_at(pid) or 0, "address": address}
        temporary.write_text(json.dumps(facts), encoding="utf-8")
        temporary.replace(self.pid_file)

    def stop(self, grace_s: float = 12.0) -> bool:
        """Terminate, then kill after `grace_s`; returns whether anything ran. Safe to call when nothing does.

        Raises:
            NotReady: it does not end even then (it waits for a disk, for example), or belongs to another user.
        """
        pid = self.pid()
        if pid is not None:
            self.signal(signal.SIGTERM)
            if not wait_until(lambda: self.pid() is None, grace_s):
                self.signal(signal.SIGKILL)
                if not wait_until(lambda: self.pid() is None, 5.0):
                    raise NotReady("not_stopped", f"{self.name} (process {pid}) does not end: stop it, then run this again")
            _reap(pid)
        self.pid_file.unlink(missing_ok=True)
        return pid is not None

    def signal(self, number: int) -> None:
        """Send a signal to the live process that `start` created; does nothing if there is none."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def tail(self, lines: int = 5) -> str:
        """The last lines of the log, logins of URLs masked."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
                return masked("\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:]))
        except OSError:
            return ""

    def await_ready(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `ready()`, as `until_ready`; raises NotReady."""
        driven(self.until_ready(ready, timeout_s, ""))

    def until_ready(self, ready: Callable[[], bool], timeout_s: float, what: str) -> Steps[None]:
        """Wait until `ready()` while the process that `start` created is alive: another server's answer does not count.

        Raises:
            NotReady: the process ended, or made no progress for `timeout_s`; the message shows the end of the log.
        """
        patience = Patience(timeout_s)

        def settled() -> bool:
            pid = self.pid()
            return pid is None or ready() or patience.is_over(pid)

        yield from polled(settled, WHOLE * timeout_s, what)
        if self.pid() is None or not ready():
            state = "ended" if self.pid() is None else f"did not become ready: no progress for {timeout_s:.0f} s"
            raise NotReady("not_started", f"{self.name} {state}; {self.log_file}:\n{self.tail()}")


def exit_status(pid: int, timeout_s: float = 0.0) -> int | None:
    """Exit status of a child of this process, or the negative number of the signal that ended it.

    None while it runs, and for a process that is no child. The system forgets the status once it was requested. Waits up to
    `timeout_s` for a process that is ending while some of its threads remain.
    """
    end = time.monotonic() + timeout_s
    while pid > 0:
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.02)
    return None


def serving(settings: Settings) -> Daemon:
    """The worker that owns the tables of this home, whoever started it; it writes the pid file itself.

    `riffle status` uses it to find whose worker answers at an address.
    """
    return Daemon("the worker", settings.run_dir / "serving.pid", settings.logs_dir / "worker.log")


def _reap(pid: int) -> None:
    exit_status(pid, REAP_S)


def polled(condition: Callable[[], bool], timeout_s: float, what: str) -> Steps[bool]:
    """Check `condition` at each step, for at most `timeout_s`; returns its last answer. `what`: what is waited for."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        yield what
    return True


def driven(steps: Steps[T], step_s: float = 0.05) -> T:
    """Take the steps to their end, with a pause after each; returns their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        time.sleep(step_s)


def wait_until(condition: Callable[[], bool], timeout_s: float, step_s: float = 0.05) -> bool:
    """Poll `condition`; returns its last answer."""
    return driven(polled(condition, timeout_s, ""), step_s)


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a listener could bind to `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def require_free_ports(ports: Mapping[str, int]) -> None:
    """Check that ports, by the variables that set them, are free, or will be soon: a process that was just killed may hold one.

    Raises:
        ConfigError: some are taken; the message names all of them, and the variables to set.
    """
    taken: list[str] = []

    def all_are_free() -> bool:
        taken[:] = [variable for variable, port in ports.items() if not port_is_free(port)]
        return not taken

    if wait_until(all_are_free, PORT_S):
        return
    if len(taken) == 1:
        message = f"port {ports[taken[0]]} is in use by another program: set {taken[0]} to a free one"
    else:
        numbers = ", ".join(str(ports[variable]) for variable in taken)
        message = f"ports {numbers} are in use by other programs: set {', '.join(taken)} to free ones"
    raise ConfigError("port_in_use", message)


def answer_of(
    port: int,
    request: bytes,
    size: int,
    host: str = "127.0.0.1",
    timeout_s: float = 1.0,
    context: ssl.SSLContext | None = None,
) -> bytes | None:
    """Return the result of `exchanged`; None if nothing answers, too."""
    try:
        return exchanged(port, request, size, host, timeout_s, context)
    except OSError:
        return None


def exchanged(
    port: int,
    request: bytes,
    size: int,
    host: str = "127.0.0.1",
    timeout_s: float = 1.0,
    context: ssl.SSLContext | None = None,
) -> bytes | None:
    """Return at most the first `size` bytes that a server on `port` answers to `request`; None if this is the client itself.

    With `size` 0 it only connects and reads nothing. `context`: the connection uses TLS.

    Raises:
        TimeoutError: it does not answer in time.
        OSError: the connection fails.
    """
    with socket.create_connection((host, port), timeout_s) as connection:
        if connection.getsockname() == connection.getpeername():
            # the kernel may give a client the port it connects to, so that it talks to itself (RFC 9293, 3.5, simultaneous
            # open); closing by a reset leaves no TIME-WAIT that would keep the server from its port
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return None
        if context is not None:
            with context.wrap_socket(connection, server_hostname=host) as encrypted:
                encrypted.sendall(request)
                return encrypted.recv(size) if size else b""
        connection.sendall(request)
        return connection.recv(size) if size else b""
