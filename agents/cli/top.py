"""`riffle top`: a live view of this home's worker, from the interface of its web page."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import click

from agents.cli.asking import ask
from agents.cli.own import own_settings
from agents.cli.screen import plain_console
from agents.cli.states import web_of
from agents.cli.top_screen import COLUMNS, line_of, screen_of
from agents.web.caller import Caller
from schemas.click_types import Number, Whole
from schemas.errors import NotReady

__all__ = ["Look", "looks", "top"]

ASK_S = 3.0
KEPT = 300
RECENT = 8
"Requests that are listed."


@dataclass(slots=True)
class Look:
    """One look at a worker. `live`, `pipeline` and `recent`: answers of the routes of these names."""

    live: dict[str, Any]
    pipeline: dict[str, Any]
    recent: list[dict[str, Any]]
    samples: dict[str, list[Any]] = field(default_factory=dict)
    "Columns of the samples of the last minutes, oldest first."

    def to_json(self) -> dict[str, Any]:
        """Return the newest figures, the worker's state and sums, as one line of `riffle top --json`."""
        newest = {name: values[-1] if values else None for name, values in self.samples.items()}
        state = {name: self.live[name] for name in ("worker", "partitions", "totals")}
        return {**state, "newest": newest, "pipeline": self.pipeline}


def _asked(caller: Caller, web: str, path: str) -> Any:
    answer = ask(f"{web}{path}", ASK_S, caller=caller)
    if answer.status != 200:
        error = answer.body.get("error", {}) if isinstance(answer.body, dict) else {}
        raise NotReady("no_answer", f"{web} refuses: {error.get('message', f'status {answer.status}')}")
    return answer.body


def looks(web: str, get: Callable[[str, str], Any]) -> Iterator[Look]:
    """Look at the worker at `web` at each step.

    Raises:
        NotReady: it does not answer. The next step tries again.
    """
    samples: dict[str, list[Any]] = {}
    since = 0
    while True:
        live = get(web, f"/v1/live?since={since}")
        if live["samples"]["next"] < since:  # the worker began anew
            samples, live = {}, get(web, "/v1/live?since=0")
        since = live["samples"]["next"]
        for name, values in live["samples"].items():
            if isinstance(values, list):
                samples[name] = [*samples.get(name, ()), *values][-KEPT:]
        yield Look(live, get(web, "/v1/pipeline"), get(web, f"/v1/recent?limit={RECENT}")["requests"], samples)


@click.command()
@click.option("-n", "--times", type=Whole(1), help="Look this often, then end. Without a terminal: 1.")
@click.option("--interval", default=1.0, show_default=True, type=Number(0.1, 3600), help="Seconds between two looks.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each look.")
def top(times: int | None, interval: float, as_json: bool) -> None:
    """Show what this home's worker does: rates, latency, freshness, lag, stages, sources, partitions, the newest requests.

    On a terminal the view is renewed until Ctrl-C. Otherwise it prints one line of columns separated by tabs for each look,
    below a line of their names.

    Example: riffle top; riffle top --json -n 60 | jq .newest.p99_ms
    """
    settings, screen = own_settings(), sys.stdout.isatty() and not as_json
    web, get = web_of(settings), partial(_asked, Caller(settings.http))
    try:
        if screen:
            _watch(web, get, times, interval)
            return
        found = looks(web, get)
        if not as_json:
            click.echo("\t".join(COLUMNS))
        for n in range(times or 1):
            if n:
                time.sleep(interval)
            look = next(found)
            click.echo(json.dumps(look.to_json()) if as_json else line_of(look.to_json()))
    except KeyboardInterrupt:
        click.echo()


def _watch(web: str, get: Callable[[str, str], Any], times: int | None, interval: float) -> None:
    """Renew the view on the terminal. A worker that does not answer is asked again."""
    from rich.live import Live

    found, seen, trouble = looks(web, get), 0, ""
    last: Look | None = None
    with Live(console=plain_console(), screen=True, auto_refresh=False, transient=True) as live:
        while times is None or seen < times:
            try:
                last, trouble = next(found), ""
            except NotReady as exc:
                found, trouble = looks(web, get), exc.message  # a generator that raised is over
            live.update(
                screen_of(last.to_json() if last else None, last.samples if last else {}, last.recent if last else [], trouble)
            )
            live.refresh()
            seen += 1
            time.sleep(interval)
