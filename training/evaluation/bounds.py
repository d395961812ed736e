"""What a release must keep to, and by which protocol it is judged: known before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HALF", "LEAVE_LAST_OUT", "PREQUENTIAL", "STANDARD", "Bounds"]

PREQUENTIAL, LEAVE_LAST_OUT = "prequential", "leave_last_out"
"Protocols: how what a release is asked about was kept from its training (`training.evaluation.holdout`)."


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a release must keep to."""

    queries: int = 50
    "Fewest queries to judge by, of `prequential`."
    people: int = 30
    "Fewest people to judge by, of `prequential`: an interval from drawing a handful of people is too narrow."
    last: int = 12
    "Fewest people to judge by, of `leave_last_out`."
    parity: float = 1e-4
    "Largest difference of a score between the exported graphs and torch."
    differing: int = 0
    "Requests, of those asked, whose first K may differ from torch's."
    tied: float = 0.01
    """Share of requests that may differ by the few candidates that only one of the two retrieved: true ties are rare (1 of
    1,000 was seen), and a graph that is wrong for some items has them everywhere."""
    rank_ms: float = 100.0
    "99th percentile of ranking one request's candidates on this machine, ms."
    size_mb: float = 4_096.0
    "Bytes of the release's files, MB."
    level: float = 0.9
    "Of the interval of the difference, whose lower end must be above 0."

    def needs(self, protocol: str) -> tuple[int, int]:
        """Fewest queries and fewest people of a protocol."""
        return (self.last, self.last) if protocol == LEAVE_LAST_OUT else (self.queries, self.people)


STANDARD = Bounds()
HALF = Bounds(parity=1e-2, differing=10**9, tied=1.0)
"For graphs in half precision, which differ by design: they are measured as they serve, and must be better all the same."
