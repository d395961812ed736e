"""Checks of events: what can be learned from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from models.dataset.bad_rows import BadRow
from models.dataset.checks.check import NAMED, Check, State, examples, good, warning
from models.dataset.checks.facts import Facts
from models.dataset.checks.rows import by_kind
from models.dataset.folder import Dataset
from models.dataset.needs import FEWEST_EVENTS, LIKED_USERS, QUERIES, QUERY_USERS
from models.rules import SHOWN

__all__ = ["event_checks"]

EVERY_EVENT = "True"
"The rule of a folder that names none."
NEARLY_ALL = 0.95
"Share of liked events from which likes distinguish little."
MANY = 0.5
"Share of users with a single event from which it is a warning."
WITHOUT = "load it all the same: Riffle recommends without a release until there is more"


def event_checks(dataset: Dataset, facts: Facts) -> Iterator[Check]:
    """Check times, unknown items, likes, users, and whether a release can be trained and judged."""
    yield _times(dataset, facts, by_kind(facts.bad)["times"])
    if facts.events:
        yield _unknown(facts)
        yield _likes(dataset, facts)
        yield _users(facts)
        yield _training(facts)
        yield _gate(facts)


def _times(dataset: Dataset, facts: Facts, bad: Sequence[BadRow]) -> Check:
    advice = "write epoch milliseconds or ISO 8601, at most a day ahead"
    if not facts.events:
        if bad:
            return Check("times", State.FAIL, f"no event has a time that can be used: {examples(bad)}", advice)
        return warning("times", "there are no events, or only impressions", "add what users did: Riffle learns from that")
    span = f"events from {_day(facts.first_ms)} to {_day(facts.last_ms)}"
    if dataset.warnings["january_1970"]:
        return warning("times", f"most times lie in January 1970; {span}", "multiply seconds by 1,000")
    if bad:
        return warning("times", f"{len(bad):,} rows are skipped: {examples(bad)}; {span}", advice)
    if facts.first_ms == facts.last_ms and facts.events > 1:
        return warning("times", f"all events have the same time, {_day(facts.first_ms)}", "give each event its own time")
    return good("times", span)


def _day(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"


def _unknown(facts: Facts) -> Check:
    if not facts.unknown:
        return good("unknown items", "every event is on an item of the catalogue")
    share = f"{facts.unknown:,} of {facts.events:,} events are on items that the catalogue lacks"
    said = f"{share}, such as {facts.unknown_example!r}"
    if any(name.startswith("items.") for name in facts.cut):
        return warning(
            "unknown items", f"{said}; but only a part of it was read", "load the folder to know: `riffle load` counts them"
        )
    advice = "add these items, or write their ids as in items: no slate holds such an item, and training leaves such events out"
    return Check("unknown items", State.WARN if facts.known else State.FAIL, said, advice)


def _likes(dataset: Dataset, facts: Facts) -> Check:
    actions = ", ".join(f"{name} ({n:,})" for name, n in facts.actions.most_common(NAMED) if name != SHOWN)
    advice = f"set positive in dataset.toml, such as positive = \"action == 'like'\"; the actions are {actions}"
    if dataset.positive == EVERY_EVENT:
        return warning("likes", "without a rule every event counts as a like", advice)
    said = f"{facts.liked:,} of {facts.events:,} events are likes by the rule {dataset.positive!r}"
    if not facts.liked:
        return Check("likes", State.WARN if facts.cut else State.FAIL, said, advice)
    if facts.liked > NEARLY_ALL * facts.events:
        return warning("likes", f"{said}, so that likes distinguish little", advice)
    return good("likes", said)


def _users(facts: Facts) -> Check:
    users, single = len(facts.per_user), sum(n == 1 for n in facts.per_user.values())
    said = f"{users:,} users, of whom {single:,} have a single event"
    if facts.cut:
        return good("users", f"{said} in the rows that were read")
    if single <= MANY * users:
        return good("users", said)
    return warning("users", said, "check that user_id names a user in all their events: single events teach little")


def _training(facts: Facts) -> Check:
    said = f"{facts.known:,} events on items of the catalogue, {FEWEST_EVENTS} are needed to train"
    return good("training", said) if facts.known >= FEWEST_EVENTS else warning("training", said, WITHOUT)


def _gate(facts: Facts) -> Check:
    judge = facts.judge
    said = (
        f"to judge a release there are, in the newest fifth, {judge.queries:,} first interactions with liked items by "
        f"{judge.users:,} users ({QUERIES} by {QUERY_USERS} are needed); or else {judge.liked_users:,} users who liked "
        f"something after their first event ({LIKED_USERS})"
    )
    if judge.suffices:
        return good("gate", said)
    if facts.cut:
        return warning("gate", f"{said}, in the rows that were read", "train: `riffle train` counts all before it begins")
    return warning("gate", said, WITHOUT)
