"""`riffle recommend`: slates of many users, in a file."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click

from agents.cli import asking
from agents.cli.interrupts import INTERRUPTED
from agents.cli.own import own_settings
from agents.cli.screen import plain_console
from agents.cli.slate_files import SUFFIXES, check_writable, slate_file
from agents.cli.slate_lists import Failed, SlateLists, all_users
from agents.cli.states import web_of
from agents.cli.waiting import step, with_progress
from agents.web.caller import Caller
from models.dataset.bad_rows import Report, place
from models.dataset.row_parsing import OPEN_QUOTE
from models.dataset.user_ids import user_ids
from schemas.click_types import Whole
from schemas.errors import BadDataset, NotReady
from schemas.masking import masked_url
from schemas.settings import Settings
from schemas.validation import MAX_K

__all__ = ["recommend"]

ALL = "all"
SHOWN = 20
"Maximum number of bad rows, and of failed users, that a report names."
READY_S = 10.0
"Time limit in seconds of the first answer of the worker."


class _Run:
    """What a run came to so far."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.report = Report()
        self.users: list[str] = []
        self.failed: list[Failed] = []
        self.complete = False
        self._counts: Counter[str] = Counter()
        self._releases: Counter[str] = Counter()
        self._lists: SlateLists | None = None
        self._started_s = time.perf_counter()

    def ask(self, lists: SlateLists) -> None:
        """Write the slates of all users."""
        self._lists, self._started_s = lists, time.perf_counter()
        with_progress("slates", len(self.users), lambda at: self._write(lists, at))

    async def _write(self, lists: SlateLists, progress: Callable[[int], None]) -> None:
        with slate_file(self.out) as add:
            async with aclosing(lists.slates(self.users)) as answers:
                async for batch in answers:
                    slates = [answer for answer in batch if not isinstance(answer, Failed)]
                    add(slates)
                    self.failed += [answer for answer in batch if isinstance(answer, Failed)]
                    self._count(slates)
                    progress(self._counts["answered"] + len(self.failed))
        self.complete = True

    def _count(self, slates: list[dict[str, Any]]) -> None:
        self._counts["answered"] += len(slates)
        self._counts["items"] += sum(len(slate["items"]) for slate in slates)
        self._counts["empty"] += sum(not slate["items"] for slate in slates)
        self._counts["degraded"] += sum(bool(slate["degraded"]) for slate in slates)
        self._releases.update(slate["release"] for slate in slates)

    def facts(self) -> dict[str, Any]:
        """Return the last line of the command."""
        seconds = max(time.perf_counter() - self._started_s, 1e-6)
        return {
            "users": len(self.users),
            **{name: self._counts[name] for name in ("answered", "items", "empty", "degraded")},
            "failed": len(self.failed),
            "bad_rows": self.report.bad_count,
            "repeated": self.report.warnings["repeated_user"],
            "sent_again": 0 if self._lists is None else self._lists.counts["refused"],
            "seconds": round(seconds, 2),
            "per_s": round(self._counts["answered"] / seconds),
            "releases": dict(self._releases.most_common()),
            "out": str(self.out),
            "examples": [asdict(failed) for failed in self.failed[:SHOWN]],
        }


def _worker(url: str, caller: Caller) -> str:
    """Return the address without a slash at its end, after a worker has answered there."""
    try:
        answer = asking.ask(f"{url.rstrip('/')}/readyz", READY_S, caller=caller)
    except NotReady as exc:
        raise NotReady("no_worker", f"{exc.message}: run `riffle up`, or see `riffle doctor`") from exc
    if not isinstance(answer.body, dict) or "ready" not in answer.body:
        raise NotReady("no_worker", f"what answers at {masked_url(url)} is no worker: HTTP {answer.status}")
    return url.rstrip("/")


def _users(given: str, url: str, report: Report, caller: Caller) -> list[str]:
    if given == ALL:
        with step(plain_console(stderr=True), "listing users"):
            found = list(all_users(url, caller=caller))
        if not found:
            raise NotReady("no_users", "no user has an event yet: see `riffle load`; a file may name users without events")
        return found
    found = list(user_ids(Path(given), report))
    for bad in report.bad[:SHOWN]:
        click.echo(f"{place(bad)}: {bad.reason}", err=True)
    if report.bad_count > SHOWN:
        click.echo(f"… and {report.bad_count - SHOWN} more bad rows", err=True)
    for line in report.warning_lines():
        click.echo(f"warning: {line}", err=True)
    if not found:
        raise BadDataset("empty", f"{given} names no user")
    return found


