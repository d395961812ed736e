"""Evaluation of an existing release on events outside its training."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from models.release.release import NAME, Release
from schemas.errors import BadDataset, ConfigError, ReleaseRejected
from schemas.records import Interaction

__all__ = ["find_release", "newer_share", "seen_events"]

TIME = attrgetter("event_time")


def find_release(named: str, root: Path) -> Release:
    """Find and verify the release in the folder `named`, or of that name below `root`.

    Raises:
        ReleaseRejected: there is none, or it does not match its manifest.
    """
    folder = Path(named)
    if not (folder / "manifest.json").exists() and NAME.fullmatch(named):
        folder = root / named
    if not folder.is_dir():
        raise ReleaseRejected("not_found", f"there is no release {named[:200]!r}: no folder has this name, here or in {root}")
    return Release.open(folder.absolute())


def newer_share(events: Sequence[Interaction], until_ms: int, name: str) -> float:
    """Share of the events up to `until_ms`. The rest is unseen by a release trained until then.

    Raises:
        BadDataset: no event is newer.
    """
    cut = bisect_right(events, until_ms, key=TIME)
    if cut >= len(events):
        message = f"no event is newer than {name}, which was trained until {_day(until_ms)}"
        raise BadDataset("nothing_newer", f"{message}: give newer events, or --seen and --share to query its training events")
    return (cut + 0.5) / len(events)


def seen_events(events: Sequence[Interaction], share: float, until_ms: int, name: str, *, allowed: bool) -> int:
    """Number of events after the first `share` that are at or before `until_ms`, the end of a release's training.

    An event at exactly that time counts as seen, because its use in training is unknown.

    Raises:
        ConfigError: there are some, and that is not `allowed`.
    """
    cut = int(len(events) * share)
    seen = max(0, bisect_right(events, until_ms, key=TIME) - cut)
    if seen and not allowed:
        message = f"{name} was trained until {_day(until_ms)}, on {seen:,} of the events after the first {share:g}"
        raise ConfigError("seen", f"{message}: leave out --share, to query newer ones, or give --seen", "share")
    return seen


def _day(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ms / 1000))
