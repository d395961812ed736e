"""Commands that run the stack."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from agents.cli.own import own_settings
from agents.cli.screen import plain_console, print_table, words
from agents.cli.starting import start_stack, stop_members, without_work
from agents.cli.states import (
    facts_of,
    kafka_answers,
    members_of,
    other_settings,
    processes_of,
    recovery_of,
    restarts_of,
    told_of,
    web_of,
    workers_of,
)
from agents.processes import (
    MOST,
    RANKING,
    WORKER,
    daemon_of,
    daemons,
    encoder_daemon,
    left_over,
    number_of,
    role_of,
    supervisor_daemon,
)
from agents.supervisor import histories, state_file
from agents.web.page_token import page_url
from schemas.click_types import Whole
from schemas.settings import Settings
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.redis import EmbeddedRedis
from streams.kafka.topics import partition_counts

__all__ = ["down", "status", "up", "worker"]

COLUMNS = ("process", "pid", "address", "ready", "partitions", "standbys", "release")


@click.command()
@click.option("--no-worker", is_flag=True, help="Start Kafka and Redis only.")
@click.option(
    "--workers",
    type=Whole(1, MOST),
    metavar="N",
    help="Run N workers: start further ones, or stop the last ones. Default: those that run, at least one.",
)
@click.option(
    "--ranking",
    type=Whole(0, MOST),
    metavar="M",
    help="Run M ranking processes, which rank for the workers. Default: those that run.",
)
def up(no_worker: bool, workers: int | None, ranking: int | None) -> None:
    """Start the embedded Kafka and Redis, workers, and the encoder of new items. Parts that run already are left alone.

    A worker that runs with other settings is an error: run `riffle down` first.
    Worker 1 listens on RIFFLE_WEB_PORT, the others on the next free ports. Each has its own data and log, under
    RIFFLE_HOME/workers/N. The partitions move to the workers that run; data of workers that do not run is kept.
    Of more workers, or ranking processes, than partitions (RIFFLE_PARTITIONS), some have no partition; `up` says so.
    Parts that end by themselves are restarted, at growing intervals, until `riffle down`; `riffle status` counts the restarts.

    Example: RIFFLE_HOME=/tmp/one RIFFLE_WEB_PORT=7070 riffle up --workers 2
    """
    if no_worker and (workers is not None or ranking is not None):
        raise click.UsageError("--no-worker excludes --workers and --ranking")
    settings, console = Settings.from_env(), plain_console(stderr=True)
    done = start_stack(settings, console, with_worker=not no_worker, workers=workers, ranking=ranking)
    if done.before:
        console.print(f"already running: {', '.join(done.before)}")
    if done.stopped:
        console.print(f"stopped: {', '.join(done.stopped)}; what they have on disk is kept")
    facts = facts_of(settings)
    console.print(f"Kafka  {facts['bootstrap']}\nRedis  {facts['redis']}")
    if not no_worker:
        for name, own in workers_of(settings).items():
            console.print(f"HTTP   {web_of(own)}" + (f" ({daemon_of(settings, name).name})" if name != WORKER.kind else ""))
        for name, own in members_of(settings).items():
            if role_of(name) is RANKING:
                console.print(f"rank   {own.web} ({daemon_of(settings, name).name})")
        for text in without_work(settings, list(members_of(settings))):
            console.print(f"note   {text}", soft_wrap=True)
        console.print(f"page   {page_url(settings)}", soft_wrap=True)
        console.print("next:  riffle load DIR, riffle ask USER, riffle down")


@click.command()
def down() -> None:
    """Stop the supervisor, the encoder and the workers, then Redis, then Kafka. Their state stays under RIFFLE_HOME.

    Workers are stopped one after another: each answers what it has accepted, and writes what it has applied.

    Example: riffle down
    """
    settings = Settings.from_env()
    names = list(members_of(settings))
    stopped = [daemon.name for daemon in (supervisor_daemon(settings), encoder_daemon(settings)) if daemon.stop()]
    stopped += stop_members(settings, names)
    for server in (EmbeddedRedis(settings), EmbeddedKafka(settings)):
        if server.stop():
            stopped.append(server.daemon.name)
    state_file(settings).unlink(missing_ok=True)
    click.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def _reasons(workers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return why workers are not ready: the reasons of worker 1, and those of each other one as a text under its name."""
    found = dict(workers[0]["reasons"])
    for worker in workers[1:]:
        if not worker["ready"]:
            texts = [f"{name}: {words(reason)}" for name, reason in worker["reasons"].items()]
            found[worker["name"]] = "; ".join(texts) or "not ready"
    return found


