"""`riffle rules`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from agents.cli.asking import ask
from agents.cli.own import own_settings
from agents.cli.screen import plain_console, print_table
from agents.cli.states import web_of
from agents.web.caller import Caller
from schemas.click_types import Whole
from schemas.errors import BadInput, BadRules, NotReady
from schemas.rules import RuleSet, decode_rules, rule_to_json, rules_to_json
from schemas.settings import Settings
from streams.kafka.rules import publish_rules

__all__ = ["marks_of", "rules"]

TIMEOUT_S = 10.0
FILE = click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One line of JSON.")


def _read(file: Path) -> RuleSet:
    try:
        return decode_rules(file.read_bytes())
    except BadRules as exc:
        raise BadRules(exc.code, f"{file}: {exc.message}", exc.field) from exc


def _answer(settings: Settings, path: str, body: object = None) -> dict[str, Any]:
    """Return the worker's answer.

    Raises:
        NotReady: no worker answers, or it cannot answer now.
        BadInput: the worker refuses the body.
    """
    answer = ask(f"{web_of(settings)}{path}", TIMEOUT_S, body=body, caller=Caller(settings.http))
    found = answer.body if isinstance(answer.body, dict) else {}
    if answer.status == 200:
        return found
    error = found.get("error") or {}
    kind = BadInput if 400 <= answer.status < 500 else NotReady
    raise kind(str(error.get("code", "no_answer")), str(error.get("message", f"status {answer.status}")), error.get("field"))


def _counted(settings: Settings, found: RuleSet) -> tuple[list[dict[str, Any]], str]:
    """Return the rules with what each matches in the worker's catalogue; without a worker, the rules alone and why."""
    document = rules_to_json(found)
    try:
        return list(_answer(settings, "/v1/rules/preview", {"rules": document})["rules"]), ""
    except NotReady as exc:
        return [rule_to_json(rule) for rule in found.rules], exc.message


def _print_rules(console: Console, listed: Sequence[Mapping[str, Any]]) -> None:
    names = ("rule", "kind", "does", "state", "matches")
    rows = [
        (rule["name"], rule["kind"], _summary(rule), str(rule.get("state", "")), str(rule.get("matches", "unknown")))
        for rule in listed
    ]
    print_table(console, names, rows, fold=("rule", "does"), right=("matches",))


def _summary(rule: Mapping[str, Any]) -> str:
    """Format what a rule does, as its fields in JSON's spelling."""
    shown = {name: value for name, value in rule.items() if name not in {"name", "kind", "state", "matches"}}
    return ", ".join(f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in shown.items())


@click.group()
def rules() -> None:
    """Check, preview, publish, show and remove merchandising rules.

    Example: riffle rules preview rules.json --user u0001 && riffle rules put rules.json
    """


@rules.command()
@FILE
@AS_JSON
def check(file: Path, as_json: bool) -> None:
    """Validate a file of rules. Nothing else has to run.

    Example: riffle rules check rules.json
    """
    found = _read(file)
    if as_json:
        click.echo(json.dumps(rules_to_json(found)))
    else:
        click.echo(f"{file} is valid: {len(found.rules)} rules")


@rules.command()
@AS_JSON
def show(as_json: bool) -> None:
    """Show the rules that the worker serves, and how many items each matches.

    Example: riffle rules show --json
    """
    found = _answer(own_settings(), "/v1/rules")
    if as_json:
        click.echo(json.dumps(found))
        return
    console = plain_console()
    if found["rules"]:
        console.print(f"version {found['version']}")
        _print_rules(console, found["rules"])
    else:
        console.print("no rules")
    if found["refused"]:
        console.print(f"newer rules are refused: {found['refused']['message']}")


@rules.command()
@FILE
@AS_JSON
def put(file: Path, as_json: bool) -> None:
    """Validate a file of rules and serve it instead of the current rules.

    Without a `version` in the file, the time in epoch ms becomes the version.

    Example: riffle rules put rules.json
    """
    settings, found = own_settings(), _read(file)
    found = found if found.version else replace(found, version=time.time_ns() // 1_000_000)
    listed, unknown = _counted(settings, found)
    asyncio.run(publish_rules(settings, found))
    if as_json:
        click.echo(json.dumps({"version": found.version, "rules": listed}))
        return
    console = plain_console()
    _print_rules(console, listed)
    if unknown:
        console.print(f"what they match is unknown: {unknown}")
    console.print(f"published version {found.version}")


@rules.command()
@AS_JSON
def clear(as_json: bool) -> None:
    """Remove all rules.

    Example: riffle rules clear
    """
    asyncio.run(publish_rules(own_settings(), None))
    click.echo(json.dumps({"version": 0, "rules": []}) if as_json else "no rules serve any more")


@rules.command()
@FILE
@click.option("--user", required=True, help="The user to answer.")
@click.option("-k", "--k", type=Whole(1, 500), default=10, show_default=True, help="Number of items.")
@AS_JSON
def preview(file: Path, user: str, k: int, as_json: bool) -> None:
    """Show a user's slate with the serving rules beside the slate with a file of rules. Nothing is published.

    Example: riffle rules preview rules.json --user u0001 -k 10
    """
    settings, found = own_settings(), _read(file)
    body = {"rules": rules_to_json(found), "request": {"user_id": user, "k": k, "explain": True}}
    answer = _answer(settings, "/v1/rules/preview", body)
    serving, proposed = answer["serving"], answer["proposed"]
    marks = marks_of(*([item["item_id"] for item in slate["items"]] for slate in (serving, proposed)))
    if as_json:
        click.echo(json.dumps({**answer, "marks": marks}))
        return
    rows = []
    for place in range(max(len(serving["items"]), len(proposed["items"]))):
        old, new = (slate["items"][place] if place < len(slate["items"]) else None for slate in (serving, proposed))
        why = ", ".join((new or {}).get("explanation", {}).get("rules", ()))
        rows.append(
            (
                str(place),
                _id(old),
                "gone" if old is not None and marks.get(_id(old)) == "gone" else "",
                _id(new),
                "" if new is None else marks.get(_id(new), ""),
                why,
            )
        )
    names = ("position", "serving", " ", "with the file", "moved", "rules")
    console = plain_console()
    print_table(console, names, rows, fold=("serving", "with the file", "rules"), right=("position",))


def _id(item: Mapping[str, Any] | None) -> str:
    return "" if item is None else str(item["item_id"])


def marks_of(old: Sequence[str], new: Sequence[str]) -> dict[str, str]:
    """Return what moved between two slates, by item id: `new`, `gone`, `up N` or `down N` places; others are left out."""
    before, after = ({item_id: place for place, item_id in enumerate(ids)} for ids in (old, new))
    marks = {item_id: "gone" for item_id in before if item_id not in after}
    for item_id, place in after.items():
        moved = before[item_id] - place if item_id in before else None
        if moved is None:
            marks[item_id] = "new"
        elif moved:
            marks[item_id] = f"up {moved}" if moved > 0 else f"down {-moved}"
    return marks
