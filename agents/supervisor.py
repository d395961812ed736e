"""`python -m agents.supervisor PART[=PORT]…`: starts the parts of an instance on one machine, and restarts parts that end.

`riffle up` runs it as a separate process; a cluster has its own supervision. Parts outlive it: `riffle down` stops it before
them, and the next supervisor takes over the running parts. Its findings are stored in `run/supervisor.json`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from agents.processes import ENDING_S, in_order, parts_of, supervisor_daemon
from schemas.errors import RiffleError
from schemas.settings import Settings
from streams.embedded.process import Steps, exit_status, is_alive, wait_until
from streams.logs import log_to_stderr

__all__ = [
    "MISCONFIGURED",
    "MODULE",
    "History",
    "Part",
    "Supervisor",
    "backoff_s",
    "from_arguments",
    "histories",
    "state_file",
    "supervised",
    "to_arguments",
]

log = logging.getLogger(__name__)

MODULE = "agents.supervisor"
FIRST_S, MOST_S = 1.0, 60.0
"Seconds before the first restart, doubled with each further one, and their maximum."
STEADY_S = 60.0
"Seconds after which a running part counts as recovered: its next end is then the first again."
LOOK_S, ASK_S, AFTER_ERROR_S = 0.25, 5.0, 10.0
LEAST_ASKED = 3
MISCONFIGURED = os.EX_CONFIG
"Exit status of a part whose settings cannot work. It is retried after the longest wait, in case they were corrected."
WORDS = 300
"Maximum characters of a reason."


def backoff_s(in_row: int, status: int | None = None) -> float:
    """Return the seconds to wait before a part is restarted after its `in_row`th consecutive end (from 1 on)."""
    if status == MISCONFIGURED:
        return MOST_S
    return min(MOST_S, FIRST_S * 2.0 ** min(in_row - 1, 30))


@dataclass(slots=True)
class History:
    """Restart history of one part. Times are epoch milliseconds."""

    restarts: int = 0
    "Restarts after the part had ended by itself, since `riffle up` after a `riffle down`."
    in_row: int = 0
    "Ends since it last ran for `STEADY_S`; 0: it runs well."
    ended_at: int | None = None
    "Time at which it last ended by itself, or could not be started."
    exit: int | None = None
    "Exit status at that time, negative for a signal; None if unknown, or if it could not be started at all."
    why: str = ""
    "The signal that ended it, else the end of its log, or the reason why it could not be started."
    next_try_at: int | None = None
    "Time of the next restart; None while it runs, and while it is being started."
    doing: str = ""
    "What its start waits for; empty while it runs, and until its next try."
    doing_since: int | None = None
    "Time at which its start began, or was due."

    def to_json(self) -> dict[str, Any]:
        """The stored form, which `riffle status --json` shows too."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: object) -> History:
        """Restore a history from the result of `to_json`; an empty history from anything else."""
        try:
            return cls(**stored)  # type: ignore[arg-type]
        except TypeError:
            return cls()


class Part(Protocol):
    """A part that is started and watched."""

    @property
    def name(self) -> str:
        """Its name: one of `KINDS`, with a number from the second worker on."""

    @property
    def needs(self) -> Sequence[str]:
        """Names of the parts that must run before it is started."""

    def pid(self) -> int | None:
        """Pid of the live process; None when there is none."""

    def start(self) -> Steps[int | None]:
        """Start it step by step; returns the pid. Other parts are looked at between the steps. Raises RiffleError, OSError."""

    def answers(self) -> bool | None:
        """Whether it answers that it is alive; None if it cannot be asked."""

    def exit_status(self) -> int | None:
        """Exit status of the process that was last started; None if unknown."""

    def last_words(self) -> str:
        """The end of its log."""


@dataclass(slots=True)
class _Watched:
    part: Part
    history: History
    process: int | None = None
    "Pid at the last look."
    since: float = 0.0
    "Time from which it ran, by `clock`."
    due: float = 0.0
    "Earliest time of a restart, by `clock`."
    asked: float = float("-inf")
    "Time at which it was last asked whether it is alive, by `clock`."
    answered: bool = False
    "Whether it has answered since it started."
    silent: list[float] = field(default_factory=list)
    "Times at which it did not answer, since it last did."
    hung: str = ""
    "Why it was killed; empty otherwise."
    starting: Steps[int | None] | None = None
    "The steps of its start that is under way."
    again: bool = False
    "Whether its next start is a restart, because it has ended by itself."


