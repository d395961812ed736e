"""Calibration of the heads by Platt's method (1999), which preserves the order, and its reliability."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from training.ranking.base import Ranker, run
from training.ranking.examples import Examples, parts

__all__ = ["calibrate", "reliability"]


def calibrate(model: Ranker, later: Examples) -> None:
    """Fit slope and offset of each head on queries outside its training set. The model must be in evaluation mode."""
    slope, offset = _platt(*_scored(model, later))
    with torch.no_grad():
        model.platt[0], model.platt[1] = slope, offset


def _scored(model: Ranker, part: Examples) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and labels of the valid candidates, and the number of candidates that each represents."""
    with torch.inference_mode():
        logits, (_, labels, _, valid, correction, _) = run(model, part)
        found = logits[valid], labels[valid], torch.exp(correction[valid])
    # unlike inference tensors, copies made outside inference mode can take part in gradients
    return found[0].clone(), found[1].clone(), found[2].clone()


def _platt(z: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset of each head; the slope stays positive."""
    slope = torch.zeros(z.shape[1], requires_grad=True, device=z.device)
    offset = torch.zeros(z.shape[1], requires_grad=True, device=z.device)
    optimizer = torch.optim.LBFGS([slope, offset], max_iter=50)

    def closure() -> Tensor:
        optimizer.zero_grad()
        each = F.binary_cross_entropy_with_logits(z * torch.exp(slope) + offset, y, reduction="none")
        loss = (each * weight.unsqueeze(-1)).sum() / weight.sum() + 1e-4 * (slope**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return torch.exp(slope.clamp(-3, 3)).detach(), offset.detach()


def reliability(model: Ranker, examples: Examples, bins: int = 10, cut: int | None = None) -> list[list[dict[str, float]]]:
    """Reliability of the ranker's probabilities on the queries from place `cut` on, per head: bins of equal weight by
    probability.

    Each bin has the mean probability `predicted`, the share `observed`, and the `weight` of its candidates. The queries are
    split in halves, each calibrated on the other, so that no figure comes from the data of its own calibration.
    """
    later = parts(examples, cut)[1]
    halves = [_scored(model, later.take(np.arange(half, len(later), 2))) for half in (0, 1)]
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
