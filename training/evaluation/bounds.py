"""Bounds and protocols of the gate, fixed before training."""

from __future__ import annotations

from dataclasses import dataclass

from models.dataset.needs import LIKED_USERS, QUERIES, QUERY_USERS

__all__ = ["HALF", "LEAVE_LAST_OUT", "PREQUENTIAL", "STANDARD", "Bounds"]

PREQUENTIAL, LEAVE_LAST_OUT = "prequential", "leave_last_out"
"Protocols: how the events that judge a release are held out from its training (`training.evaluation.holdout`)."


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds that a release must satisfy."""

    queries: int = QUERIES
    "Minimum number of queries to judge by, for `prequential`."
    people: int = QUERY_USERS
    "Minimum number of users to judge by, for `prequential`: resampling a handful of users gives too narrow an interval."
    last: int = LIKED_USERS
    "Minimum number of users to judge by, for `leave_last_out`."
    parity: float = 1e-4
    "Largest score difference between the exported graphs and torch."
    differing: int = 0
    "Maximum number of requests whose first K differ from torch's."
    tied: float = 0.01
    """Largest share of requests that differ only by a few candidates that one side retrieved. True ties are rare (1 of 1,000
    was seen); a graph that is wrong for some items shows such differences everywhere."""
    rank_ms: float = 100.0
    "Largest 99th percentile of ranking one request's candidates on this machine, ms."
    size_mb: float = 4_096.0
    "Largest size of the release's files, MB."
    level: float = 0.9
    "Level of the interval of the difference. Its lower end must be above 0."

    def needs(self, protocol: str) -> tuple[int, int]:
        """Minimum number of queries and of users for a protocol."""
        return (self.last, self.last) if protocol == LEAVE_LAST_OUT else (self.queries, self.people)


STANDARD = Bounds()
HALF = Bounds(parity=1e-2, differing=10**9, tied=1.0)
"For graphs in half precision, which differ by design. They are measured as they serve and must still beat the champion."