@dataclass
class Supervisor:
    """Supervises parts. `look` is called every `LOOK_S`; nothing else changes a history."""

    parts: Sequence[Part]
    write: Callable[[Mapping[str, History]], None]
    "Called after a change, with all histories by the name of the part."
    before: Mapping[str, History] = field(default_factory=dict)
    "Histories from an earlier supervisor of the same parts."
    patience_s: float = 60.0
    "Seconds for which a part does not answer after which it is killed, to be started anew."
    kill: Callable[[int, int], None] = os.kill
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._watched = {part.name: _Watched(part, self.before.get(part.name, History())) for part in self.parts}
        for watched in self._watched.values():
            watched.history.in_row, watched.history.next_try_at = 0, None
            watched.history.doing, watched.history.doing_since = "", None
        self._changed = True

    def look(self) -> None:
        """Record ended parts and start those that are due, in the order of `parts`."""
        for watched in self._watched.values():
            self._look_at(watched)
        if self._changed:
            self.write({name: watched.history for name, watched in self._watched.items()})
            self._changed = False

    def reap(self) -> None:
        """Collect ended child processes that are no part's: those whose last thread ended after they were waited for."""
        if any(watched.starting is not None for watched in self._watched.values()):
            return  # it waits for its own
        for pid in _children() - {watched.process for watched in self._watched.values()}:
            exit_status(pid)

    def leave(self) -> None:
        """Give up starts that are under way. What they have begun is ended, or is found by the next supervisor."""
        for watched in self._watched.values():
            if watched.starting is not None:
                watched.starting.close()

    def try_now(self) -> None:
        """Start waiting parts at the next look, because the cause may be fixed."""
        for watched in self._watched.values():
            watched.due = 0.0

    def end_parts(self) -> None:
        """End the running parts. Nothing could find them any more, because the folder with the process ids was removed."""
        pids = {watched.process for watched in self._watched.values() if watched.process is not None} | _children()
        for number in (signal.SIGTERM, signal.SIGKILL):  # without its folder Redis ignores the first
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            wait_until(lambda: not any(is_alive(pid) for pid in pids), ENDING_S)

    def _look_at(self, watched: _Watched) -> None:
        if watched.starting is not None:
            self._go_on(watched, watched.starting)
            return
        now, history, pid = self.clock(), watched.history, watched.part.pid()
        if pid is not None:
            if watched.process != pid:  # one that ran before this supervisor
                watched.process, watched.since, watched.answered = pid, now, False
                self._changed |= history.next_try_at is not None or bool(history.doing)
                history.next_try_at, history.doing, history.doing_since = None, "", None
            if history.in_row and now - watched.since >= STEADY_S:
                history.in_row, self._changed = 0, True
            self._ask(watched, pid)
            return
        if watched.process is not None:
            status = watched.part.exit_status()
            if now - watched.since >= STEADY_S:
                history.in_row = 0
            self._ended(watched, status, watched.hung or _signal(status) or watched.part.last_words())
        if now < watched.due:
            return
        if down := [name for name in watched.part.needs if self._is_down(name)]:
            self._say(watched, f"waiting for {', '.join(down)}")
            return
        history.next_try_at = None
        watched.starting = watched.part.start()
        self._go_on(watched, watched.starting)

    def _ask(self, watched: _Watched, pid: int) -> None:
        """Kill a part that has answered before, and did not for `patience_s`, asked several times.

        One that never answered is still starting, or cannot: `riffle up` shows its log. Several times, and not counting those
        before a pause of this process.
        """
        now = self.clock()
        if now - watched.asked < ASK_S:
            return
        if now - watched.asked > LEAST_ASKED * ASK_S:
            watched.silent = []
        watched.asked = now
        alive = watched.part.answers()
        if alive is not False:
            watched.answered |= alive is True
            watched.silent = []
            return
        watched.silent.append(now)
        silent_s = now - watched.silent[0]
        if watched.answered and len(watched.silent) >= LEAST_ASKED and silent_s >= self.patience_s:
            watched.hung = f"killed, because it did not answer for {silent_s:.0f} s (`/healthz`)"
            log.error("%s, process %s, is %s", watched.part.name, pid, watched.hung)
            with contextlib.suppress(ProcessLookupError):
                self.kill(pid, signal.SIGKILL)

    def _is_down(self, name: str) -> bool:
        watched = self._watched.get(name)
        return watched is not None and (watched.starting is not None or watched.part.pid() is None)

    def _say(self, watched: _Watched, doing: str) -> None:
        """Record what a start waits for."""
        history = watched.history
        if history.doing != doing:
            history.doing_since = history.doing_since or round(self.wall() * 1000)
            history.doing, history.next_try_at, self._changed = doing, None, True
            log.info("%s is not started yet: %s", watched.part.name, doing)

    def _go_on(self, watched: _Watched, steps: Steps[int | None]) -> None:
        """Take one step of a start."""
        try:
            self._say(watched, next(steps))
            return
        except StopIteration as end:
            watched.process = end.value
        except Exception as exc:
            if not isinstance(exc, RiffleError | OSError):
                log.exception("the start of %s failed", watched.part.name)
            self._ended(watched, watched.part.exit_status(), _words_of(exc))
            return
        history, watched.starting = watched.history, None
        watched.since, history.next_try_at, self._changed = self.clock(), None, True
        history.doing, history.doing_since = "", None
        watched.answered, watched.silent, watched.hung = False, [], ""
        history.restarts += watched.again
        watched.again = False
        log.info("%s started, process %s", watched.part.name, watched.process)

    def _ended(self, watched: _Watched, status: int | None, why: str) -> None:
        history, watched.starting, watched.again = watched.history, None, True
        history.doing, history.doing_since = "", None
        history.in_row += 1
        wait_s = backoff_s(history.in_row, status)
        watched.process, watched.due = None, self.clock() + wait_s
        history.ended_at, history.exit, history.why = round(self.wall() * 1000), status, why[-WORDS:]
        history.next_try_at = history.ended_at + round(wait_s * 1000)
        self._changed = True
        log.warning("%s ended, exit status %s; next try in %.0f s: %s", watched.part.name, status, wait_s, history.why)


