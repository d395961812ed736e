"""`riffle demo`: demonstrates the whole system."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from agents.cli import asking
from agents.cli.ask import print_slate, request_slate, title_of
from agents.cli.release import await_served, current_champion, print_training, promote, try_training
from agents.cli.screen import plain_console
from agents.cli.starting import start_stack
from agents.cli.states import readiness
from agents.cli.waiting import advance, step, with_progress
from agents.processes import worker_daemon
from agents.web.caller import Caller
from agents.web.page_token import page_url
from models.archive.files import next_offsets
from models.archive.target import open_target
from models.dataset.builtin import ITEMS, build_builtin
from models.dataset.folder import Dataset
from models.rules import PositiveRule
from schemas.errors import NotReady
from schemas.records import Interaction
from schemas.settings import Settings
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.redis import EmbeddedRedis
from streams.kafka.produce import produce_events, produce_items

__all__ = ["demo", "promising"]

DEADLINE_MS = 60_000
WIDE = 50
"Items considered when looking for an event that changes the first five."
TRIES, ENOUGH = 3, 2
"Maximum number of events, and the number of new items on the slate that is enough."
ARCHIVED_TIMEOUT_S = 120.0
METRICS = ("ndcg@10", "hr@10", "recall@50", "mrr")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="A dataset folder; default: the built-in prints.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def demo(data: Path | None, as_json: bool) -> None:  # noqa: PLR0915 - one step after the other
    """Start everything, load and replay a dataset, show that one more event changes a user's slate, train, and swap in.

    Example: riffle demo --data my-dataset
    """
    settings, console = Settings.from_env(), plain_console(stderr=as_json)
    clock = time.perf_counter
    took: dict[str, float] = {}
    at = clock()
    if data is None:
        data = settings.home / "datasets" / "prints"
        with advance("drawing the built-in dataset", ITEMS, console) as report:
            build_builtin(data, progress=lambda done, _: report(done))
        took["build"], at = clock() - at, clock()
    dataset = Dataset.open(data)
    dataset.check()
    liked = PositiveRule(dataset.positive)
    start_stack(settings, console)
    took["start"], at = clock() - at, clock()
    n_items, n_events = dataset.counts()
    with_progress("items", n_items, lambda done: produce_items(settings, dataset.items(), done))
    first = request_slate(settings, {"user_id": "someone-new", "k": 5}, DEADLINE_MS)
    took["items and first slate"], at = clock() - at, clock()
    people: Counter[str] = Counter()
    last: list[Interaction] = []
    like: list[Interaction] = []

    def events() -> Any:
        for event in dataset.events(int(time.time() * 1000)):
            people[event.user_id] += 1
            last[:] = [event]
            if liked(event.action, event.value):
                like[:] = [event]
            yield event

    tokens = with_progress("events", n_events, lambda done: produce_events(settings, events(), None, done))
    took["replay"], at = clock() - at, clock()
    with step(console, "waiting until every event is reflected"):
        for request in _one_per_partition(settings, tokens, people):
            request_slate(settings, request, DEADLINE_MS)
    took["caught up"] = clock() - at
    typical = [user for user, _ in people.most_common()[:: max(1, len(people) // 4)]][1:4] or list(people)[:3]
    changes = [_change(settings, user, last[0], (like or last)[0], console) for user in typical]
    at = clock()
    facts = _learn(settings, dataset.positive, tokens, console)
    took["train and judge"] = clock() - at
    for user in typical:
        print_slate(settings, request_slate(settings, {"user_id": user, "k": 5}, DEADLINE_MS), console)
    memory = {
        name: _resident_mb(daemon.pid())
        for name, daemon in {
            "kafka": EmbeddedKafka(settings).daemon,
            "redis": EmbeddedRedis(settings).daemon,
            "worker": worker_daemon(settings),
        }.items()
    }
    facts |= {"items": n_items, "events": n_events, "bad_rows": dataset.bad_count, "memory_mb": memory}
    seconds = {part: round(time_s, 1) for part, time_s in took.items()}
    console.print(f"{n_events} events over {n_items} items")
    console.print("took: " + ", ".join(f"{part} {time_s} s" for part, time_s in seconds.items()))
    console.print("memory: " + ", ".join(f"{name} {'unknown' if mb is None else mb} MB" for name, mb in memory.items()))
    ready = bool(readiness(settings)["ready"])
    state = "the service is up" if ready else "the service was up but is not ready now: see `riffle status`; it is"
    console.print(f"{state} at {settings.web}: try curl '{settings.web}/v1/recommend/{typical[0]}?k=5&explain=1'")
    console.print(f"page: {page_url(settings)}", soft_wrap=True)
    console.print(f"stop it with: {shlex.join([sys.argv[0]])} down")
    if as_json:
        click.echo(json.dumps({**facts, "seconds": seconds, "first": _ids(first), "changes": changes, "ready": ready}))


def _learn(settings: Settings, positive: str, tokens: dict[int, int], console: Console) -> dict[str, Any]:
    """Train from the archived stream, promote the release, and print the quality before and after."""
    with step(console, "waiting until the stream is archived"):
        target = open_target(settings.archive_target)
        until = time.monotonic() + ARCHIVED_TIMEOUT_S
        while any(next_offsets(target, "interactions").get(p, 0) <= offset for p, offset in tokens.items()):
            if time.monotonic() > until:
                raise NotReady("not_archived", f"the stream is not archived at {settings.archive_target}: see `riffle doctor`")
            time.sleep(0.5)
    console.print("training from the archived stream (the first time also encodes every text and image)", style="bold")
    champion = current_champion(settings)
    options = [settings.archive_target, "--positive", positive, "--against", champion, "--quick"]
    trained = try_training(settings, options)
    if "error" in trained:
        console.print("so no release is trained yet; recommendations come from co-visitation, content and popularity")
        return {"release": None, "served": False, "not_trained": trained["error"]}
    served = False
    if trained["gate"]["passed"]:
        trained |= promote(settings, trained["release"])
        served = await_served(settings, trained["release"], console)
    print_training(trained, console)
    kept = {name: {m: trained[name][m] for m in METRICS} for name in ("before", "after")}
    return {"release": trained["release"], "gate": trained["gate"], "served": served, "quality": kept}


def _change(settings: Settings, user: str, last: Interaction, how: Interaction, console: Console) -> dict[str, Any]:
    """Request a user's slate, send the user's next event, and request again; repeat while the slate hardly changes.

    `last` is the newest event of the stream, `how` a typical positive event.
    """
    wide = request_slate(settings, {"user_id": user, "k": WIDE}, DEADLINE_MS)
    before = changed = {**wide, "items": wide["items"][:5]}
    print_slate(settings, before, console)
    did: list[str] = []
    for n, picked in enumerate(promising(_ids(wide), lambda item_id: _similar(settings, item_id))[:TRIES], 1):
        event = Interaction(f"demo-{user}-{picked}", user, picked, last.event_time + n * 1_000, how.action, how.value)
        ((partition, offset),) = asyncio.run(produce_events(settings, [event])).items()
        after = {"partition": partition, "offset": offset}
        changed = request_slate(settings, {"user_id": user, "k": 5, "after": after}, DEADLINE_MS)
        did.append(picked)
        title = title_of(settings, picked) or picked
        console.print(f"{user} now does “{event.action}” on {picked}, {title}", style="bold")
        if len(set(_ids(changed)) - set(_ids(before))) >= ENOUGH:
            break
    console.print("the next slate:")
    print_slate(settings, changed, console)
    was, now = _ids(before), _ids(changed)
    places = sum(one != other for one, other in zip_longest(was, now))
    new = [item_id for item_id in now if item_id not in was]
    console.print(f"{places} of {len(now)} places changed; new on the slate: {', '.join(new) or 'nothing'}")
    facts = {"event": did[-1] if did else None, "events": did, "before": was, "after": now, "places_changed": places}
    return {"user": user, **facts}


def promising(ranked: Sequence[str], similar: Callable[[str], Sequence[str]]) -> list[str]:
    """Return the items whose like would change the slate, by the estimated size of the change, largest first.

    `ranked`: the recommended items, best first; the first five are the slate. The next twenty are ordered by the number of
    their similar items below the slate, which a like may lift onto it; ties keep their rank. With five or fewer items only the
    last is returned.
    """
    below, few = set(ranked[5:]), list(ranked[5:25]) or list(ranked[-1:])
    return sorted(few, key=lambda item_id: -len(below & set(similar(item_id)) - {item_id}))


def _similar(settings: Settings, item_id: str) -> list[str]:
    """Return the ids of similar items, by HTTP; none if no worker answers."""
    try:
        url = f"{settings.web}/v1/similar/{urllib.parse.quote(item_id, safe='')}?k=10"
        return _ids(asking.ask(url, 5.0, caller=Caller(settings.http)).body)
    except (NotReady, KeyError, TypeError):
        return []


def _ids(slate: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in slate["items"]]


def _one_per_partition(settings: Settings, tokens: dict[int, int], people: Counter[str]) -> list[dict[str, Any]]:
    """Request a slate for one user of each partition, answered after that partition's last event."""
    from aiokafka.partitioner import DefaultPartitioner

    partitioner, every = DefaultPartitioner(), list(range(settings.partitions))
    found: dict[int, str] = {}
    for user in people:
        found.setdefault(int(partitioner(user.encode(), every, every)), user)
    return [
        {"user_id": user, "k": 1, "after": {"partition": partition, "offset": tokens[partition]}}
        for partition, user in found.items()
    ]


def _resident_mb(pid: int | None) -> int | None:
    if pid is None:
        return None
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) >> 10
    return None
