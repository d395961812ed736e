"""Findings about the processes of this home: addresses, readiness, partitions and restarts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agents.cli.asking import ask
from agents.processes import (
    RANKING,
    WORKER,
    daemon_of,
    daemons,
    in_order,
    role_of,
    running,
    settings_of,
    worker_daemon,
)
from agents.supervisor import History, supervised
from agents.web.caller import Caller
from schemas.errors import NotReady
from schemas.masking import masked_url
from schemas.settings import Settings
from streams.embedded.kafka import EmbeddedKafka, broker_answers
from streams.embedded.process import answer_of, listens, serving
from streams.embedded.redis import EmbeddedRedis
from streams.kafka import connect

__all__ = [
    "answering_webs",
    "effective",
    "facts_of",
    "given_to",
    "kafka_answers",
    "members_of",
    "other_settings",
    "processes_of",
    "readiness",
    "recovery_of",
    "restarts_of",
    "starting_of",
    "told_of",
    "web_of",
    "workers_of",
]

ONLY_UP = {"RIFFLE_ENCODER", "RIFFLE_START_TIMEOUT_S"}
"Variables that affect only `riffle up`, not the processes that it starts."
NO_DETAILS = {"warnings": {"token": "set RIFFLE_HTTP_TOKEN_FILE to a token with the scope operate, to see its state"}}
"Added to the state that a worker shows without such a token."
ASK_S = 2.0
"Seconds that a worker may take to report its state."


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
    if place.hostname is None or answer_of(port, b"", 0, place.hostname, ASK_S) is None:
        return _silent(f"{web} does not answer")
    pids = [pid for daemon in (worker_daemon(settings), serving(settings)) if (pid := daemon.pid()) is not None]
    if not any(listens(pid, port) for pid in pids):
        return _silent(f"{web} is the address of another program, or of the worker of a RIFFLE_HOME other than {settings.home}")
    try:
        found = ask(f"{web}/readyz", ASK_S, caller=Caller(settings.http)).body
    except NotReady as exc:
        return _silent(exc.message)
    if not isinstance(found, dict) or not isinstance(found.get("ready"), bool):
        return _silent(f"{web} shows no state")
    return {**NO_DETAILS, **found} if "reasons" not in found else dict(found)


def other_settings(settings: Settings) -> list[str]:
    """Return the variables in which the worker that `up` has started differs from these settings; none if none runs.

    `ONLY_UP` affect only `up`, not the worker.
    """
    pid = worker_daemon(settings).pid()
    there = {} if pid is None else given_to(pid)
    wanted = settings.environment()
    return sorted(name for name in there.keys() & wanted.keys() - ONLY_UP if there[name] != wanted[name])


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


def facts_of(settings: Settings) -> dict[str, str]:
    """Return the addresses of the running parts, without logins; for other parts, the addresses in the settings."""
    found = daemons(settings)
    return {
        "bootstrap": (settings.embedded_kafka and found["kafka"].address()) or settings.bootstrap_servers,
        "redis": masked_url((settings.embedded_redis and found["redis"].address()) or settings.redis),
        "web": web_of(settings),
    }


def given_to(pid: int) -> dict[str, str]:
    """Return the `RIFFLE_*` variables with which a process was started; none if it has ended or they cannot be read."""
    try:
        pairs = [entry.partition(b"=") for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    except OSError:
        return {}
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs if name.startswith(b"RIFFLE_")}


def effective(settings: Settings) -> Settings:
    """Return the settings of this home's workers: if it runs ranking processes, these rank."""
    names = {*supervised(settings), *running(settings)}
    return replace(settings, ranking="remote") if any(role_of(name) is RANKING for name in names) else settings


def members_of(settings: Settings) -> dict[str, Settings]:
    """Return the settings of this home's workers and ranking processes by name: of those that run or are supervised.

    Worker 1 is among them in any case.
    """
    settings = effective(settings)
    ports = {name: port for name, port in supervised(settings).items() if role_of(name) is not None}
    for name in running(settings):
        ports[name] = urlsplit(daemon_of(settings, name).address()).port or ports.get(name, 0)
    known = {name for name, port in ports.items() if port} | {WORKER.kind}
    return {name: settings_of(settings, name, ports.get(name, 0)) for name in in_order(known)}


def workers_of(settings: Settings) -> dict[str, Settings]:
    """Return the workers among `members_of`, worker 1 first."""
    return {name: own for name, own in members_of(settings).items() if role_of(name) is WORKER}


