"""Commands that run the stack."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from aiokafka.errors import KafkaError
from rich.console import Console

from agents.cli.asking import ask
from agents.cli.screen import plain_console, print_table, words
from agents.cli.waiting import INTERRUPTED, step
from agents.supervisor import (
    MISCONFIGURED,
    PARTS,
    History,
    encoder_daemon,
    histories,
    parts_of,
    state_file,
    supervisor_daemon,
    worker_daemon,
)
from schemas.errors import ConfigError, NotReady, RiffleError
from schemas.masking import masked_url
from schemas.settings import Settings
from streams.embedded.kafka import EmbeddedKafka, broker_answers, class_path, has_class_path
from streams.embedded.process import SAFE_PATH, Daemon, answer_of, listens, python, require_free_ports, serving, wait_until
from streams.embedded.redis import EmbeddedRedis
from streams.kafka import connect
from streams.kafka.topics import ensure_topics, partition_counts

__all__ = [
    "down",
    "facts_of",
    "kafka_answers",
    "other_settings",
    "readiness",
    "restarts_of",
    "start_stack",
    "status",
    "told_of",
    "up",
    "web_of",
    "worker",
    "worker_daemon",
]

WORKER_S, KAFKA_S, REDIS_S = 60.0, 90.0, 20.0
"Seconds that each may take until it is ready."
TRIES = 2
"Consecutive ends of a part after which `up` stops waiting for it; the supervisor continues."


def _wanted(settings: Settings, *, with_worker: bool) -> list[str]:
    """Return the names of the parts that `up` starts; raises ConfigError if the encoder is required and cannot run."""
    from agents.cli.encode import NO_TORCH, can_encode

    names = {"kafka": settings.embedded_kafka, "redis": settings.embedded_redis, "worker": with_worker}
    if with_worker and settings.encoder == "on" and not can_encode():
        raise ConfigError("no_torch", f"RIFFLE_ENCODER is on, but {NO_TORCH}", "encoder")
    names["encoder"] = with_worker and settings.encoder != "off" and can_encode()
    return [name for name, wanted in names.items() if wanted]


def _silent(reason: str) -> dict[str, Any]:
    return {"ready": False, "release": None, "reasons": {"web": reason}}


def web_of(settings: Settings) -> str:
    """Return the address of this home's worker, or the address in the settings if none runs."""
    return worker_daemon(settings).address() or serving(settings).address() or settings.web


def readiness(settings: Settings) -> dict[str, Any]:
    """Return the /readyz response of this home's worker; `{"ready": False}` if none or another home's worker answers."""
    web = web_of(settings)
    place = urlsplit(web)
    port = place.port or 80
    # check first whether a server listens, because a client that polls a port in its own range may connect to itself
    if place.hostname is None or answer_of(port, b"", 0, place.hostname, 2.0) is None:
        return _silent(f"{web} does not answer")
    pids = [pid for daemon in (worker_daemon(settings), serving(settings)) if (pid := daemon.pid()) is not None]
    if not any(listens(pid, port) for pid in pids):
        return _silent(f"{web} is the address of another program, or of the worker of a RIFFLE_HOME other than {settings.home}")
    try:
        found = ask(f"{web}/readyz", 2.0).body
    except NotReady as exc:
        return _silent(exc.message)
    return dict(found) if isinstance(found, dict) and isinstance(found.get("ready"), bool) else _silent(f"{web} shows no state")


def other_settings(settings: Settings) -> list[str]:
    """Return the variables in which the worker that `up` has started differs from these settings; none if none runs.

    `RIFFLE_ENCODER` only affects `up`, not the worker.
    """
    pid = worker_daemon(settings).pid()
    there = {} if pid is None else _given_to(pid)
    wanted = settings.environment()
    return sorted(name for name in there.keys() & wanted.keys() - {"RIFFLE_ENCODER"} if there[name] != wanted[name])


