"""Measures how likely each position of a slate is looked at, from the slates themselves and without an experiment.

The position-based model (Craswell et al. 2008): a user clicks an item if they look at its position and like what they see. The
chosen one of a slate's items is i with a probability proportional to exp(log examination of its position + effect of the item),
a conditional logit. Items that were shown at several positions tell both apart, as in intervention harvesting (Agarwal et al.
2019). Where a ranker is known, its logits for user and item enter beside the items' effects, because a slate that another
system personalised has better items on top for this user. This is a step of regression EM (Wang et al. 2018).

Effects of items shrink to 0, and the steps of the curve to those of the fixed curve, so that few slates give that curve.
Intervals come from a jackknife over groups of users, because choices of one user are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.slates.examination import POSITIONS, Examination, continued, fixed_curve

__all__ = ["Choices", "choices_in", "measured"]

FEWEST = 100
"Minimum number of choices; with fewer there is no measurement."
GROUPS = 10
T_GROUPS = 2.262
"0.975 quantile of Student's t distribution with GROUPS - 1 degrees of freedom."
ITEM_DEVIATION = 1.0
"Deviation of the items' effects before any choice is known."
STEP_DEVIATION = 0.3
"Deviation of a step of the curve from that of the fixed curve, before any choice is known."
ITERATIONS = (60, 12)
"Most iterations of the fit, and of those without a group, which start from it."
LARGEST = 5.0
"Largest absolute logarithm of an examination probability."
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choices:
    """n slates of up to c items, of each of which a user chose at least one. Padded."""

    users: NDArray[np.int64]
    "Number of the user of each slate: `(n,)`."
    items: NDArray[np.int64]
    "Number of each item: `(n, c)`."
    positions: NDArray[np.int64]
    "Position of each item, 0 is first: `(n, c)`."
    chosen: NDArray[np.float32]
    "Share of each item in the slate's choice: `(n, c)`, rows sum to 1."
    valid: NDArray[np.bool_]
    "False for padding: `(n, c)`."

    def __len__(self) -> int:
        return len(self.users)


def choices_in(slates: pl.DataFrame) -> Choices | None:
    """Slates with a choice among items at known positions; None if there are too few. `slates`: result of `all_slates`."""
    known = pl.col("position").is_not_null().all() & pl.col("liked").any() & (pl.len() >= 2)
    rows = slates.filter(known.over("slate")).with_columns(
        pl.col("slate").rank("dense").cast(pl.Int64) - 1, pl.int_range(pl.len()).over("slate").alias("place")
    )
    if not rows.height or (n := int(rows["slate"].max()) + 1) < FEWEST:  # type: ignore[arg-type]
        return None
    rows = rows.filter(pl.col("place") < POSITIONS)
    at = rows["slate"].to_numpy(), rows["place"].to_numpy()
    shape = n, int(at[1].max()) + 1
    items, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    chosen, valid = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
    items[at] = rows["item_id"].rank("dense").to_numpy() - 1
    positions[at] = rows["position"].clip(0, POSITIONS - 1).to_numpy()
    chosen[at], valid[at] = rows["liked"].to_numpy(), True
    users = np.zeros(n, np.int64)
    users[at[0]] = rows["user_id"].rank("dense").to_numpy() - 1
    kept = chosen.sum(axis=1) > 0
    chosen = chosen[kept] / chosen[kept].sum(axis=1, keepdims=True)
    return Choices(users[kept], items[kept], positions[kept], chosen, valid[kept])


def measured(choices: Choices | None, logits: NDArray[np.float32] | None = None) -> Examination | None:
    """Measure the curve; None with fewer than FEWEST choices. `logits` of a ranker: `(n, c)`. Deterministic.

    The interval covers the sample, not a wrong model: where a slate's order depends on what the user likes, and neither items
    nor logits know it, the curve is too steep.
    """
    if choices is None or len(choices) < FEWEST or len(np.unique(choices.positions[choices.valid])) < 2:
        return None
    fit = _Fit(choices, logits)
    whole = fit.run(np.ones(len(choices)), ITERATIONS[0])
    best = fit.curve(whole)
    parts = []
    for group in range(GROUPS):
        kept = choices.users % GROUPS != group
        parts.append(fit.curve(fit.run(kept.astype(np.float64), ITERATIONS[1], whole)))
    spread = np.stack(parts) - np.mean(parts, axis=0)
    margin = T_GROUPS * np.sqrt((GROUPS - 1) / GROUPS * (spread**2).sum(axis=0))
    log = continued(best).clip(-LARGEST, LARGEST)
    return Examination(log, best - margin, best + margin, len(choices), fit.scale(whole))


class _Fit:
    """The penalised likelihood of choices by effects of items, steps of the curve, and the weight of the logits."""

    def __init__(self, choices: Choices, logits: NDArray[np.float32] | None) -> None:
        self._items = torch.from_numpy(choices.items)
        self._positions = torch.from_numpy(choices.positions)
        self._chosen = torch.from_numpy(choices.chosen.astype(np.float64))
        self._padding = torch.from_numpy(~choices.valid)
        self._logits = None if logits is None else torch.from_numpy(np.where(choices.valid, logits, 0).astype(np.float64))
        self._n_items = int(choices.items.max()) + 1
        self._steps = torch.from_numpy(np.diff(fixed_curve()[: int(choices.positions[choices.valid].max()) + 1]))

    def run(self, weight: Floats, iterations: int, start: Tensor | None = None) -> Tensor:
        """Fit to the slates with these weights, `(n,)`; returns the parameters."""
        given = torch.from_numpy(weight)
        if start is None:
            start = torch.cat([self._steps, torch.ones(1), torch.zeros(self._n_items)])
        parameters = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([parameters], max_iter=iterations, line_search_fn="strong_wolfe", tolerance_change=1e-7)
        n = max(float(weight.sum()), 1.0)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (self._loss(parameters, given)) / n
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return parameters.detach()

    def curve(self, parameters: Tensor) -> Floats:
        """Log examination probabilities, 0 for the first position: `(positions,)`."""
        found: Floats = _cumulated(parameters[: len(self._steps)]).numpy()
        return found

    def scale(self, parameters: Tensor) -> float:
        """Weight of the logits."""
        return float(parameters[len(self._steps)])

    def _loss(self, parameters: Tensor, weight: Tensor) -> Tensor:
        steps, scale, effects = torch.split(parameters, [len(self._steps), 1, self._n_items])
        utility = effects[self._items] + _cumulated(steps)[self._positions]
        if self._logits is not None:
            utility = utility + scale * self._logits
        logs = torch.log_softmax(utility.masked_fill(self._padding, -1e9), dim=1)
        penalty = ((steps - self._steps) ** 2).sum() / STEP_DEVIATION**2 + (effects**2).sum() / ITEM_DEVIATION**2
        return -(weight * (self._chosen * logs).sum(dim=1)).sum() + penalty / 2


def _cumulated(steps: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=steps.dtype), torch.cumsum(steps, 0)])