def answering_webs(settings: Settings) -> list[str]:
    """Return the addresses of this home's workers that run; that of worker 1 if none does."""
    names = running(settings)
    return [web_of(own) for name, own in workers_of(settings).items() if name in names] or [web_of(settings)]


def _tables(settings: Settings, web: str) -> list[dict[str, Any]]:
    """Return a worker's table partitions, as `GET /v1/tables` lists them; none if it does not answer."""
    try:
        body = ask(f"{web}/v1/tables", ASK_S, caller=Caller(settings.http)).body
    except NotReady:
        return []
    tables = body.get("tables") if isinstance(body, dict) else None
    return list(tables) if isinstance(tables, list) else []


def _numbers(tables: Sequence[Mapping[str, Any]], role: str) -> list[int]:
    """Return the numbers of the partitions of the user table that a worker has in this role."""
    return sorted(facts["partition"] for facts in tables if (facts["table"], facts["role"]) == ("users", role))


def recovery_of(facts: Mapping[str, Any]) -> str:
    """Describe how far a worker is that has just started, or has taken partitions over; empty if it restores nothing.

    `facts`: its entry of `processes_of`.
    """
    found = []
    for part in facts.get("recovery", ()):
        name = f"{part['table']}-{part['partition']}"
        if part.get("of"):
            found.append(f"{name} {100 * part['restored'] // part['of']} % of {part['of']:,} records")
        else:
            found.append(f"{name} not begun")
    return ", ".join(found)


def _member_facts(settings: Settings, name: str, own: Settings) -> dict[str, Any]:
    state, web, role = readiness(own), web_of(own), role_of(name)
    reasons = dict(state.get("reasons") or {})
    found: dict[str, Any] = {
        "name": name,
        "role": name if role is None else role.kind,
        "pid": daemon_of(settings, name).pid() or serving(own).pid(),
        "address": web,
        "ready": bool(state["ready"]),
        "reasons": reasons,
        "warnings": dict(state.get("warnings") or {}),
        "refused": dict(state.get("refused") or {}),
        "release": state.get("release"),
    }
    if role is RANKING:
        return {**found, "partitions": list(state.get("partitions") or [])}
    tables = _tables(own, web) if "web" not in reasons else []
    recovery = [
        {name: part[name] for name in ("table", "partition", "restored", "of") if name in part}
        for part in tables
        if part["role"] == "restoring"
    ]
    held = {
        "partitions": _numbers(tables, "owner"),
        "standbys": _numbers(tables, "standby"),
        "restoring": _numbers(tables, "restoring"),
    }
    return {**found, **held, "recovery": recovery}


def processes_of(settings: Settings) -> list[dict[str, Any]]:
    """Return the state of each process of this home, in the order in which they start.

    `ready` is None for processes that do not report it. Partitions are those of the user table, or those of which a ranking
    process reads the tasks.
    """
    members = members_of(settings)
    found: list[dict[str, Any]] = []
    for name, daemon in daemons(settings, members).items():
        if name in members:
            found.append(_member_facts(settings, name, members[name]))
            continue
        ready: bool | None = None
        if name == "kafka" and settings.embedded_kafka:
            ready = EmbeddedKafka(settings).answers()
        if name == "redis" and settings.embedded_redis:
            ready = EmbeddedRedis(settings).answers()
        found.append({"name": name, "role": name, "pid": daemon.pid(), "address": masked_url(daemon.address()), "ready": ready})
    return found


def _when(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def restarts_of(history: History, now_ms: int) -> str:
    """Summarise a part's restarts for users; empty if it never ended by itself, and is not being started."""
    found = []
    if history.ended_at is not None:
        how = "" if history.exit is None else f" with exit {history.exit}"
        why = f": {history.why}" if history.why else ""
        found.append(f"restarts: {history.restarts}, last ended at {_when(history.ended_at)}{how}{why}")
    if state := starting_of(history, now_ms):
        found.append(state)
    return "; ".join(found)


def starting_of(history: History, now_ms: int) -> str:
    """Describe how far the supervisor is with starting a part; empty while that runs."""
    if history.doing:
        since_s = max(0, now_ms - (history.doing_since or now_ms)) / 1000
        return f"it is being started for {since_s:.0f} s: {history.doing}"
    if history.next_try_at is None:
        return ""
    left_s = (history.next_try_at - now_ms) / 1000
    return f"next try in {left_s:.0f} s" if left_s >= 0.5 else "next try now"
