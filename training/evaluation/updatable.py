"""Whether what is new since a release suffices to update it, and if not, the reason.

An update runs by the hour. To find little is its normal case and no error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from schemas.errors import BadDataset
from training.data.amounts import FEWEST_NEW, demand_enough, new_events
from training.data.corpus import Corpus
from training.data.table import of_known_items
from training.evaluation.holdout import Holdout, held_out

__all__ = ["Updatable", "updatable"]

TOO_LITTLE = frozenset({"too_little", "too_little_to_judge"})
"Codes of errors that are reasons to wait for more events."


@dataclass(frozen=True, slots=True)
class Updatable:
    """What an update learns from and is judged by, or why there is too little of it."""

    held: Holdout | None
    "Held-out events; None where there is too little."
    new: int
    "Number of new events on known items, without the held-out ones where these could be chosen."
    skipped: str = ""
    "Reason: `nothing_new`, `too_little` or `too_little_to_judge`; empty where there is enough."
    message: str = ""
    "The reason in words, with the available and the needed number."

    def to_json(self) -> dict[str, Any]:
        """Convert the reason to JSON."""
        return {"skipped": self.skipped, "new_events": self.new, "needed": FEWEST_NEW, "message": self.message}


def updatable(corpus: Corpus, champion: str, until_ms: int, share: float, queries: int) -> Updatable:
    """Choose what an update of `champion`, which was trained on events up to `until_ms`, learns from and is judged by.

    `share`, `queries`: as for `held_out`.
    """
    found = new_events(corpus, 1.0, until_ms)
    newer = f"{found} events on items of the catalogue are newer than {champion}"
    needed = f"{FEWEST_NEW} are needed"
    try:
        demand_enough(of_known_items(corpus.events, corpus.items), corpus.positive)
        if found < FEWEST_NEW:
            return Updatable(None, found, "nothing_new", f"{newer}, {needed}")
        held = held_out(corpus.events, corpus.positive, share, queries, champion, until_ms)
    except BadDataset as exc:
        if exc.code not in TOO_LITTLE:
            raise
        return Updatable(None, found, exc.code, exc.message)
    left = new_events(replace(corpus, events=held.events), held.share, until_ms)
    if left < FEWEST_NEW:
        message = f"{newer}, of which {left} are not kept for the gate, {needed}"
        return Updatable(None, left, "nothing_new", message)
    return Updatable(held, left)
