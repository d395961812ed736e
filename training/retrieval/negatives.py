"""Negatives of the towers' softmax: which items a step compares a target with, and how much cold ones count."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.table import EventTable

__all__ = ["NEVER", "cold_logsumexp", "discount_cold_negatives", "drawn_pool", "first_interaction_ms"]

NEVER = np.iinfo(np.int64).max
"Time of first interaction, ms, for items without interactions."


def first_interaction_ms(table: EventTable, n_items: int) -> NDArray[np.int64]:
    """Time of each item's first interaction, ms, NEVER where there is none: `(n_items,)`."""
    found = np.full(n_items, NEVER, np.int64)
    np.minimum.at(found, table.item, table.time_ms)
    return found


def drawn_pool(
    certain: NDArray[np.int64], n_items: int, sampled: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw the items of a step's softmax, with the logarithm of each one's inclusion probability.

    `certain`: the items in the step's windows, as targets or in histories, which are always included (the in-batch negatives of
    Yi et al. 2019). `sampled` uniform draws with replacement add others (mixed negatives, Yang et al. 2020). Subtracting the
    log probability makes each logit count for the items it represents: given the windows, the sum of exponentials is an
    unbiased estimate of the sum over the catalogue (Horvitz & Thompson 1952). An item of the batch has probability 1. Using its
    share of all events, as is usual without uniform draws, would count it twice.

    Returns items, ascending, int64 `(p,)`, and log probabilities, float32 `(p,)`.
    """
    certain = np.unique(certain)
    pool = np.unique(np.concatenate([certain, rng.integers(0, n_items, sampled)]))
    chance = -np.expm1(sampled * np.log1p(-1.0 / n_items))
    log_chance = np.full(len(pool), np.log(chance), np.float32)
    log_chance[np.searchsorted(pool, certain)] = 0.0
    return pool, log_chance


def discount_cold_negatives(logits: Tensor, first_ms: Tensor, times_ms: Tensor, weight: float) -> Tensor:
    """Weigh cold items down as negatives, in place in `logits` `(t, p)`. An item is cold if its first interaction, `(p,)`, is
    later than the target's event, `(t,)`; it then counts `weight` (0 to 1).
    """
    before = first_ms > times_ms[:, None]
    return logits.add_(before, alpha=math.log(weight)) if weight else logits.masked_fill_(before, -torch.inf)


def cold_logsumexp(logits: Tensor, first_ms: Tensor, times_ms: Tensor, weight: float) -> Tensor:
    """Log-sum-exp of `logits` `(p,)` per target `(t,)`, with items weighted as in `discount_cold_negatives`."""
    order = torch.argsort(first_ms, stable=True)
    largest = logits.max().detach()
    sums = torch.cumsum(torch.exp(logits.index_select(0, order) - largest), 0)
    warm = torch.searchsorted(first_ms[order], times_ms, right=True)
    counted = sums.index_select(0, warm - 1) * (1 - weight) + sums[-1] * weight
    return torch.log(counted.clamp(min=1e-30)) + largest
