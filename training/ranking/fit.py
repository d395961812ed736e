"""Training of a ranker: listwise on retrieved candidates (softmax over a query's candidates), and pointwise per head.

Afterwards each head is calibrated on later queries (`training.ranking.calibrate`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from schemas.errors import BadDataset
from training.loop.group import Group
from training.loop.schedule import one_cycle
from training.ranking.base import Ranker, run
from training.ranking.calibrate import calibrate
from training.ranking.examples import Examples, parts
from training.ranking.kinds import make_ranker
from training.recipe import RankerSettings

__all__ = ["train_ranker", "with_passes"]

Progress = Callable[[int, int], None]


def with_passes(queries: int, settings: RankerSettings, least_steps: int) -> RankerSettings:
    """Raise the number of epochs over that many queries, if needed, to make at least `least_steps` steps."""
    per_epoch = max(1, -(-queries // settings.batch))
    return replace(settings, epochs=max(settings.epochs, -(-least_steps // per_epoch)))


def train_ranker(examples: Examples, settings: RankerSettings, progress: Progress | None = None) -> Ranker:
    """Train on the first nine tenths of the queries and calibrate on the rest. Uses a GPU where there is one.

    Deterministic for one seed and one number of threads. The ranker is returned on the CPU.

    Raises:
        BadDataset: there are no examples.
    """
    if not len(examples):
        raise BadDataset("no_meetings", "in the newer events no user has a first interaction: nothing can be ranked")
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    learn, later = parts(examples)
    model = make_ranker(examples.features.shape[2], examples.labels.shape[2], settings)
    model.fit(learn.features[learn.valid])
    model.set_prior(learn)
    model.to(Group.current().device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.rate, weight_decay=settings.weight_decay)
    per_epoch = max(1, -(-len(learn) // settings.batch))
    steps = per_epoch * settings.epochs
    schedule = one_cycle(optimizer, settings.rate, steps)
    step = 0
    for _ in range(settings.epochs):
        for rows in np.array_split(rng.permutation(len(learn)), per_epoch):
            logits, (_, labels, gains, valid, correction, _) = run(model, learn.take(rows))
            loss = _loss(logits, labels, gains, valid, correction, settings.pointwise)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if progress is not None:
                progress(step, steps)
    calibrate(model.eval(), later)
    return model.cpu()


def _loss(logits: Tensor, labels: Tensor, gains: Tensor, valid: Tensor, correction: Tensor, pointwise: float) -> Tensor:
    corrected = (logits[..., 0] + correction).masked_fill(~valid, -1e9)
    share = gains / gains.sum(dim=1, keepdim=True).clamp(min=1e-9)
    listwise = -(share * torch.log_softmax(corrected, dim=1)).sum(dim=1)
    there = (gains.sum(dim=1) > 0).float()
    weight = torch.exp(correction) * valid
    each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none") * weight.unsqueeze(-1)
    point = each.sum() / weight.sum().clamp(min=1)
    return (listwise * there).sum() / there.sum().clamp(min=1) + pointwise * point * logits.shape[1] / 10
