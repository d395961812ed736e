"""`riffle doctor`."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import ssl
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from aiokafka.errors import KafkaError

from agents.cli.asking import ask
from agents.cli.screen import words
from agents.cli.states import (
    kafka_answers,
    members_of,
    other_settings,
    processes_of,
    recovery_of,
    restarts_of,
    starting_of,
    told_of,
)
from agents.processes import WORKER, daemon_of, left_over, number_of, supervisor_daemon
from agents.supervisor import History, histories
from agents.web.caller import Caller
from agents.web.server_tls import check_listener
from schemas.backend_login import BackendLogin
from schemas.errors import ConfigError, RiffleError
from schemas.http_settings import HttpSettings
from schemas.masking import masked, masked_url
from schemas.settings import Settings
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.redis import EmbeddedRedis
from streams.kafka.topics import TOPICS, partition_counts, partitions_of
from streams.mirror.stores import answers as mirror_answers

__all__ = ["doctor"]

REGISTRY_S = 5.0
PASSING = {"catalogue", "partitions", "restoring"}
"Reasons of a worker that is not ready which pass by themselves."
FAILING = 2
"Consecutive ends from which a part is reported as failing, even if it runs at the moment."


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    ok: bool
    advice: str = ""
    "The remedy if the check fails."
    warning: str = ""
    "A warning about a setting that may be unintended, though nothing is broken."

    def to_json(self) -> dict[str, object]:
        if not self.ok:
            return {"check": self.name, "ok": False, "advice": self.advice}
        return {"check": self.name, "ok": True, **({"warning": self.warning} if self.warning else {})}

    def line(self) -> str:
        if not self.ok:
            return f"BAD  {self.name}: {self.advice}"
        return f"WARN {self.name}: {self.warning}" if self.warning else f"ok   {self.name}"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def doctor(as_json: bool) -> None:
    """Check for problems and print how to fix them. Exit code 1 if there is one.

    Example: riffle doctor
    """
    settings = Settings.from_env()
    settings.make_home()
    checks = [*_machine(settings), *_variables(), *_kafka(settings), *_mirror(settings), *_registry(settings)]
    checks += [*_http(settings), *_workers(settings), _topics(settings)]
    checks += _supervisor(settings)
    if as_json:
        click.echo(json.dumps([check.to_json() for check in checks]))
    else:
        for check in checks:
            click.echo(check.line())
    sys.exit(0 if all(check.ok for check in checks) else 1)


def _available_gib() -> float:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable")), 0.0)


def _machine(settings: Settings) -> list[_Check]:
    free, memory = shutil.disk_usage(settings.home).free >> 30, _available_gib()
    return [
        _Check("Python 3.11 to 3.13", (3, 11) <= sys.version_info[:2] <= (3, 13), f"this is {sys.version.split()[0]}"),
        _Check(f"{free} GiB of disk free", free >= 2, f"free some space near {settings.home}"),
        _Check(f"{memory:.1f} GiB of memory available", memory >= 1.5, "Kafka, Redis and a worker need 1 GiB, training 2 more"),
    ]


def _variables() -> list[_Check]:
    found = Settings.unknown(os.environ)
    return [
        _Check(name, ok=True, warning="there is no such setting" + (f"; did you mean {near}?" if near else ""))
        for name, near in found.items()
    ]


def _configured(name: str, server: EmbeddedKafka | EmbeddedRedis) -> _Check:
    try:
        server.check()
    except ConfigError as exc:
        return _Check(name, ok=False, advice=exc.message)
    return _Check(name, ok=True)


def _kafka(settings: Settings) -> list[_Check]:
    name = f"Kafka answers at {settings.bootstrap_servers}"
    if settings.kafka.encrypts or settings.kafka.logs_in:
        name += f" ({masked(settings.kafka.described())})"
    if settings.embedded_kafka:
        kafka = EmbeddedKafka(settings)
        answers = kafka_answers(settings)
        return [
            _configured("Kafka's ports", kafka),
            _Check(name, answers, f"{_mended(settings, 'kafka')}; log: {kafka.daemon.log_file}"),
        ]
    try:
        asyncio.run(partition_counts(settings))
    except (KafkaError, OSError) as exc:
        return [_Check(name, ok=False, advice=masked(f"{exc!r}; see RIFFLE_BOOTSTRAP"))]
    return [_Check(name, ok=True)]


def _mended(settings: Settings, name: str) -> str:
    """Describe how a part that does not run gets to run: by the supervisor, or by the reader."""
    state = starting_of(histories(settings).get(name, History()), round(time.time() * 1000))
    if state and supervisor_daemon(settings).pid() is not None:
        return f"wait, the supervisor restarts it: {state}"
    return "run `riffle up`"


def _mirror(settings: Settings) -> list[_Check]:
    if settings.embedded_redis:
        server = EmbeddedRedis(settings)
        answers = server.answers()
        advice = f"{_mended(settings, 'redis')}; log: {server.daemon.log_file}"
        return [_configured("Redis's port", server), _Check(f"Redis answers at {settings.redis}", answers, advice)]
    name = f"the mirror answers at {masked_url(settings.redis)}"  # the URL may hold a password
    try:
        asyncio.run(mirror_answers(settings))
    except (RiffleError, OSError, ValueError) as exc:
        return [_Check(name, ok=False, advice=masked(f"{exc}; see RIFFLE_REDIS_URL"))]
    return [_Check(name, ok=True)]


def _http(settings: Settings) -> list[_Check]:
    try:
        check_listener(settings.http, settings.web_host)
    except ConfigError as exc:
        return [_Check("settings of HTTP", ok=False, advice=exc.message)]
    return []


def _workers(settings: Settings) -> list[_Check]:
    members = members_of(settings)
    found: list[_Check] = []
    for facts in processes_of(settings):
        if facts["name"] in members:
            found += _worker(settings, facts)
    if others := sorted({name for own in members.values() for name in other_settings(own)}):
        found.append(_Check("settings", ok=True, warning=told_of(others)))
    for name, home in left_over(settings, members).items():
        advice = (
            f"it does not run, and {home} is kept: `riffle up --workers {number_of(name)}` runs it again; the other workers"
            " have its partitions, and the changelogs all rows, so that the folder may be removed"
        )
        found.append(_Check(f"data of {daemon_of(settings, name).name}", ok=True, warning=advice))
    return found


def _worker(settings: Settings, facts: Mapping[str, Any]) -> list[_Check]:
    """Check one worker or ranking process by its entry of `processes_of`."""
    daemon = daemon_of(settings, facts["name"])
    advice = _advice(settings, facts, str(daemon.log_file))
    found = [_Check(f"{daemon.name} at {facts['address']} is ready", facts["ready"], advice)]
    for name, reason in facts["refused"].items():
        advice = f"{daemon.name} refused it: {reason}; `riffle release rollback`, or train again"
        found.append(_Check(f"release {name}", ok=False, advice=advice))
    of = "" if facts["name"] == WORKER.kind else f"{facts['name']}: "
    found += [_Check(f"{of}{name}", ok=False, advice=str(text)) for name, text in facts["warnings"].items()]
    return found


def _advice(settings: Settings, facts: Mapping[str, Any], log_file: str) -> str:
    """Describe why a process is not ready, and what to do; a process that will become ready by itself is left alone."""
    reasons = "; ".join(f"{name}: {words(reason)}" for name, reason in facts["reasons"].items())
    if facts["pid"] is None:
        return f"{reasons}; {_mended(settings, facts['name'])}; log: {log_file}"
    if facts["reasons"].keys() <= PASSING:
        far = recovery_of(facts)
        reasons += f" ({far})" if far else ""
        return f"it is recovering, wait: {reasons}; `riffle status` shows how far it is; log: {log_file}"
    if "web" in facts["reasons"]:
        return f"{reasons}; its process {facts['pid']} runs: it is starting, or its log has the cause: {log_file}"
    return f"{reasons}; log: {log_file}"


def _supervisor(settings: Settings) -> list[_Check]:
    """Check that parts which ended by themselves run again and are supervised. Not meaningful in a cluster."""
    now_ms = round(time.time() * 1000)
    found = [
        _Check(f"{name} runs well", _runs_well(history), restarts_of(history, now_ms))
        for name, history in histories(settings).items()
    ]
    if found:
        advice = "parts that end are not restarted: run `riffle up`"
        found.append(_Check("the supervisor runs", supervisor_daemon(settings).pid() is not None, advice))
    return found


def _runs_well(history: History) -> bool:
    return history.next_try_at is None and not history.doing and history.in_row < FAILING


class _RegistryCaller(Caller):
    """Logs in at the registry, and verifies it."""

    def __init__(self, login: BackendLogin) -> None:
        super().__init__(HttpSettings())
        self._login = login

    def headers(self) -> dict[str, str]:
        """Return the login as basic authentication; none without a password's file."""
        if not self._login.password_file:
            return {}
        login = f"{self._login.username}:{self._login.password()}".encode()
        return {"Authorization": f"Basic {base64.b64encode(login).decode()}"}

    def context(self) -> ssl.SSLContext:
        """Return the context that verifies the registry."""
        return self._login.context()