def _require_same_settings(settings: Settings) -> None:
    """Check that a running worker has these settings.

    A worker that ends repeatedly is accepted, even while it runs, because the supervisor starts the next one with these
    settings. A worker that does not answer yet is accepted too.

    Raises:
        ConfigError: it listens elsewhere, or answers with other settings; the message names the variables.
    """
    answers = "web" not in (readiness(settings).get("reasons") or {})
    if histories(settings).get("worker", History()).in_row >= (TRIES if answers else 1):
        return
    worker_daemon(settings).require_address(settings.web, "RIFFLE_WEB_PORT")
    names = other_settings(settings)
    if names and answers:
        raise ConfigError("other_settings", told_of(names))


def told_of(names: list[str]) -> str:
    """Format a message about the variables of `other_settings`, without their values; empty if there are none."""
    return f"the worker runs with other settings ({', '.join(names)}): `riffle down`, then `riffle up`" if names else ""


def kafka_answers(settings: Settings) -> bool:
    """Return whether this instance's broker, or one of the servers of `bootstrap`, answers a request now."""
    if settings.embedded_kafka:
        return EmbeddedKafka(settings).answers()
    places = (server.rpartition(":") for server in settings.bootstrap_servers.split(","))
    context = connect.tls(settings.kafka)
    return any(broker_answers(host, int(port), context=context) for host, _, port in places)


def start_stack(settings: Settings, console: Console, *, with_worker: bool = True) -> list[str]:
    """Start the parts that do not run yet, and wait until they are ready; returns the names of those that ran already.

    A supervisor starts them, and restarts parts that end by themselves until `riffle down`.

    Raises:
        RiffleError: ports are taken (the message names all), or the worker runs with other settings, and nothing was started.
            Or a part did not start: the message names the reason and the running parts.
    """
    daemons, before = _daemons(settings), _running(settings)
    settings.make_home()
    servers: list[EmbeddedKafka | EmbeddedRedis] = []
    servers += [EmbeddedKafka(settings)] if settings.embedded_kafka else []
    servers += [EmbeddedRedis(settings)] if settings.embedded_redis else []
    ports = {variable: port for server in servers for variable, port in server.ports_to_bind().items()}
    worker_runs = daemons["worker"].pid() is not None
    if with_worker and not worker_runs:
        ports["RIFFLE_WEB_PORT"] = settings.web_port
    require_free_ports(ports)
    for server in servers:
        server.check()
    if with_worker and worker_runs:
        _require_same_settings(settings)
    names = _wanted(settings, with_worker=with_worker)
    try:
        _start(settings, console, names)
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
    return [name for name in before if name != supervisor_daemon(settings).name]


def _start(settings: Settings, console: Console, names: list[str]) -> None:
    began_ms = round(time.time() * 1000)
    if "kafka" in names and not has_class_path(settings.cache):
        with step(console, "fetching Kafka's jars (half a minute, once)"):
            class_path(settings.cache)
    if "kafka" not in names:  # nothing is started for a broker that does not answer
        asyncio.run(ensure_topics(settings))
    _supervise(settings, names)
    kafka, redis = EmbeddedKafka(settings), EmbeddedRedis(settings)
    if "kafka" in names:
        _await(settings, console, "kafka", began_ms, kafka.answers, KAFKA_S)
    if "redis" in names:
        _await(settings, console, "redis", began_ms, redis.answers, REDIS_S)
    if "kafka" in names:
        asyncio.run(ensure_topics(settings))
    if "worker" in names:
        _await(settings, console, "worker", began_ms, lambda: bool(readiness(settings)["ready"]), WORKER_S)
        _require_same_settings(settings)  # again, because the worker may still have been starting before


