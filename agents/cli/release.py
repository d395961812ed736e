"""`riffle train` and `riffle release`."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from aiokafka.errors import KafkaError
from click.core import ParameterSource
from rich.console import Console

from agents.cli.own import own_settings
from agents.cli.reporting import INTERRUPTED, Reported
from agents.cli.screen import plain_console, print_table
from agents.cli.states import readiness
from agents.cli.waiting import step
from agents.promotion import aliases_of, challenge, note, promote, roll_back
from models.release.release import Manifest, list_releases, manifest_sha256, read_manifest
from models.release.source import take
from schemas.errors import ReleaseRejected, RiffleError
from schemas.settings import Settings
from streams.embedded.process import SAFE_PATH, python
from streams.kafka.announce import CHALLENGER, CHAMPION, Announcement
from streams.release_store import fetch_release

__all__ = [
    "await_served",
    "champion_now",
    "current_champion",
    "note",
    "print_training",
    "promote",
    "release",
    "run_training",
    "train",
    "try_training",
]

log = logging.getLogger(__name__)

SERVED_TIMEOUT_S = 60.0
NOT_JUDGED = "not judged"
TOO_LITTLE = frozenset({"too_little", "too_little_to_judge", "no_meetings"})
"Error codes of a training with too few events, as in a shop's first days."
TRAIN = (
    "from agents.cli import guarded; from agents.cli.release import champion_now; from training.cli.train import train_command;"
    " train_command.context_settings['obj'] = champion_now;"
    " guarded(train_command, 'riffle train', child=True)"
)
"""Program of the training process; usage errors in its options name this command. It asks `champion_now` before it judges,
because another release may be promoted while it trains."""


def current_champion(settings: Settings) -> str:
    """Return the name of the announced champion, `none` without one."""
    champion = aliases_of(settings).get(CHAMPION)
    return champion.release if champion else "none"


def _at_hand(settings: Settings) -> str:
    """Return the champion's name, and check or download its folder, so that errors appear before hours of training."""
    champion = aliases_of(settings).get(CHAMPION)
    if champion is None:
        return "none"
    try:
        fetch_release(settings.releases_dir, champion)
    except ReleaseRejected as exc:
        needed = f"a new release is compared with {champion.release}, which serves, but its files are missing: {exc.message}"
        message = f"{needed}. Copy it there with `riffle release import`, or compare with no release: --against none"
        raise ReleaseRejected(exc.code, message) from exc
    return champion.release


def champion_now(before: str) -> str:
    """Name of the announced champion, whose folder is then in the releases folder; `none` without one.

    Returns `before`, the champion's name when last asked, where the present one cannot be found out or fetched: that must not
    fail a training that took hours.
    """
    try:
        return _at_hand(own_settings())
    except (KafkaError, OSError, RiffleError) as exc:
        log.warning("the release is judged against %s: the champion of now cannot be had: %s", before, exc)
        return before


def run_training(settings: Settings, options: list[str]) -> dict[str, Any]:
    """Run `training.cli.train` in a separate process, whose memory is freed at its end; returns its metrics.

    If it fails, this process prints its error and exits with its status.
    """
    status, out = _trained(settings, options)
    if status:
        if "--json" in sys.argv:
            click.echo(out, nl=False)
        sys.exit(status)
    return _last_line(out)


def try_training(settings: Settings, options: list[str]) -> dict[str, Any]:
    """Call `run_training`; with too little data to train or judge, return `{"error": …}`, which is already on stderr."""
    status, out = _trained(settings, options)
    facts = _last_line(out)
    if status and facts.get("error", {}).get("code") not in TOO_LITTLE:
        sys.exit(status)
    return facts


