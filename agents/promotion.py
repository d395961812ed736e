"""Promotion and rollback of releases: which release is announced to all workers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.release.release import NAME, Manifest, Release, manifest_sha256
from models.release.tracking import Tracker, Tracking
from schemas.errors import NotReady, ReleaseRejected
from schemas.settings import Settings
from streams.kafka.announce import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    Announcement,
    address_of,
    announce,
    announced,
    announcements,
)
from streams.release_store import upload_release

__all__ = ["Change", "aliases_of", "challenge", "note", "passed", "promote", "promotion", "roll_back", "rollback"]

log = logging.getLogger(__name__)


def aliases_of(settings: Settings) -> dict[str, Announcement | None]:
    """Return the newest announcement of each alias. Call it outside of an event loop."""
    return asyncio.run(announced(settings))


def passed(settings: Settings, name: str, *, force: bool) -> tuple[Path, Manifest]:
    """Verify a release, and unless `force` that it passed the gate; returns folder and manifest, raises ReleaseRejected."""
    folder = settings.releases_dir / name
    if not NAME.fullmatch(name) or not folder.is_dir():
        raise ReleaseRejected(
            "not_found", f"there is no release {name[:80]!r} in {settings.releases_dir}: see riffle release list"
        )
    manifest = Release.open(folder).manifest
    gate = manifest.metrics.get("gate", {})
    if not gate.get("passed") and not force:
        if reasons := "; ".join(gate.get("reasons", ())):
            raise ReleaseRejected("gate", f"the gate refused {name}: {reasons}")
        raise ReleaseRejected("gate", f"{name} was never judged by the gate: train with `riffle train`, which judges")
    return folder, manifest


@dataclass(frozen=True, slots=True)
class Change:
    """What a promotion or a rollback announced."""

    champion: str
    "Name of the release that serves from now on, `none` without one."
    previous: str
    "Name of the release that served before, `none` without one."
    decisions: Mapping[str, Mapping[str, str]]
    "Tags of MLflow runs, by release."

    def facts(self) -> dict[str, Any]:
        """Return `{"champion", "previous"}`."""
        return {"champion": self.champion, "previous": self.previous}

    def note(self) -> None:
        """Record the decisions in MLflow (`note`), which may take as long as MLflow takes to answer."""
        for name, tags in self.decisions.items():
            note(name, tags)


def promote(settings: Settings, name: str, *, force: bool = False, upload: str = "") -> dict[str, Any]:
    """Announce as `promotion` does and record it in MLflow; returns `{"champion", "previous"}`. Raises as `promotion`."""
    change = promotion(settings, name, force=force, upload=upload)
    change.note()
    return change.facts()


def roll_back(settings: Settings) -> dict[str, Any]:
    """Announce as `rollback` does and record it in MLflow; returns `{"champion", "previous"}`. Raises as `rollback`."""
    change = rollback(settings)
    change.note()
    return change.facts()


def promotion(
    settings: Settings,
    name: str,
    *,
    force: bool = False,
    upload: str = "",
    expected: str | None = None,
    until: float | None = None,
) -> Change:
    """Verify a release here and announce it as the champion; the earlier champion becomes `previous`.

    Without `upload` the release keeps the address under which it was announced before, if its content is the same.
    `expected`: name of the champion that this replaces, `none` without one. `until`: monotonic time in seconds after which
    nothing is announced.

    Raises:
        ReleaseRejected: its verification failed, or the gate refused it and `force` is not given; `champion_changed`, another
            release than the expected one is the champion.
        NotReady: `broker_unavailable`, Kafka did not answer until then.
    """
    folder, manifest = passed(settings, name, force=force)
    known = _known(settings, until)
    aliases = dict(known)
    before = aliases.get(CHAMPION)
    _check_expected(before, expected)
    again = before is not None and before.release == name
    if before is not None and not again and manifest.parent != before.release and not force:
        judged = "no release" if manifest.parent == "none" else manifest.parent
        message = f"{name} was judged against {judged}, but {before.release} serves: train again to compare it with that"
        raise ReleaseRejected("gate", message)
    content = manifest_sha256(folder)
    uri = upload_release(folder, upload) if upload else address_of(known, name, content)
    previous = aliases.get(PREVIOUS) if again else before
    changes = {PREVIOUS: previous, CHAMPION: Announcement(name, content, uri)}
    challenger = aliases.get(CHALLENGER)
    if challenger is not None and challenger.release == name:  # it is no longer the challenger
        changes[CHALLENGER] = None
    asyncio.run(announce(settings, changes))
    accepted = bool(manifest.metrics.get("gate", {}).get("passed"))
    was = _name_of(before)
    tags = {"riffle.decision": "promoted" if accepted else "promoted by force", "riffle.previous": was}
    return Change(name, was, {name: tags})


def rollback(settings: Settings, *, expected: str | None = None, until: float | None = None) -> Change:
    """Announce the release that served before, or none. `expected`, `until`: as for `promotion`.

    Raises:
        ReleaseRejected: `no_previous`, no release was ever promoted; `champion_changed`, as for `promotion`.
        NotReady: as for `promotion`.
    """
    aliases = dict(_known(settings, until))
    champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
    _check_expected(champion, expected)
    if champion is None and previous is None:
        raise ReleaseRejected("no_previous", "no release was ever promoted: there is nothing to roll back to")
    asyncio.run(announce(settings, {CHAMPION: previous, PREVIOUS: champion}))
    decisions = {}
    if champion is not None:
        decisions[champion.release] = {"riffle.decision": "rolled back"}
    if previous is not None:
        decisions[previous.release] = {"riffle.decision": "promoted"}
    return Change(_name_of(previous), _name_of(champion), decisions)


def challenge(settings: Settings, name: str, *, force: bool = False) -> None:
    """Verify a release and announce it as the challenger, with the address that is known of it; `none` removes the alias.

    Raises:
        ReleaseRejected: as `passed`; `champion`, it is the champion.
    """
    named = None
    if name != "none":
        folder, _ = passed(settings, name, force=force)
        known = _known(settings, None)
        champion = dict(known).get(CHAMPION)
        if champion is not None and champion.release == name:
            raise ReleaseRejected("champion", f"{name} is the champion: it cannot challenge itself")
        content = manifest_sha256(folder)
        named = Announcement(name, content, address_of(known, name, content))
    asyncio.run(announce(settings, {CHALLENGER: named}))


def note(name: str, tags: Mapping[str, str]) -> None:
    """Tag a release's MLflow runs at MLFLOW_TRACKING_URI, if set. Serving does not depend on it."""
    tracking = Tracking.from_env()
    if tracking is not None:
        try:
            Tracker(tracking).tag(name, tags)
        except NotReady as exc:
            log.warning("not recorded for release %s: %s", name, exc.message)


def _known(settings: Settings, until: float | None) -> list[tuple[str, Announcement | None]]:
    left = None if until is None else until - time.monotonic()

    async def found() -> list[tuple[str, Announcement | None]]:
        async with asyncio.timeout(left):
            await asyncio.sleep(0)  # a time that is over ends it here
            return await announcements(settings)

    try:
        return asyncio.run(found())
    except TimeoutError as exc:
        message = "Kafka did not return the announced releases in time: nothing was announced"
        raise NotReady("broker_unavailable", message) from exc


def _name_of(named: Announcement | None) -> str:
    return named.release if named is not None else "none"


def _check_expected(champion: Announcement | None, expected: str | None) -> None:
    if expected is not None and expected != _name_of(champion):
        message = f"the champion is {_name_of(champion)}, not {expected[:80]}: nothing was announced"
        raise ReleaseRejected("champion_changed", message)