def _warnings(workers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found = dict(workers[0]["warnings"])
    for worker in workers[1:]:
        found |= {f"{worker['name']}: {name}": text for name, text in worker["warnings"].items()}
    return found


def _row(process: Mapping[str, Any]) -> list[str]:
    ready = {True: "yes", False: "no", None: ""}[process["ready"]]
    pid = str(process["pid"] or "not running")
    held = [" ".join(map(str, process.get(name, ()))) for name in ("partitions", "standbys")]
    return [process["name"], pid, process["address"] or "", ready, *held, process.get("release") or ""]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def status(as_json: bool) -> None:
    """Print addresses, readiness, restarts, and each process with the partitions of users that it owns and follows.

    `ready` refers to this home's workers only, and requires that Kafka answers.

    Example: riffle status --json
    """
    settings = Settings.from_env()
    members = members_of(settings)
    processes, found = processes_of(settings), histories(settings)
    others = told_of(sorted({name for own in members.values() for name in other_settings(own)}))
    listed = [process for process in processes if process["role"] == "worker"]
    reasons = _reasons(listed)
    if not kafka_answers(settings):
        reasons["kafka"] = f"no Kafka of this instance answers at {settings.bootstrap_servers}"
    pids = {name: daemon.pid() for name, daemon in daemons(settings, members).items()}
    facts: dict[str, Any] = {
        **facts_of(settings),
        "release": listed[0]["release"],
        "ready": all(worker["ready"] for worker in listed) and not reasons,
        "pids": pids,
        "reasons": reasons,
        "warnings": _warnings(listed),
        "restarts": {name: history.to_json() for name, history in found.items()},
        "processes": processes,
        "left_over": {name: str(home) for name, home in left_over(settings, members).items()},
    }
    if as_json:
        click.echo(json.dumps(facts))
        if others:
            click.echo(f"warning: {others}", err=True)
        return
    rows = [(name, str(facts[name])) for name in ("bootstrap", "redis", "web")]
    rows += [("release", facts["release"] or "unknown"), ("ready", "yes" if facts["ready"] else "no")]
    rows += [(f"not ready: {name}", words(reason)) for name, reason in reasons.items()]
    rows += [(f"recovery: {worker['name']}", far) for worker in listed if (far := recovery_of(worker))]
    rows += [(f"warning: {name}", str(text)) for name, text in facts["warnings"].items()]
    rows += [("warning: settings", others)] if others else []
    now_ms = round(time.time() * 1000)
    rows += [(name, said) for name, history in found.items() if (said := restarts_of(history, now_ms))]
    for name, home in facts["left_over"].items():
        said = f"does not run, {home} is kept: `riffle up --workers {number_of(name)}` runs it, and without it nothing is lost"
        rows.append((name, said))
    if pids["supervisor"] is None and any(pids.values()):
        rows.append(("supervisor", "parts that end are not restarted: `riffle up` restarts them, `riffle down` stops the rest"))
    console = plain_console()
    print_table(console, ("what", "state"), rows, fold=("state",), lines=("state",), header=False)
    console.print()
    print_table(console, COLUMNS, [_row(process) for process in processes], fold=("address", "release"), right=("pid",))


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
        thread.submit(asyncio.run, partition_counts(own_settings())).result()
    from agents.worker import main

    main(role)