def _last_line(out: str) -> dict[str, Any]:
    try:
        return dict(json.loads(out.strip().splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        return {}


def _trained(settings: Settings, options: list[str]) -> tuple[int, str]:
    """Run a training, and report its progress; returns its exit status and output.

    Its error is on stderr, and as JSON at the end of the output.
    """
    with tempfile.TemporaryDirectory(prefix="riffle-training-") as folder:
        path = Path(folder) / "progress.json"
        reported = Reported(settings, path, options)
        reported.start()
        status, out = 1, ""
        try:
            status, out = _ran(settings, [*options, "--progress", str(path)])
        except KeyboardInterrupt:
            status = INTERRUPTED
            raise
        finally:
            reported.end(status, _last_line(out))
    return status, out


def _ran(settings: Settings, options: list[str]) -> tuple[int, str]:
    command = python("-c", TRAIN, *options, "--json", "--out", str(settings.releases_dir), "--cache", str(settings.cache))
    ran = subprocess.run(
        command, env={**os.environ, **SAFE_PATH}, stdout=subprocess.PIPE, encoding="utf-8", errors="replace", check=False
    )
    if not ran.returncode or "error" in _last_line(ran.stdout):  # the training has reported its error
        return ran.returncode, ran.stdout
    if ran.returncode < 0:
        ended = f"training was ended by {signal.Signals(-ran.returncode).name}"
        memory = ", usually because memory ran out: --newest N reads fewer events"
        message = ended + (memory if ran.returncode == -signal.SIGKILL else "")
    else:
        message = f"training failed with status {ran.returncode}: see its output above"
    click.echo(f"riffle: {message}", err=True)
    error = {"code": "training_failed", "message": message, "field": None}
    return abs(ran.returncode), json.dumps({"error": error}) + "\n"


def await_served(settings: Settings, name: str, console: Console) -> bool:
    """Wait until the local worker serves a release; returns False if the worker refuses it, or there is no worker."""
    until = time.monotonic() + SERVED_TIMEOUT_S
    with step(console, f"waiting until the worker serves {name}"):
        while time.monotonic() < until:
            state = readiness(settings)
            if state.get("release") == name:
                return True
            if (reason := (state.get("refused") or {}).get(name)) is not None:
                console.print(f"the worker refuses {name}: {reason}")
                return False
            if state.get("release") is None:
                silent = (state.get("reasons") or {}).get("web", "no worker answers")
                console.print(f"{silent}; workers load the release when they start")
                return False
            time.sleep(0.1)
    return False


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--promote/--no-promote", "promoting", default=False, help="Promote the release if it passes the gate.")
@click.option(
    "--upload", default="", help="With --promote: s3://bucket/prefix to copy it to first, for workers on other machines."
)
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[DIR|ARCHIVE] [TRAINING OPTIONS]...")
def train(promoting: bool, upload: str, as_json: bool, options: tuple[str, ...]) -> None:
    """Train a release from the archive of the stream, or from a dataset folder, and judge it on other events.

    \b
    The minimum, checked before training: 100 events on items of the catalogue, some of them liked; and for judging,
    50 first interactions with liked items by 30 users in the newest events, or else 12 users who liked something after
    their first event.

    \b
    Further options: --positive RULE  which events are liked     --quick        fewer passes
                     --holdout SHARE  most held out for the gate --seed N       random seed
                     --text-model M   another text encoder       --newest N     read only the newest events
                     --incremental    start from the champion    --ranker KIND  mmoe or deepfm
                     --settings FILE  heads, windows, sizes      --report FILE  HTML page of figures
                     --against NAME   release to compare with (default: the champion)
                     --checkpoints FOLDER  to resume after a kill
                     --examples FOLDER  output of `riffle examples`
                     --queries N      most queries of the gate
                     --no-refit       do not train again on the held-out events after the gate

    Example: riffle train --positive "action == 'like'" --promote
    """
    settings, console = own_settings(), plain_console(stderr=True)
    given = _given(options)
    source = [] if "source" in given else [settings.archive_target]
    against, follow = "none", []
    if "against" not in given and (promoting or readiness(settings).get("release") is not None):
        against, follow = _at_hand(settings), ["--follow"]
    facts = run_training(settings, [*source, "--against", against, *follow, *options])
    if facts.get("skipped"):  # an update that is not worth a release yet, as the training has reported
        if as_json:
            click.echo(json.dumps(facts))
        return
    if promoting and facts["gate"]["passed"]:
        facts |= promote(settings, facts["release"], upload=upload)
        facts["served"] = await_served(settings, facts["release"], console)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        print_training(facts, console)


def _given(options: Sequence[str]) -> set[str]:
    """Return the names of the parameters that arguments of a training set; wrong arguments set none, and training refuses them.

    Only the training's own command knows which options take a value, and so which argument is the folder.
    """
    command: click.Command = importlib.import_module("training.cli.train").train_command
    with command.make_context("riffle train", list(options), resilient_parsing=True) as context:
        return {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}


def print_training(facts: dict[str, Any], console: Console) -> None:
    """Print the quality without a release and with it, and the gate's verdict."""
    console.print(f"release {facts['release']}")
    rows = []
    for name in ("before", "after"):
        figures = facts[name]
        what = "without a release" if name == "before" else "with it"
        values = (figures[m] for m in ("ndcg@10", "hr@10", "recall@50", "mrr"))
        rows.append((what, *("–" if value is None else f"{value:.4f}" for value in values)))
    metrics = ("NDCG@10", "HR@10", "Recall@50", "MRR")
    print_table(console, ("", *metrics), rows, right=metrics)
    gate = facts["gate"]
    by = f"{gate['queries']:,} queries by {gate['people']:,} users, {gate['protocol']}"
    if not gate["passed"]:
        console.print(f"the gate refuses it ({by}): {'; '.join(gate['reasons'])}", highlight=False, soft_wrap=True)
        console.print("the current release keeps serving", highlight=False)
        return
    console.print(f"the gate passes it ({by})", highlight=False, soft_wrap=True)
    if before := facts.get("champion_before"):
        said = f"{facts['against']} was promoted instead of {before} during the training, so it was judged against that"
        console.print(said, highlight=False, soft_wrap=True)
    if refit := facts.get("refit"):
        if refit["published"]:
            added = f"{refit['added_events']:,} newer events"
            said = (
                f"refitted on all {refit['events']:,} events, {added} among them; parity, latency and size were checked again"
            )
        else:
            said = f"not refitted: {'; '.join(refit['reasons'])}"
        console.print(said, highlight=False, soft_wrap=True)
    if "champion" not in facts:
        console.print(f"promote it with: riffle release promote {facts['release']}", highlight=False, soft_wrap=True)


@click.group()
def release() -> None:
    """List, promote and roll back releases.

    Example: riffle release list
    """


def _row(manifest: Manifest, serving: str | None, aliases: Mapping[str, Announcement | None]) -> dict[str, Any]:
    after, gate = manifest.metrics.get("after", {}), manifest.metrics.get("gate", {})
    return {
        "release": manifest.name,
        "serving": manifest.name == serving,
        "aliases": sorted(alias for alias, named in aliases.items() if named is not None and named.release == manifest.name),
        "trained_until": manifest.trained_until_ms,
        "events": manifest.trained_events,
        "ndcg@10": after.get("ndcg@10"),
        "recall@50": after.get("recall@50"),
        "gate": "passed" if gate.get("passed") else "; ".join(gate.get("reasons", ())) or NOT_JUDGED,
        "parent": manifest.parent,
    }


@release.command("list")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def list_command(as_json: bool) -> None:
    """List the releases in the releases folder, and the one that the local worker serves.

    Example: riffle release list --json
    """
    settings = own_settings()
    serving = readiness(settings).get("release")
    try:
        aliases = aliases_of(settings)
    except (KafkaError, OSError):  # the folder can be listed without them
        aliases = {}
    rows = [_row(manifest, serving, aliases) for manifest in list_releases(settings.releases_dir)]
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        click.echo(f"no releases in {settings.releases_dir}: train one with `riffle train`")
        return
    shown = []
    for row in rows:
        day = time.strftime("%Y-%m-%d", time.gmtime(row["trained_until"] / 1000))
        figures = [f"{row[m]:.4f}" if row[m] is not None else "" for m in ("ndcg@10", "recall@50")]
        gate = row["gate"] if row["gate"] in {"passed", NOT_JUDGED} else "refused"
        shown.append(("*" if row["serving"] else "", row["release"], day, str(row["events"]), *figures, gate))
    console = plain_console()
    names = ("", "release", "until", "events", "NDCG@10", "Recall@50", "gate")
    print_table(console, names, shown, right=names[2:-1])
    if any(row["serving"] for row in rows):
        console.print("* serves now")
    for row in rows:
        if row["aliases"]:
            console.print(f"{', '.join(row['aliases'])}: {row['release']}")
    for row in rows:
        if row["gate"] not in {"passed", NOT_JUDGED}:
            console.print(f"{row['release']} was refused: {row['gate']}")


@release.command("promote")
@click.argument("name")
@click.option("--force", is_flag=True, help="Promote it even if the gate refused it.")
@click.option("--upload", default="", help="s3://bucket/prefix to copy it to first, for workers on other machines.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def promote_command(name: str, force: bool, upload: str, as_json: bool) -> None:
    """Verify a release and announce it. Every worker then verifies it again, warms it up and swaps it in.

    Example: riffle release promote 20260131-0123456789
    """
    settings, console = own_settings(), plain_console(stderr=True)
    facts = promote(settings, name, force=force, upload=upload)
    facts["served"] = await_served(settings, name, console)
    _report(facts, as_json=as_json)


@release.command("import")
@click.argument("source", metavar="FOLDER|TAR.GZ|S3")
@click.option("--sha256", default="", help="SHA-256 of its manifest: `manifest_sha256` in the training's output.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def import_command(source: str, sha256: str, as_json: bool) -> None:
    """Import a release that was trained elsewhere into the releases folder: a folder, a model.tar.gz, or s3://… of either.

    No file is loaded before all match the checksums of the manifest. These do not prove who wrote the release: if others can
    write to the bucket, pass the --sha256 from the job's log. An imported release serves only once it is promoted.

    Example: riffle release import s3://bucket/out/riffle-train-20260131-120000/output/model.tar.gz
    """
    folder = take(Settings.from_env().releases_dir, source, sha256)
    facts = {"release": folder.name, "folder": str(folder), "manifest_sha256": manifest_sha256(folder)}
    gate = read_manifest(folder).metrics.get("gate", {})
    reasons = "; ".join(gate.get("reasons", ())) or NOT_JUDGED
    serve = f"promote it with: riffle release promote {folder.name}"
    what = serve if gate.get("passed") else f"the gate has not passed it: {reasons}"
    click.echo(json.dumps(facts) if as_json else f"{folder.name}; {what}")


@release.command("alias")
@click.argument("alias", type=click.Choice([CHALLENGER]))
@click.argument("name")
@click.option("--force", is_flag=True, help="Promote it even if the gate refused it.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def alias_command(alias: str, name: str, force: bool, as_json: bool) -> None:
    """Record a verified release as the challenger of the one that serves; `none` removes the alias.

    The challenger does not serve: `riffle release list` shows it, and `riffle release promote` lets it serve. Only promotion
    and rollback set the champion.

    Example: riffle release alias challenger 20260131-0123456789
    """
    challenge(own_settings(), name, force=force)
    click.echo(json.dumps({alias: name}) if as_json else f"{alias} {name}")


@release.command("rollback")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def rollback_command(as_json: bool) -> None:
    """Return to the release that served before, or to none.

    Example: riffle release rollback
    """
    settings, console = own_settings(), plain_console(stderr=True)
    facts: dict[str, Any] = roll_back(settings)
    facts["served"] = await_served(settings, facts["champion"], console)
    _report(facts, as_json=as_json)


def _report(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts))
        return
    where = "the worker serves it" if facts["served"] else "announced"
    click.echo(f"champion {facts['champion']} ({where}), before it {facts['previous']}")
