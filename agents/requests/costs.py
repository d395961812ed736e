"""Estimated durations of batches, learned from measurements."""

from __future__ import annotations

from dataclasses import dataclass

from models.pipeline.effort import Effort

__all__ = ["Cost", "Costs"]


@dataclass(slots=True)
class Cost:
    """Seconds that a batch of n takes: `fixed_s + n * each_s`, followed by a normalised gradient step (Widrow & Hoff 1960)."""

    fixed_s: float = 0.004
    each_s: float = 0.001
    step: float = 0.2

    def learn(self, n: int, seconds: float) -> None:
        """Update the estimate with a batch of n that took `seconds`."""
        error = (seconds - self.fixed_s - n * self.each_s) * self.step / (1 + n * n)
        self.fixed_s = max(self.fixed_s + error, 0.0002)
        self.each_s = max(self.each_s + n * error, 0.00002)

    def relax(self) -> None:
        """Lower the estimate, so that a request is tried again; otherwise a wrong estimate would never be corrected."""
        self.fixed_s *= 0.8
        self.each_s *= 0.8


SHARES = {Effort.FULL: 1.0, Effort.HALF: 0.7, Effort.QUARTER: 0.55, Effort.LIGHT: 0.4, Effort.POPULAR: 0.2}
"Cost of each effort as a share of the full one, until it is measured. In the order of efforts."


class Costs:
    """The estimate of each effort. Less effort is never expected to take longer."""

    def __init__(self) -> None:
        self._known = {Effort.FULL: Cost()}
        self._lines: list[tuple[float, float]] = []
        "Seconds of a batch, and of each request, by effort: a request looks at many estimates, and each batch changes one."
        self._update()

    def _update(self) -> None:
        full = self._known[Effort.FULL]
        self._lines = [
            (known.fixed_s, known.each_s)
            if (known := self._known.get(effort)) is not None
            else (full.fixed_s * share, full.each_s * share)
            for effort, share in SHARES.items()
        ]

    def of(self, effort: Effort, n: int, batch: int) -> float:
        """Expected seconds for n requests with this effort, in batches of at most `batch`."""
        batches = -(-n // batch)
        return min([batches * fixed_s + n * each_s for fixed_s, each_s in self._lines[: effort + 1]])

    def learn(self, effort: Effort, n: int, seconds: float) -> None:
        """Update the estimate of an effort with a batch of n that took `seconds`."""
        if effort not in self._known:
            full, share = self._known[Effort.FULL], SHARES[effort]
            self._known[effort] = Cost(full.fixed_s * share, full.each_s * share, full.step)
        self._known[effort].learn(n, seconds)
        self._update()

    def relax(self, above: Effort | None = None) -> None:
        """Lower all estimates, or those of greater efforts than `above`, so that they are tried again."""
        for effort, cost in self._known.items():
            if above is None or effort < above:
                cost.relax()
        self._update()
