"""Starting the parts of a home, and waiting until they are ready."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import click
from aiokafka.errors import KafkaError
from rich.console import Console

from agents.cli.interrupts import INTERRUPTED
from agents.cli.screen import words
from agents.cli.states import given_to, members_of, other_settings, readiness, told_of
from agents.cli.waiting import step
from agents.processes import (
    RANKING,
    WORKER,
    Role,
    daemon_of,
    daemons,
    free_ports,
    in_order,
    name_of,
    parts_of,
    role_of,
    running,
    settings_of,
    supervisor_daemon,
)
from agents.supervisor import MISCONFIGURED, MODULE, History, histories, supervised, to_arguments
from agents.web.server_tls import check_listener
from schemas.errors import ConfigError, NotReady, RiffleError
from schemas.settings import Settings
from streams.embedded.jars import class_path, has_class_path
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.patience import WHOLE, Patience
from streams.embedded.process import SAFE_PATH, Daemon, port_is_free, python, require_free_ports, wait_until
from streams.embedded.redis import EmbeddedRedis
from streams.kafka.topics import ensure_topics

__all__ = ["Started", "start_stack", "stop_members", "without_work"]

TRIES = 2
"Consecutive ends of a part after which `up` stops waiting for it; the supervisor continues."
SLOWER_S = 5.0
"Seconds beyond `stop_timeout_s`, at which a worker ends itself, after which it is killed."


@dataclass(frozen=True, slots=True)
class Started:
    """What `start_stack` found and did."""

    before: list[str]
    "Names of the processes that ran already."
    stopped: list[str]
    "Names of the processes that were stopped, because fewer were required."


@dataclass(frozen=True, slots=True)
class _Members:
    """Workers and ranking processes that `up` keeps or starts, and those that it stops, by name."""

    ports: Mapping[str, int]
    "Port of each process that is to run."
    new: frozenset[str]
    "Those of them that do not run yet."
    surplus: frozenset[str]


def _members(settings: Settings, wanted: Mapping[Role, int | None]) -> _Members:
    """Choose the processes of each role: those that are there, and worker 1; or exactly the wanted number of each.

    A running process keeps its port, and one that is supervised keeps it if it is free.

    Raises:
        ConfigError: there are not enough free ports.
    """
    there = {name: own.web_port for name, own in members_of(settings).items()}
    names: set[str] = set()
    for role, number in wanted.items():
        kept = {name for name in there if role_of(name) is role}
        names |= kept if number is None else {name_of(role, n) for n in range(1, number + 1)}
    started = set(running(settings)) & names
    ports = {
        name: port
        for name, port in there.items()
        if name in names and (name == WORKER.kind or name in started or port_is_free(port, settings.web_host))
    }
    ports |= free_ports(settings, names - ports.keys(), ports.values())
    return _Members(ports, frozenset(names - started), frozenset(there.keys() - names))


def without_work(settings: Settings, names: Collection[str]) -> list[str]:
    """Describe, for each role of these processes, that there are more of them than partitions; empty if there are not.

    A partition has one owner, and its tasks one ranking process.
    """
    most = settings.partitions
    left = {
        WORKER: "own no users, though they answer over HTTP and may hold standbys",
        RANKING: "rank nothing until another one ends",
    }
    numbers = {role: sum(role_of(name) is role for name in names) for role in left}
    return [
        f"{number} {role.title}{'es' if role is RANKING else 's'} for {most} partitions (RIFFLE_PARTITIONS): "
        f"{number - most} of them {left[role]}"
        for role, number in numbers.items()
        if number > most
    ]


def _wanted(settings: Settings, members: _Members | None) -> dict[str, int]:
    """Return the parts that `up` starts, with their ports; raises ConfigError if the encoder is required and cannot run."""
    from agents.cli.encode import NO_TORCH, can_encode

    names = {"kafka": settings.embedded_kafka, "redis": settings.embedded_redis}
    if members is not None and settings.encoder == "on" and not can_encode():
        raise ConfigError("no_torch", f"RIFFLE_ENCODER is on, but {NO_TORCH}", "encoder")
    names["encoder"] = members is not None and settings.encoder != "off" and can_encode()
    ports = {} if members is None else {**members.ports, WORKER.kind: 0}
    return {**{name: 0 for name, wanted in names.items() if wanted}, **ports}


def _require_same_settings(settings: Settings, name: str = WORKER.kind, port: int = 0) -> None:
    """Check that a running worker or ranking process has these settings.

    One that ends repeatedly is accepted, even while it runs, because the supervisor starts the next one with these settings.
    One that does not answer yet is accepted too.

    Raises:
        ConfigError: it listens elsewhere, or answers with other settings; the message names the variables.
    """
    own = settings_of(settings, name, port)
    answers = "web" not in (readiness(own).get("reasons") or {})
    if histories(settings).get(name, History()).in_row >= (TRIES if answers else 1):
        return
    daemon_of(settings, name).require_address(own.web, "RIFFLE_WEB_PORT", "RIFFLE_WEB_HOST", "RIFFLE_HTTP_CERT_FILE")
    names = other_settings(own)
    if names == ["RIFFLE_RANKING"] and answers:
        message = "with the first ranking process, or without any, workers must start anew: `riffle down`, then this command"
        raise ConfigError("other_settings", message)
    if names and answers:
        raise ConfigError("other_settings", told_of(names))


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Hold the home's lock of `up`; raises NotReady if another `up` holds it."""
    with (settings.home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise NotReady("busy", f"another `riffle up` is under way in {settings.home}: wait until it has ended") from exc
        yield


def start_stack(
    settings: Settings,
    console: Console,
    *,
    with_worker: bool = True,
    workers: int | None = None,
    ranking: int | None = None,
) -> Started:
    """Start the parts that do not run yet, and wait until they are ready.

    A supervisor starts them, and restarts parts that end by themselves until `riffle down`. `workers`: number of workers; more
    are started, or the last ones are stopped, one after another. None: those that run, at least one. `ranking`: the same for
    ranking processes, of which there may be none; if there are some, workers leave the ranking to them.

    Raises:
        RiffleError: ports are taken (the message names all), or a worker runs with other settings, and nothing was started.
            Or a part did not start: the message names the reason and the running parts.
    """
    settings.make_home()
    with _alone(settings):
        return _start_stack(settings, console, with_worker=with_worker, workers=workers, ranking=ranking)


def _start_stack(
    settings: Settings, console: Console, *, with_worker: bool, workers: int | None, ranking: int | None
) -> Started:
    if with_worker:
        check_listener(settings.http, settings.web_host)
    before = _running(settings)
    servers: list[EmbeddedKafka | EmbeddedRedis] = []
    servers += [EmbeddedKafka(settings)] if settings.embedded_kafka else []
    servers += [EmbeddedRedis(settings)] if settings.embedded_redis else []
    ports = {variable: port for server in servers for variable, port in server.ports_to_bind().items()}
    chosen = _members(settings, {WORKER: workers, RANKING: ranking}) if with_worker else None
    if chosen is not None and any(role_of(name) is RANKING for name in chosen.ports):
        settings = replace(settings, ranking="remote")
    if chosen is not None and WORKER.kind in chosen.new:
        ports["RIFFLE_WEB_PORT"] = settings.web_port
    require_free_ports(ports)
    for server in servers:
        server.check()
    if chosen is not None:
        for name in in_order(chosen.ports.keys() - chosen.new):
            _require_same_settings(settings, name, chosen.ports[name])
    parts = _wanted(settings, chosen)
    try:
        stopped = _start(settings, console, parts, chosen.surplus if chosen is not None else ())
    except KeyboardInterrupt:
        # after an interrupt nothing more must be started in the background
        supervisor_daemon(settings).stop()
        running = _running(settings)
        left = f"still running: {', '.join(running)}; `riffle down` stops them" if running else "nothing is running"
        click.echo(f"riffle: interrupted; {left}", err=True)
        sys.exit(INTERRUPTED)
    except (RiffleError, KafkaError) as exc:
        running = _running(settings)
        if not running:
            raise
        why = exc.message if isinstance(exc, RiffleError) else repr(exc)
        raise NotReady("not_started", f"{why}\nstill running: {', '.join(running)}; `riffle down` stops them") from exc
    return Started([name for name in before if name != supervisor_daemon(settings).name], stopped)


def _start(settings: Settings, console: Console, parts: Mapping[str, int], surplus: Collection[str]) -> list[str]:
    """Start the parts and wait until they are ready; returns the names of surplus ones, which are stopped."""
    began_ms = round(time.time() * 1000)
    if "kafka" in parts and not has_class_path(settings.cache):
        with step(console, "fetching Kafka's jars (half a minute, once)"):
            class_path(settings.cache)
    if "kafka" not in parts:  # nothing is started for a broker that does not answer
        asyncio.run(ensure_topics(settings))
    _supervise(settings, parts, surplus)
    kafka, redis = EmbeddedKafka(settings), EmbeddedRedis(settings)
    if "kafka" in parts:
        _await(settings, console, "kafka", began_ms, kafka.answers, lambda: _doing(settings, "kafka"))
    if "redis" in parts:
        _await(settings, console, "redis", began_ms, redis.answers, lambda: _doing(settings, "redis"))
    if "kafka" in parts:
        asyncio.run(ensure_topics(settings))
    for name in in_order(parts):
        if role_of(name) is None:
            continue
        own = settings_of(settings, name, parts[name])
        _await(
            settings,
            console,
            name,
            began_ms,
            lambda own=own: bool(readiness(own)["ready"]),  # type: ignore[misc]
            lambda own=own, name=name: _doing(settings, name) if daemon_of(settings, name).pid() is None else _reasons(own),  # type: ignore[misc]
        )
        _require_same_settings(settings, name, parts[name])  # again, because it may still have been starting before
    return stop_members(settings, surplus)


def stop_members(settings: Settings, names: Collection[str]) -> list[str]:
    """Stop workers and ranking processes; returns the names of those that ran.

    Workers come first, then the last of each role, one after another, so that each hands its partitions over.
    """
    found = [daemon_of(settings, name) for name in reversed(in_order(names))]
    return [daemon.name for daemon in found if daemon.stop(settings.stop_timeout_s + SLOWER_S)]


@contextmanager
def _one_at_a_time(settings: Settings) -> Iterator[None]:
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    with (settings.run_dir / "supervisor.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _supervise(settings: Settings, parts: Mapping[str, int], surplus: Collection[str] = ()) -> None:
    """Run a supervisor with these settings for these parts and those of a previous supervisor; the parts keep running.

    `surplus`: parts that are not supervised any more.
    """
    daemon = supervisor_daemon(settings)
    with _one_at_a_time(settings):
        pid = daemon.pid()
        there, environment = supervised(settings), {} if pid is None else given_to(pid)
        merged = {name: port for name, port in {**there, **parts}.items() if name not in surplus}
        wanted = settings.environment(secrets=True)
        if there == merged and {name: environment.get(name) for name in wanted} == wanted:
            daemon.signal(signal.SIGUSR1)  # parts that wait for a restart are started now
            return
        daemon.stop()
        if parts_of(settings, merged):
            command = python("-m", MODULE, *to_arguments(merged))
            daemon.start(command, {**os.environ, **settings.environment(secrets=True), **SAFE_PATH}, settings.home)


def _await(
    settings: Settings,
    console: Console,
    name: str,
    began_ms: int,
    ready: Callable[[], bool],
    why: Callable[[], str] = lambda: "it does not answer yet",
) -> None:
    """Wait until a part is ready, as long as it makes progress. Prints nothing if it is ready at once.

    `why`: describes why it is not ready, for the screen.

    Raises:
        NotReady: it ended `TRIES` times since `began_ms`, it can never start, nothing supervises it, or it makes no progress.
    """
    daemon, supervisor = _daemons(settings)[name], supervisor_daemon(settings)
    limit_s = settings.start_timeout_s
    patience = Patience(limit_s)

    def failure() -> str:
        history = histories(settings).get(name, History())
        if supervisor.pid() is None:
            return f"the supervisor has ended; {supervisor.log_file}:\n{supervisor.tail()}"
        if history.ended_at is None or history.ended_at < began_ms or history.next_try_at is None:
            return ""
        if history.in_row < TRIES and history.exit != MISCONFIGURED:
            return ""
        return f"{daemon.name} ended; {daemon.log_file}:\n{history.why if history.exit is None else daemon.tail()}"

    if ready():
        return
    with step(console, f"waiting for {daemon.name}") as show:

        def settled() -> bool:
            if ready() or failure():
                return True
            reason = why()
            show(f"{reason}; log: {daemon.log_file}")
            return patience.is_over(daemon.pid(), reason)

        wait_until(settled, WHOLE * limit_s)
        if not ready():
            raise NotReady("not_started", failure() or _late(daemon, limit_s, why()))


def _late(daemon: Daemon, limit_s: float, why: str) -> str:
    """Format a message about a part that runs, and is not ready."""
    said = daemon.tail() or "(nothing so far)"
    return (
        f"{daemon.name} is not ready, and made no progress for {limit_s:.0f} s (RIFFLE_START_TIMEOUT_S) or kept on for"
        f" {WHOLE} times as long: {why}; it may still become so, see `riffle status`\n{daemon.log_file}:\n{said}"
    )


def _doing(settings: Settings, name: str) -> str:
    """Describe what the start of a part waits for."""
    return histories(settings).get(name, History()).doing or "it does not answer yet"


def _reasons(own: Settings) -> str:
    """Describe why a worker is not ready."""
    found = readiness(own).get("reasons") or {}
    if not found or "web" in found:
        return "it does not answer yet"
    return ", ".join(f"{name}: {words(reason)}" for name, reason in found.items())


def _daemons(settings: Settings) -> dict[str, Daemon]:
    """Return the processes of this home; see `agents.processes.daemons`."""
    return daemons(settings, members_of(settings))


def _running(settings: Settings) -> list[str]:
    return [daemon.name for daemon in _daemons(settings).values() if daemon.pid() is not None]