def _words_of(exc: Exception) -> str:
    if isinstance(exc, RiffleError):
        return exc.message
    return str(exc) if isinstance(exc, OSError) else f"{type(exc).__name__}: {exc}"


def _signal(status: int | None) -> str:
    """Name of the signal that ended a process, which is missing from its log; empty without one."""
    if status is None or status >= 0:
        return ""
    try:
        return f"ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"ended by signal {-status}"


def _children() -> set[int]:
    """Pids of child processes, including those not recorded yet, such as one that is being started."""
    try:
        return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()))
    except OSError:
        return set()


def state_file(settings: Settings) -> Path:
    """Path of the supervisor's state file."""
    return settings.run_dir / "supervisor.json"


def histories(settings: Settings) -> dict[str, History]:
    """The supervisor's last histories, by the name of the part; empty without a supervisor, and after `riffle down`."""
    try:
        stored = json.loads(state_file(settings).read_text(encoding="utf-8"))
        return {name: History.from_json(stored[name]) for name in in_order(stored.keys())}
    except (OSError, ValueError, AttributeError):
        return {}


def supervised(settings: Settings) -> dict[str, int]:
    """Return the parts of this home's running supervisor, each with the port of its HTTP interface (0: see `parts_of`)."""
    pid = supervisor_daemon(settings).pid()
    try:
        arguments = [] if pid is None else Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (OSError, UnicodeDecodeError):
        return {}
    return from_arguments(arguments[arguments.index(MODULE) + 1 :]) if MODULE in arguments else {}


def to_arguments(web_ports: Mapping[str, int]) -> list[str]:
    """Return the arguments of a supervisor of these parts: `NAME`, or `NAME=PORT` for a port other than 0."""
    return [f"{name}={web_ports[name]}" if web_ports[name] else name for name in in_order(web_ports)]


def from_arguments(arguments: Sequence[str]) -> dict[str, int]:
    """Return the parts and ports of `to_arguments`, in the order in which they start; other arguments are ignored."""
    pairs = [argument.partition("=") for argument in arguments]
    ports = {name: int(port or 0) for name, _, port in pairs if not port or (port.isascii() and port.isdigit())}
    return {name: ports[name] for name in in_order(ports)}


def _write(settings: Settings, found: Mapping[str, History]) -> None:
    file = state_file(settings)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps({name: history.to_json() for name, history in found.items()}), encoding="utf-8")
    temporary.replace(file)


def main() -> None:
    """Supervise the parts in the arguments until SIGTERM or until another supervisor takes over. The parts keep running."""
    settings = Settings.from_env()
    log_to_stderr(settings.log_level)
    parts = parts_of(settings, from_arguments(sys.argv[1:]))
    supervisor = Supervisor(parts, lambda found: _write(settings, found), histories(settings), settings.stuck_s)

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGUSR1, lambda *_: supervisor.try_now())
    try:
        _supervise(settings, supervisor)
    finally:
        supervisor.leave()


def _supervise(settings: Settings, supervisor: Supervisor) -> None:
    own, named = supervisor_daemon(settings), False
    while True:
        # the starter of this process writes the pid file; without it, parts that start here could not be found again
        here = own.pid() == os.getpid()
        if named and not here:
            if not settings.run_dir.exists():
                log.error("%s was removed: its parts are stopped", settings.run_dir)
                supervisor.end_parts()
            return
        named |= here
        if not named:
            time.sleep(LOOK_S)
            continue
        try:
            supervisor.look()
            supervisor.reap()
        except Exception:
            log.exception("supervision continues in %.0f s", AFTER_ERROR_S)
            time.sleep(AFTER_ERROR_S)
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main()
