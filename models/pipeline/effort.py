"""How much work a batch gets: under load fewer candidates are ranked before requests are refused."""

from __future__ import annotations

import enum

__all__ = ["Effort"]


class Effort(enum.IntEnum):
    """Steps of degradation, from the best answers to the cheapest."""

    FULL = 0
    HALF = 1
    "Half of the candidates are ranked."
    QUARTER = 2
    LIGHT = 3
    "The light order answers: nothing is ranked."
    POPULAR = 4
    "Popular items answer, in the light order; candidates that a request names itself are kept."

    def ranked(self, light_top: int) -> int:
        """Number of candidates that remain after the light cut."""
        return light_top >> min(self, Effort.QUARTER)

    @property
    def degraded(self) -> tuple[str, ...]:
        """What `degraded` of a slate names."""
        return DEGRADED[self]


DEGRADED = {
    Effort.FULL: (),
    Effort.HALF: ("ranked:half",),
    Effort.QUARTER: ("ranked:quarter",),
    Effort.LIGHT: ("ranked:none",),
    Effort.POPULAR: ("popular",),
}