def _finish(run: _Run, *, as_json: bool) -> None:
    for failed in run.failed[:SHOWN]:
        click.echo(f"{failed.user_id}: {failed.message}", err=True)
    if len(run.failed) > SHOWN:
        click.echo(f"… and {len(run.failed) - SHOWN} more users without a slate", err=True)
    facts = run.facts()
    if as_json:
        click.echo(json.dumps(facts))
        return
    words = [f"{name.replace('_', ' ')} {value}" for name, value in facts.items() if isinstance(value, int | float)]
    releases = " ".join(f"{name} ({n})" for name, n in facts["releases"].items())
    click.echo(", ".join([*words, f"releases {releases or 'none'}", f"out {run.out}"]))


def _interrupted(run: _Run, *, as_json: bool) -> NoReturn:
    facts = run.facts()
    done = f"{facts['answered']} of {facts['users']} users were answered" if run.users else "no user was asked for"
    message = f"interrupted: {done}, and {run.out} was not written"
    click.echo(f"riffle: {message}", err=True)
    if as_json:
        click.echo(json.dumps({"error": {"code": "interrupted", "message": message, "field": None}, **facts}))
    sys.exit(INTERRUPTED)


@click.command()
@click.option("--users", required=True, metavar="FILE|all", help="A file of user ids, or all users that have events.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file to write: .parquet or .jsonl.")
@click.option("-k", "--k", type=Whole(1, MAX_K), default=10, show_default=True, help="Number of items for each user.")
@click.option("--category", "--categories", multiple=True, help="Only these categories.")
@click.option("--repeats", is_flag=True, help="Items that a user has interacted with may be shown.")
@click.option("--deadline-ms", type=Whole(1, 60_000), default=10_000, show_default=True, help="Deadline of each request.")
@click.option(
    "--parallel", type=Whole(1, 32), default=1, show_default=True, help="Lists in flight; more delay other users' requests."
)
@click.option("--worker", metavar="URL", help="Ask this worker; default: the one of this instance.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def recommend(  # noqa: PLR0913 - an argument for each option
    users: str,
    out: Path,
    k: int,
    category: tuple[str, ...],
    repeats: bool,
    deadline_ms: int,
    parallel: int,
    worker: str | None,
    as_json: bool,
) -> None:
    """Write the slates of many users to a file, for mails and caches.

    FILE has one user id on each line, or is a .csv, .parquet or .jsonl file with the column user_id. Users come out in the
    order in which they went in. A worker that has no time for a request is asked again, so that no user is left out. The file
    is created or replaced when it is complete. Exit code 1 if the worker has no slate for a user, or if a quote in a CSV file
    is not closed.

    Example: riffle recommend --users all -k 20 --out slates.parquet
    """
    if out.suffix not in SUFFIXES:
        if out.is_dir():
            message = f"{out} is a folder: name a file in it, such as {out / 'slates.parquet'}"
            raise click.BadParameter(message, param_hint="--out")
        raise click.BadParameter(f"must end with {' or '.join(SUFFIXES)}", param_hint="--out")
    if not out.parent.is_dir():
        raise click.BadParameter(f"there is no folder {out.parent}", param_hint="--out")
    check_writable(out)
    settings = Settings.from_env() if worker else own_settings()
    run, caller = _Run(out), Caller(settings.http)
    try:
        url = _worker(worker or web_of(settings), caller)
        run.users = _users(users, url, run.report, caller)
        request = {"k": k, **({"categories": list(category)} if category else {}), **({"repeats": True} if repeats else {})}
        run.ask(SlateLists(url, request, deadline_ms, parallel=parallel, caller=caller))
    except KeyboardInterrupt:
        if not run.complete:
            _interrupted(run, as_json=as_json)
    _finish(run, as_json=as_json)
    if run.failed or run.report.bad_of(OPEN_QUOTE):
        sys.exit(1)
