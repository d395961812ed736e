"""Commands that run the stack."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from schemas.errors import ConfigError, NotReady, RiffleError
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.process import Daemon, port_is_free, require_free_port
from streams.embedded.redis import EmbeddedRedis
from streams.settings import Settings
from streams.topics import TOPICS, ensure_topics, partition_counts

__all__ = ["doctor", "down", "start_stack", "status", "topics", "up", "worker"]


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
    try:
        with urllib.request.urlopen(f"{settings.web}/readyz", timeout=2) as response:
            return dict(json.load(response))
    except urllib.error.HTTPError as exc:
        return dict(json.load(exc))
    except (OSError, ValueError):
        return {"ready": False, "release": None, "reasons": {"web": f"{settings.web} does not answer"}}


def start_stack(settings: Settings, console: Console, *, with_worker: bool = True) -> None:
    """Start what does not run yet, and wait until it is ready.

    Raises:
        RiffleError: a part did not start; the message says why.
    """
    if settings.embedded_kafka:
        with console.status("starting Kafka (the first time its jars are fetched: half a minute)"):
            EmbeddedKafka(settings).start()
    if settings.embedded_redis:
        with console.status("starting Redis"):
            EmbeddedRedis(settings).start()
    asyncio.run(ensure_topics(settings))
    daemon = worker_daemon(settings)
    if not with_worker:
        return
    if daemon.pid() is None:
        require_free_port(settings.web_port, "RIFFLE_WEB_PORT")
        environment = {**os.environ, **settings.environment()}
        daemon.start([sys.executable, "-m", "agents.worker"], environment, settings.home)
    with console.status("waiting for the worker"):
        daemon.await_ready(lambda: bool(readiness(settings)["ready"]), 60.0)
    _start_encoder(settings)


@click.command()
@click.option("--no-worker", is_flag=True, help="Start Kafka and Redis only.")
def up(no_worker: bool) -> None:
    """Start the embedded Kafka and Redis, one worker, and the encoder of new items; what runs already is left alone.

    Example: RIFFLE_HOME=/tmp/one RIFFLE_WEB_PORT=7070 riffle up
    """
    settings, console = Settings.from_env(), Console(stderr=True)
    start_stack(settings, console, with_worker=not no_worker)
    console.print(f"Kafka  {settings.bootstrap_servers}\nRedis  {settings.redis}")
    if not no_worker:
        console.print(f"HTTP   {settings.web}\nnext:  riffle load DIR, riffle ask USER, riffle down")


@click.command()
def down() -> None:
    """Stop the encoder and the worker, then Redis, then Kafka. What they hold stays under RIFFLE_HOME.

    Example: riffle down
    """
    settings = Settings.from_env()
    stopped = [
        daemon.name
        for daemon in (
            encoder_daemon(settings),
            worker_daemon(settings),
            EmbeddedRedis(settings).daemon,
            EmbeddedKafka(settings).daemon,
        )
        if daemon.stop()
    ]
    click.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def status(as_json: bool) -> None:
    """Print addresses, readiness and process ids.

    Example: riffle status --json
    """
    settings = Settings.from_env()
    ready = readiness(settings)
    facts = {
        "bootstrap": settings.bootstrap_servers,
        "redis": settings.redis,
        "web": settings.web,
        "release": ready.get("release"),
        "ready": bool(ready["ready"]),
        "pids": {
            "kafka": EmbeddedKafka(settings).daemon.pid(),
            "redis": EmbeddedRedis(settings).daemon.pid(),
            "worker": worker_daemon(settings).pid(),
            "encoder": encoder_daemon(settings).pid(),
        },
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name, json.dumps(value) if isinstance(value, dict) else str(value))
    Console().print(table)


@click.command()
def worker() -> None:
    """Run one worker in the foreground, until SIGTERM or Ctrl-C.

    Example: RIFFLE_BOOTSTRAP=kafka://broker:9092 riffle worker
    """
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
    try:
        counts = asyncio.run(ensure_topics(settings) if action == "create" else partition_counts(settings))
    except OSError as exc:
        raise _unreachable(settings) from exc
    except Exception as exc:
        if isinstance(exc, RiffleError):
            raise
        raise _unreachable(settings) from exc
    if as_json:
        click.echo(json.dumps({settings.topic(name): counts.get(name) for name in TOPICS}))
        return
    table = Table("topic", "partitions", "kind", "purpose")
    for name, spec in TOPICS.items():
        kind = "compacted" if spec.compacted else "log"
        table.add_row(settings.topic(name), str(counts.get(name, "missing")), kind, spec.purpose)
    Console().print(table)


def _unreachable(settings: Settings) -> NotReady:
    return NotReady("no_broker", f"no Kafka answers at {settings.bootstrap_servers}: run `riffle up`, or see `riffle doctor`")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def doctor(as_json: bool) -> None:
    """Check what could be wrong, and say what to do. Exit code 1 when something is.

    Example: riffle doctor
    """
    settings = Settings.from_env()
    checks = _checks(settings)
    if as_json:
        click.echo(json.dumps([{"check": name, "ok": ok, "advice": advice} for name, ok, advice in checks]))
    else:
        for name, ok, advice in checks:
            click.echo(f"{'ok  ' if ok else 'BAD '} {name}" + ("" if ok else f": {advice}"))
    sys.exit(0 if all(ok for _, ok, _ in checks) else 1)


def _available_gib() -> float:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable")), 0.0)


def _checks(settings: Settings) -> list[tuple[str, bool, str]]:
    kafka, redis = EmbeddedKafka(settings), EmbeddedRedis(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(settings.home).free >> 30
    memory = _available_gib()
    checks = [
        ("Python 3.11", sys.version_info[:2] == (3, 11), f"this is {sys.version.split()[0]}: run make setup with 3.11"),
        (f"{free} GiB of disk free", free >= 2, f"free some space near {settings.home}"),
        (f"{memory:.1f} GiB of memory available", memory >= 1.5, "Kafka, Redis and a worker need about 1 GiB, training 2 more"),
    ]
    if settings.embedded_kafka:
        runs = kafka.daemon.pid() is not None
        ports = runs or (port_is_free(settings.kafka_port) and port_is_free(settings.controller_port))
        checks.append(("Kafka's ports", ports, "another program holds them: set RIFFLE_KAFKA_PORT, RIFFLE_CONTROLLER_PORT"))
        checks.append(("Kafka answers", runs and kafka.answers(), f"run `riffle up`; log: {kafka.daemon.log_file}"))
    if settings.embedded_redis:
        checks.append(("Redis answers", redis.answers(), f"run `riffle up`; log: {redis.daemon.log_file}"))
    ready = readiness(settings)
    advice = f"{json.dumps(ready.get('reasons', {}))}; run `riffle up`; log: {worker_daemon(settings).log_file}"
    checks.append(("the worker is ready", bool(ready["ready"]), advice))
    for name, reason in (ready.get("refused") or {}).items():
        checks.append((f"release {name}", False, f"the worker refused it: {reason}; `riffle release rollback`, or train again"))
    if ready["ready"]:
        counts: dict[str, int] = {}
        try:
            counts = asyncio.run(partition_counts(settings))
        except Exception as exc:
            checks.append(("topics", False, str(exc)))
        missing = [name for name in TOPICS if name not in counts]
        checks.append(("topics", not missing, f"missing {missing}: run `riffle topics create`"))
    return checks
