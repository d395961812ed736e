"""Base class of the multi-task rankers."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.ranking.examples import Examples

__all__ = ["CONSTANT", "Ranker", "run"]

TENSORS = ("features", "labels", "gains", "valid", "correction", "exposed")
"Arrays of examples that `run` returns as tensors, in this order."
CONSTANT = np.float32(1e9)
"The scale of a feature that was constant in training."


class Ranker(nn.Module):
    """Maps features `(n, f)` to a logit per head. Kinds differ in `logits`.

    The towers' vectors are no inputs, because retrieval is trained twice and their columns differ in meaning between the two
    trainings. The inner product of user and item vectors means the same in both and is a feature.
    """

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(features), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(features), requires_grad=False)
        self._heads = heads

    def _add_output_parameters(self) -> None:
        """Add the parameters after the logits, last: slope and offset per head, and those that only training uses."""
        ones, zeros = torch.ones(self._heads), torch.zeros(self._heads)
        self.platt = nn.Parameter(torch.stack([ones, zeros]), requires_grad=False)
        # per head: initial log odds, so that no weight has to learn how rare an action is (Lin et al. 2017)
        self.prior = nn.Parameter(torch.zeros(self._heads))
        # per head: log odds that exposure adds to an action; excluded from the logits
        self.exposure_bias = nn.Parameter(torch.zeros(self._heads))

    def fit(self, seen: NDArray[np.float32]) -> None:
        """Compute mean and deviation of the features before training. `seen`: `(n, f)`, all training queries' valid candidates.

        A feature that is constant in training has untrained weights, so it is fixed at 0 for all later values.
        """
        deviation = seen.std(axis=0)
        with torch.no_grad():
            self.mean.copy_(torch.from_numpy(seen.mean(axis=0)))
            self.scale.copy_(torch.from_numpy(np.where(deviation < 1e-3, CONSTANT, deviation)))

    def set_prior(self, seen: Examples, shown: Examples | None = None) -> None:
        """Initialise each head's log odds from its action rate, and its exposure bias from the difference in slates.

        `shown`: slates from impression events. Those whose labels are final count where there are no others.
        """
        kinds = [seen.take(np.flatnonzero(seen.exposed == kind)) for kind in (False, True)]
        if not len(kinds[1]) and shown is not None:
            kinds[1] = shown.take(np.flatnonzero((np.isfinite(shown.correction) | ~shown.valid).all(axis=1)))
        odds = [_log_odds(part) for part in kinds if len(part)]
        with torch.no_grad():
            self.prior.copy_(torch.from_numpy(odds[0]))
            self.exposure_bias.copy_(torch.from_numpy(odds[-1] - odds[0]))

    def standard(self, features: Tensor) -> Tensor:
        """Standardise features to mean 0 and deviation 1, and clip them."""
        return ((features - self.mean) / self.scale).clamp(-5, 5)

    def served(self) -> nn.Module:
        """Module of the same function that is exported in this one's place, because it is faster there."""
        return self

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """Uncalibrated logits `(n, heads)`. The listwise loss uses those of the first head."""

    def forward(self, features: Tensor) -> Tensor:
        """Calibrated probability per head."""
        return torch.sigmoid((self.logits(features) + self.prior) * self.platt[0] + self.platt[1])


def _log_odds(part: Examples) -> NDArray[np.float32]:
    """Log odds of each head's labels, smoothed by half a label of either kind."""
    weight = np.exp(part.correction[part.valid])[:, None]
    hits = (part.labels[part.valid] * weight).sum(axis=0) + 0.5
    odds: NDArray[np.float32] = np.log(hits / (weight.sum() - hits + 1.0)).astype(np.float32)
    return odds


def _tensors(part: Examples, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(getattr(part, name))).to(device) for name in TENSORS)


def run(model: Ranker, part: Examples) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Training logits `(q, c, heads)`, exposure bias included, and the arrays of `part` as tensors, in their order."""
    tensors = _tensors(part, model.mean.device)
    features = tensors[0]
    logits = model.logits(features.flatten(0, 1))
    exposed = tensors[-1][:, None, None].to(logits.dtype)
    return logits.reshape(*features.shape[:2], -1) + model.prior + exposed * model.exposure_bias, tensors
