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

    def of(self, n: int, batch: int) -> float:
        """Expected seconds for n requests in batches of at most `batch`."""
        return -(-n // batch) * self.fixed_s + n * self.each_s

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
"Cost of each effort as a share of the full one, until it is measured."


class Costs:
    """The estimate of each effort. Less effort is never expected to take longer."""

    def __init__(self) -> None:
        self._known = {Effort.FULL: Cost()}

    def of(self, effort: Effort, n: int, batch: int) -> float:
        """Expected seconds for n requests with this effort, in batches of at most `batch`."""
        full = self._known[Effort.FULL].of(n, batch)
        if effort is Effort.FULL:
            return full
        greater = [each for each in Effort if each <= effort]
        return min(self._known[each].of(n, batch) if each in self._known else full * SHARES[each] for each in greater)

    def learn(self, effort: Effort, n: int, seconds: float) -> None:
        """Update the estimate of an effort with a batch of n that took `seconds`."""
        if effort not in self._known:
            full, share = self._known[Effort.FULL], SHARES[effort]
            self._known[effort] = Cost(full.fixed_s * share, full.each_s * share, full.step)
        self._known[effort].learn(n, seconds)

    def relax(self, above: Effort | None = None) -> None:
        """Lower all estimates, or those of greater efforts than `above`, so that they are tried again."""
        for effort, cost in self._known.items():
            if above is None or effort < above:
                cost.relax()
