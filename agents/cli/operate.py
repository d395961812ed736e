"""Commands that run the stack."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import click
from aiokafka.errors import KafkaError
from rich import box
from rich.console import Console
from rich.table import Table

from agents.cli.progress import step
from schemas.errors import ConfigError, NotReady, RiffleError
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.process import Daemon, answer_of, require_free_port
from streams.embedded.redis import EmbeddedRedis
from streams.settings import Settings
from streams.topics import TOPICS, ensure_topics, partition_counts

__all__ = ["down", "facts_of", "readiness", "start_stack", "status", "topics", "up", "worker", "worker_daemon"]


def worker_daemon(settings: Settings) -> Daemon:
    """The worker that `up` starts."""
    return Daemon("the worker", settings.run_dir / "worker.pid", settings.logs_dir / "worker.log")


def encoder_daemon(settings: Settings) -> Daemon:
    """The encoder of new items that `up` starts."""
    return Daemon("the encoder", settings.run_dir / "encoder.pid", settings.logs_dir / "encoder.log")


def _start_encoder(settings: Settings) -> None:
    from agents.cli.encode import NO_TORCH, can_encode

    if settings.encoder == "on" and not can_encode():
        raise ConfigError("no_torch", f"RIFFLE_ENCODER is on, but {NO_TORCH}", "encoder")
    if settings.encoder != "off" and can_encode() and encoder_daemon(settings).pid() is None:
        environment = {**os.environ, **settings.environment()}
        command = [sys.executable, "-c", "from agents.cli import main; main()", "encode"]
        encoder_daemon(settings).start(command, environment, settings.home)


def readiness(settings: Settings) -> dict[str, Any]:
    """What /readyz says; `{"ready": False}` when nobody answers."""
    web = worker_daemon(settings).address() or settings.web
    place = urlsplit(web)
    silent = {"ready": False, "release": None, "reasons": {"web": f"{web} does not answer"}}
    # asked first whether anyone listens, because a client that polls a port of its own range may meet itself there
    if place.hostname is None or answer_of(place.port or 80, b"", 0, place.hostname, 2.0) is None:
        return silent
    try:
        with urllib.request.urlopen(f"{web}/readyz", timeout=2) as response:
            return dict(json.load(response))
    except urllib.error.HTTPError as exc:
        try:
            return dict(json.load(exc))
        except ValueError:
            return silent
    except (OSError, ValueError, HTTPException):
        return silent


def start_stack(settings: Settings, console: Console, *, with_worker: bool = True) -> list[str]:
    """Start what does not run yet, and wait until it is ready; returns the names of what ran already.

    Raises:
        RiffleError: a port is taken, and nothing was started; or a part did not start: the message says why, and what runs.
    """
    daemons, before = _daemons(settings), _running(settings)
    settings.make_home()
    if settings.embedded_kafka:
        EmbeddedKafka(settings).check()
    if settings.embedded_redis:
        EmbeddedRedis(settings).check()
    if with_worker and daemons["worker"].pid() is None:
        require_free_port(settings.web_port, "RIFFLE_WEB_PORT")
    elif with_worker:
        daemons["worker"].require_address(settings.web, "RIFFLE_WEB_PORT")
    try:
        _start(settings, console, with_worker=with_worker)
    except Exception as exc:
        running = _running(settings)
        if not running or not isinstance(exc, RiffleError | KafkaError):
            raise
        why = exc.message if isinstance(exc, RiffleError) else repr(exc)
        raise NotReady("not_started", f"{why}\nstill running: {', '.join(running)}; `riffle down` stops them") from exc
    return before


def _start(settings: Settings, console: Console, *, with_worker: bool) -> None:
    if settings.embedded_kafka:
        kafka = EmbeddedKafka(settings)
        first = "starting Kafka (the first time its jars are fetched: half a minute)"
        with step(console, "waiting for Kafka" if kafka.daemon.pid() else first):
            kafka.start()
    if settings.embedded_redis:
        redis = EmbeddedRedis(settings)
        with step(console, f"{'waiting for' if redis.daemon.pid() else 'starting'} Redis"):
            redis.start()
    asyncio.run(ensure_topics(settings))
    if not with_worker:
        return
    ran = worker_daemon(settings).pid() is not None
    try:
        _start_worker(settings, console)
    except NotReady:
        if not ran or worker_daemon(settings).pid() is not None:
            raise
        _start_worker(settings, console)  # Kafka was away for so long that the one that ran has ended
    _start_encoder(settings)


def _start_worker(settings: Settings, console: Console) -> None:
    daemon = worker_daemon(settings)
    if daemon.pid() is None:
        environment = {**os.environ, **settings.environment()}
        daemon.start([sys.executable, "-m", "agents.worker"], environment, settings.home, settings.web)
    with step(console, "waiting for the worker"):
        daemon.await_ready(lambda: bool(readiness(settings)["ready"]), 60.0)


def _daemons(settings: Settings) -> dict[str, Daemon]:
    """What `up` starts, in that order."""
    kafka, redis = EmbeddedKafka(settings).daemon, EmbeddedRedis(settings).daemon
    return {"kafka": kafka, "redis": redis, "worker": worker_daemon(settings), "encoder": encoder_daemon(settings)}


def _running(settings: Settings) -> list[str]:
    return [daemon.name for daemon in _daemons(settings).values() if daemon.pid() is not None]


def facts_of(settings: Settings) -> dict[str, str]:
    """Addresses of what runs; of what does not, where the settings say that it would."""
    daemons = _daemons(settings)
    return {
        "bootstrap": (settings.embedded_kafka and daemons["kafka"].address()) or settings.bootstrap_servers,
        "redis": (settings.embedded_redis and daemons["redis"].address()) or settings.redis,
        "web": daemons["worker"].address() or settings.web,
    }


@click.command()
@click.option("--no-worker", is_flag=True, help="Start Kafka and Redis only.")
def up(no_worker: bool) -> None:
    """Start the embedded Kafka and Redis, one worker, and the encoder of new items; what runs already is left alone.

    Example: RIFFLE_HOME=/tmp/one RIFFLE_WEB_PORT=7070 riffle up
    """
    settings, console = Settings.from_env(), Console(stderr=True)
    before = start_stack(settings, console, with_worker=not no_worker)
    if before:
        console.print(f"already running: {', '.join(before)}")
    facts = facts_of(settings)
    console.print(f"Kafka  {facts['bootstrap']}\nRedis  {facts['redis']}")
    if not no_worker:
        console.print(f"HTTP   {facts['web']}\nnext:  riffle load DIR, riffle ask USER, riffle down")


@click.command()
def down() -> None:
    """Stop the encoder and the worker, then Redis, then Kafka. What they hold stays under RIFFLE_HOME.

    Example: riffle down
    """
    settings = Settings.from_env()
    stopped = [daemon.name for name, daemon in reversed(_daemons(settings).items()) if name != "kafka" and daemon.stop()]
    if (kafka := EmbeddedKafka(settings)).stop():
        stopped.append(kafka.daemon.name)
    click.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def status(as_json: bool) -> None:
    """Print addresses, readiness and process ids.

    Example: riffle status --json
    """
    settings = Settings.from_env()
    ready = readiness(settings)
    facts: dict[str, Any] = {
        **facts_of(settings),
        "release": ready.get("release"),
        "ready": bool(ready["ready"]),
        "pids": {name: daemon.pid() for name, daemon in _daemons(settings).items()},
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    pids = facts.pop("pids")
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    shown = {**facts, "release": facts["release"] or "unknown", "ready": "yes" if facts["ready"] else "no"}
    shown |= {f"process id of {name}": pid or "not running" for name, pid in pids.items()}
    for name, value in shown.items():
        table.add_row(name, str(value))
    Console().print(table)


@click.command()
def worker() -> None:
    """Run one worker in the foreground, until SIGTERM or Ctrl-C.

    Example: RIFFLE_BOOTSTRAP=kafka://broker:9092 riffle worker
    """
    # asked first, in a thread, because the worker needs the main thread's event loop: no broker is one line, not a trace
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, partition_counts(Settings.from_env())).result()
    from agents.worker import main

    sys.argv = sys.argv[:1]
    main()


@click.command()
@click.argument("action", type=click.Choice(["list", "create"]), default="list")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def topics(action: str, as_json: bool) -> None:
    """List the topics, or create what is missing.

    Example: riffle topics create
    """
    settings = Settings.from_env()
    counts = asyncio.run(ensure_topics(settings) if action == "create" else partition_counts(settings))
    if as_json:
        click.echo(json.dumps({settings.topic(name): counts.get(name) for name in TOPICS}))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("topic", overflow="fold")
    table.add_column("partitions", justify="right")
    table.add_column("kind", no_wrap=True)
    table.add_column("purpose", overflow="fold")
    for name, spec in TOPICS.items():
        kind = "compacted" if spec.compacted else "log"
        table.add_row(settings.topic(name), str(counts.get(name, "missing")), kind, spec.purpose)
    Console().print(table)
