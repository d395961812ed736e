"""Calibration of the heads by Platt's method (1999), which preserves the order, and its reliability.

Probabilities are those of all traffic. Samples of it are corrected: a query weighs as many moments as it stands for, because
queries with likes are sampled more often, and a candidate weighs as many others as it stands for. Where slates were logged,
they are the traffic, and a probability is that of an action once an item is shown, at whatever position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from training.ranking.base import Ranker, run
from training.ranking.examples import Examples, of_traffic, parts

__all__ = ["calibrate", "calibration_error", "reliability"]


def calibrate(model: Ranker, later: Examples, lists: Examples | None = None) -> None:
    """Fit slope and offset of each head on queries outside its training set. The model must be in evaluation mode.

    `lists`: slates from impression events outside its training set.
    """
    slope, offset = _platt(*_scored(model, of_traffic(later, lists)))
    with torch.no_grad():
        model.platt[0], model.platt[1] = slope, offset


def _scored(model: Ranker, traffic: Sequence[Examples]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits as served and labels of the valid candidates, and the number of candidates that each represents."""
    found = []
    for part in traffic:
        with torch.inference_mode():
            logits, (_, labels, _, valid, correction, exposed) = run(model, part)
            logits = logits - exposed[:, None, None].to(logits.dtype) * model.exposure_bias
            # a shown item stands for itself, wherever it was looked at; nothing is known of one whose labels are not final
            others = torch.exp(correction)
            others = torch.where(exposed[:, None], (others > 0).to(others.dtype), others)
            weight = others * torch.from_numpy(part.traffic).to(others)[:, None]
            found.append((logits[valid], labels[valid], weight[valid]))
    # unlike inference tensors, copies made outside inference mode can take part in gradients
    logits, labels, weights = (torch.cat(column).clone() for column in zip(*found, strict=True))
    return logits, labels, weights


def _platt(z: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset of each head; the slope stays positive."""
    slope = torch.zeros(z.shape[1], requires_grad=True, device=z.device)
    offset = torch.zeros(z.shape[1], requires_grad=True, device=z.device)
    optimizer = torch.optim.LBFGS([slope, offset], max_iter=50)

    def closure() -> Tensor:
        optimizer.zero_grad()
        each = F.binary_cross_entropy_with_logits(z * torch.exp(slope) + offset, y, reduction="none")
        loss = (each * weight.unsqueeze(-1)).sum() / weight.sum().clamp(min=1e-9) + 1e-4 * (slope**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return torch.exp(slope.clamp(-3, 3)).detach(), offset.detach()


def reliability(
    model: Ranker, examples: Examples, bins: int = 10, cut: int | None = None, lists: Examples | None = None
) -> list[list[dict[str, float]]]:
    """Reliability of the ranker's probabilities on all traffic from place `cut` on, per head: bins of equal weight by
    probability. `lists`: slates from impression events from there on.

    Each bin has the mean probability `predicted`, the share `observed`, and the `weight` of its candidates. The queries are
    split in halves, each calibrated on the other, so that no figure comes from the data of its own calibration.
    """
    traffic = of_traffic(parts(examples, cut)[1], lists)
    halves = [_scored(model, [part.take(np.arange(half, len(part), 2)) for part in traffic]) for half in (0, 1)]
    probabilities = []
    for mine, other in zip(halves, halves[::-1], strict=True):
        slope, offset = _platt(*other)
        probabilities.append(torch.sigmoid(mine[0] * slope + offset))
    predicted = torch.cat(probabilities).numpy()
    observed, weight = torch.cat([half[1] for half in halves]).numpy(), torch.cat([half[2] for half in halves]).numpy()
    return [_bins(predicted[:, head], observed[:, head], weight, bins) for head in range(predicted.shape[1])]


def _bins(
    predicted: NDArray[np.float32], observed: NDArray[np.float32], weight: NDArray[np.float32], bins: int
) -> list[dict[str, float]]:
    order = np.argsort(predicted, kind="stable")
    before = np.cumsum(weight[order], dtype=np.float64) - weight[order]
    number = np.minimum((before / max(float(weight.sum(dtype=np.float64)), 1e-9) * bins).astype(np.int64), bins - 1)
    found = []
    for n in np.unique(number).tolist():
        rows: Any = order[number == n]
        mass = weight[rows].astype(np.float64)
        means = [float((column[rows] * mass).sum() / mass.sum()) for column in (predicted, observed)]
        found.append({"predicted": round(means[0], 6), "observed": round(means[1], 6), "weight": round(float(mass.sum()), 2)})
    return found


def calibration_error(bins: Sequence[Mapping[str, float]]) -> float:
    """Expected calibration error of one head: mean of |predicted - observed| over `bins` of `reliability`, by weight."""
    total = sum(one["weight"] for one in bins)
    return sum(one["weight"] * abs(one["predicted"] - one["observed"]) for one in bins) / max(total, 1e-9)
