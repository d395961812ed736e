"""Promotion and rollback of releases: which release is announced to all workers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.release.release import NAME, Manifest, Release, manifest_sha256
from models.release.tracking import Tracker, Tracking
from schemas.errors import NotReady, ReleaseRejected
from schemas.settings import Settings
from streams.kafka.announce import CHALLENGER, CHAMPION, PREVIOUS, Announcement, announce, announced
from streams.release_store import upload_release

__all__ = ["aliases_of", "note", "passed", "promote", "roll_back"]

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


def promote(settings: Settings, name: str, *, force: bool = False, upload: str = "") -> dict[str, Any]:
    """Verify a release here and announce it as the champion; the earlier champion becomes `previous`.

    Raises:
        ReleaseRejected: its verification failed, or the gate refused it and `force` is not given.
    """
    folder, manifest = passed(settings, name, force=force)
    aliases = aliases_of(settings)
    before = aliases.get(CHAMPION)
    again = before is not None and before.release == name
    if before is not None and not again and manifest.parent != before.release and not force:
        judged = "no release" if manifest.parent == "none" else manifest.parent
        message = f"{name} was judged against {judged}, but {before.release} serves: train again to compare it with that"
        raise ReleaseRejected("gate", message)
    uri = upload_release(folder, upload) if upload else ""
    previous = aliases.get(PREVIOUS) if again else before
    changes = {PREVIOUS: previous, CHAMPION: Announcement(name, manifest_sha256(folder), uri)}
    challenger = aliases.get(CHALLENGER)
    if challenger is not None and challenger.release == name:  # it is no longer the challenger
        changes[CHALLENGER] = None
    asyncio.run(announce(settings, changes))
    facts = {"champion": name, "previous": before.release if before else "none"}
    accepted = bool(manifest.metrics.get("gate", {}).get("passed"))
    note(name, {"riffle.decision": "promoted" if accepted else "promoted by force", "riffle.previous": facts["previous"]})
    return facts


def note(name: str, tags: Mapping[str, str]) -> None:
    """Tag a release's MLflow runs at MLFLOW_TRACKING_URI, if set. Serving does not depend on it."""
    tracking = Tracking.from_env()
    if tracking is not None:
        try:
            Tracker(tracking).tag(name, tags)
        except NotReady as exc:
            log.warning("not recorded for release %s: %s", name, exc.message)


def roll_back(settings: Settings) -> dict[str, Any]:
    """Announce the release that served before, or none; returns the names of `champion` and `previous`.

    Raises:
        ReleaseRejected: `no_previous`, no release was ever promoted.
    """
    aliases = aliases_of(settings)
    champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
    if champion is None and previous is None:
        raise ReleaseRejected("no_previous", "no release was ever promoted: there is nothing to roll back to")
    asyncio.run(announce(settings, {CHAMPION: previous, PREVIOUS: champion}))
    if champion is not None:
        note(champion.release, {"riffle.decision": "rolled back"})
    if previous is not None:
        note(previous.release, {"riffle.decision": "promoted"})
    return {"champion": previous.release if previous else "none", "previous": champion.release if champion else "none"}