@contextmanager
def _one_at_a_time(settings: Settings) -> Iterator[None]:
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    with (settings.run_dir / "supervisor.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _supervise(settings: Settings, names: list[str]) -> None:
    """Run a supervisor with these settings for these parts and those of a previous supervisor; the parts keep running."""
    daemon = supervisor_daemon(settings)
    with _one_at_a_time(settings):
        pid = daemon.pid()
        there, environment = _supervised(pid) if pid is not None else ([], {})
        names = [name for name in PARTS if name in names or name in there]
        wanted = settings.environment(secrets=True)
        if there == names and {name: environment.get(name) for name in wanted} == wanted:
            daemon.signal(signal.SIGUSR1)  # parts that wait for a restart are started now
            return
        daemon.stop()
        if parts_of(settings, names):
            command = python("-m", "agents.supervisor", *names)
            daemon.start(command, {**os.environ, **settings.environment(secrets=True), **SAFE_PATH}, settings.home)


def _supervised(pid: int) -> tuple[list[str], dict[str, str]]:
    """Return the parts of a running supervisor, and the settings with which it was started."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return [], {}
    return [name for name in PARTS if name.encode() in arguments], _given_to(pid)


def _given_to(pid: int) -> dict[str, str]:
    """Return the `RIFFLE_*` variables with which a process was started; none if it has ended or they cannot be read."""
    try:
        pairs = [entry.partition(b"=") for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    except OSError:
        return {}
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs if name.startswith(b"RIFFLE_")}


def _await(settings: Settings, console: Console, name: str, began_ms: int, ready: Callable[[], bool], timeout_s: float) -> None:
    """Wait until a part is ready. Prints nothing if it is ready at once.

    Raises:
        NotReady: it ended `TRIES` times since `began_ms`, it can never start, nothing supervises it, or the time is over.
    """
    daemon, supervisor = _daemons(settings)[name], supervisor_daemon(settings)

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
    with step(console, f"waiting for {daemon.name}"):
        wait_until(lambda: ready() or bool(failure()), timeout_s)
        if not ready():
            late = f"{daemon.name} did not become ready within {timeout_s:.0f} s; {daemon.log_file}:\n{daemon.tail()}"
            raise NotReady("not_started", failure() or late)


def _daemons(settings: Settings) -> dict[str, Daemon]:
    """Return the processes that `up` starts, in reverse order of stopping: the supervisor, which restarts the others, last."""
    kafka, redis = EmbeddedKafka(settings).daemon, EmbeddedRedis(settings).daemon
    found = {"kafka": kafka, "redis": redis, "worker": worker_daemon(settings), "encoder": encoder_daemon(settings)}
    return {**found, "supervisor": supervisor_daemon(settings)}


def _running(settings: Settings) -> list[str]:
    return [daemon.name for daemon in _daemons(settings).values() if daemon.pid() is not None]


def facts_of(settings: Settings) -> dict[str, str]:
    """Return the addresses of the running parts, without logins; for other parts, the addresses in the settings."""
    daemons = _daemons(settings)
    return {
        "bootstrap": (settings.embedded_kafka and daemons["kafka"].address()) or settings.bootstrap_servers,
        "redis": masked_url((settings.embedded_redis and daemons["redis"].address()) or settings.redis),
        "web": web_of(settings),
    }


@click.command()
@click.option("--no-worker", is_flag=True, help="Start Kafka and Redis only.")
def up(no_worker: bool) -> None:
    """Start the embedded Kafka and Redis, one worker, and the encoder of new items. Parts that run already are left alone.

    A worker that runs with other settings is an error: run `riffle down` first.
    Parts that end by themselves are restarted, at growing intervals, until `riffle down`; `riffle status` counts the restarts.

    Example: RIFFLE_HOME=/tmp/one RIFFLE_WEB_PORT=7070 riffle up
    """
    settings, console = Settings.from_env(), plain_console(stderr=True)
    before = start_stack(settings, console, with_worker=not no_worker)
    if before:
        console.print(f"already running: {', '.join(before)}")
    facts = facts_of(settings)
    console.print(f"Kafka  {facts['bootstrap']}\nRedis  {facts['redis']}")
    if not no_worker:
        console.print(f"HTTP   {facts['web']}\nnext:  riffle load DIR, riffle ask USER, riffle down")


@click.command()
def down() -> None:
    """Stop the supervisor, the encoder and the worker, then Redis, then Kafka. Their state stays under RIFFLE_HOME.

    Example: riffle down
    """
    settings = Settings.from_env()
    stopped = []
    for name, daemon in reversed(_daemons(settings).items()):
        if name != "kafka" and daemon.stop():
            stopped.append(daemon.name)
    if (kafka := EmbeddedKafka(settings)).stop():
        stopped.append(kafka.daemon.name)
    state_file(settings).unlink(missing_ok=True)
    click.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def _when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def restarts_of(history: History, now_ms: int) -> str:
    """Summarise a part's restarts for users; empty if it never ended by itself."""
    if history.ended_at is None:
        return ""
    how = "" if history.exit is None else f" with exit {history.exit}"
    said = f"restarts: {history.restarts}, last ended at {_when(history.ended_at)}{how}"
    if history.next_try_at is not None:
        said += f", next try in {max(0, history.next_try_at - now_ms) / 1000:.0f} s"
    return f"{said}: {history.why}" if history.why else said


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def status(as_json: bool) -> None:
    """Print addresses, readiness, process ids and restarts.

    `ready` refers to this home's worker only, and requires that Kafka answers.

    Example: riffle status --json
    """
    settings = Settings.from_env()
    state, found, others = readiness(settings), histories(settings), told_of(other_settings(settings))
    reasons = dict(state.get("reasons") or {})
    if not kafka_answers(settings):
        reasons["kafka"] = f"no Kafka of this instance answers at {settings.bootstrap_servers}"
    pids = {name: daemon.pid() for name, daemon in _daemons(settings).items()}
    facts: dict[str, Any] = {
        **facts_of(settings),
        "release": state.get("release"),
        "ready": bool(state["ready"]) and not reasons,
        "pids": pids,
        "reasons": reasons,
        "warnings": dict(state.get("warnings") or {}),
        "restarts": {name: history.to_json() for name, history in found.items()},
    }
    if as_json:
        click.echo(json.dumps(facts))
        if others:
            click.echo(f"warning: {others}", err=True)
        return
    rows = [(name, str(facts[name])) for name in ("bootstrap", "redis", "web")]
    rows += [("release", facts["release"] or "unknown"), ("ready", "yes" if facts["ready"] else "no")]
    rows += [(f"not ready: {name}", words(reason)) for name, reason in reasons.items()]
    rows += [(f"warning: {name}", str(text)) for name, text in facts["warnings"].items()]
    rows += [("warning: settings", others)] if others else []
    rows += [(f"process id of {name}", str(pid or "not running")) for name, pid in pids.items()]
    now_ms = round(time.time() * 1000)
    rows += [(name, said) for name, history in found.items() if (said := restarts_of(history, now_ms))]
    if pids["supervisor"] is None and any(pids.values()):
        rows.append(("supervisor", "parts that end are not restarted: `riffle up` restarts them, `riffle down` stops the rest"))
    print_table(plain_console(), ("what", "state"), rows, fold=("state",), header=False)


@click.command()
@click.option(
    "--role", type=click.Choice(("worker", "ranking")), default="worker", help="What it does; the default is a worker."
)
def worker(role: str) -> None:
    """Run one worker in the foreground, until SIGTERM or Ctrl-C.

    With `--role ranking` it holds no users: it ranks candidates for workers that run with RIFFLE_RANKING=remote. Its state is
    shown on RIFFLE_RANK_PORT.

    Example: RIFFLE_BOOTSTRAP=kafka://broker:9092 riffle worker
    """
    # checked first, in a thread, because the worker needs the main thread's event loop: a missing broker is one line, not a
    # trace
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, partition_counts(Settings.from_env())).result()
    from agents.worker import main

    main(role)