def _registry(settings: Settings) -> list[_Check]:
    if not settings.registry_url:
        return []
    reasons = []
    for address in settings.registry_url.split(","):
        try:
            caller = _RegistryCaller(settings.registry_login)
            status = ask(f"{address.strip().rstrip('/')}/subjects", REGISTRY_S, caller=caller).status
        except RiffleError as exc:
            reasons.append(exc.message)
            continue
        if status < 400:
            return [_Check("the schema registry answers", ok=True)]
        reasons.append(f"{masked_url(address)} answers with status {status}")
    return [_Check("the schema registry answers", ok=False, advice=f"{'; '.join(reasons)}; see RIFFLE_REGISTRY_URL")]


def _topics(settings: Settings) -> _Check:
    try:
        counts = asyncio.run(partition_counts(settings))
    except (KafkaError, OSError):
        return _Check("topics", ok=False, advice="cannot be checked while Kafka does not answer")
    missing = [settings.topic(name) for name in TOPICS if name not in counts]
    if missing:
        return _Check("topics", ok=False, advice=f"missing {', '.join(missing)}: run `riffle topics create`")
    odd = [
        f"{settings.topic(name)} has {counts[name]} partitions, these settings require {partitions_of(name, settings)}"
        for name in TOPICS
        if counts[name] != partitions_of(name, settings)
    ]
    advice = "set RIFFLE_PARTITIONS back, or copy the topics with `riffle topics copy`, which prints the next steps"
    return _Check("topics", ok=not odd, advice=f"{'; '.join(odd)}: {advice}")
