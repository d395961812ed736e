"""Training of a ranker: listwise on retrieved candidates (softmax over a query's candidates), and pointwise per head.

Afterwards each head is calibrated on later queries (`training.ranking.calibrate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from schemas.errors import BadDataset
from training.data.slates.examination import FIXED, Examination
from training.loop.group import Group
from training.loop.schedule import one_cycle
from training.ranking.base import Ranker, run
from training.ranking.calibrate import calibrate
from training.ranking.examples import Examples, ShownLists, held_out_from, parts
from training.ranking.kinds import make_ranker
from training.recipe import RankerSettings

__all__ = ["train_ranker", "with_passes"]

Progress = Callable[[int, int], None]


def with_passes(queries: int, settings: RankerSettings, least_steps: int) -> RankerSettings:
    """Raise the number of epochs over that many queries, if needed, to make at least `least_steps` steps."""
    per_epoch = max(1, -(-queries // settings.batch))
    return replace(settings, epochs=max(settings.epochs, -(-least_steps // per_epoch)))


def train_ranker(
    examples: Examples,
    settings: RankerSettings,
    progress: Progress | None = None,
    shown: ShownLists | None = None,
    examination: Examination = FIXED,
    cut: int | None = None,
) -> Ranker:
    """Train on the queries before place `cut` and calibrate on the rest. Uses a GPU where there is one.

    `cut`: `held_out_from` by default. The slates `shown` before it are learned from too, in steps of their own. There the
    listwise loss is that of a choice among the shown items: `examination` enters it, and is adjusted to the slates while the
    ranker learns.

    Deterministic for one seed and one number of threads. The ranker is returned on the CPU.

    Raises:
        BadDataset: there are no examples.
    """
    if not len(examples):
        raise BadDataset("no_meetings", "in the newer events no user has a first interaction: nothing can be ranked")
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    cut = held_out_from(examples, shown) if cut is None else cut
    learn, later = parts(examples, cut)
    lists = None if shown is None else shown.parts(cut)[0]
    lists = None if lists is None or not len(lists) else lists
    model = make_ranker(examples.features.shape[2], examples.labels.shape[2], settings)
    seen = learn.features[learn.valid]
    model.fit(seen if lists is None else np.concatenate([seen, lists.examples.features[lists.examples.valid]]))
    model.set_prior(learn, None if lists is None else lists.examples)
    model.to(Group.current().device)
    trained = [p for p in model.parameters() if p.requires_grad]
    curve = torch.nn.Parameter(torch.from_numpy(examination.log).to(model.mean))
    groups: list[dict[str, Any]] = [{"params": trained}]
    if lists is not None:
        groups.append({"params": [curve], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=settings.rate, weight_decay=settings.weight_decay)
    sizes = (len(learn), 0 if lists is None else len(lists))
    per_epoch = [max(1, -(-sizes[0] // settings.batch)), -(-sizes[1] // settings.batch)]
    steps = sum(per_epoch) * settings.epochs
    schedule = one_cycle(optimizer, settings.rate, steps)
    step = 0
    for _ in range(settings.epochs):
        for rows, listed in _batches(sizes, per_epoch, rng):
            if listed and lists is not None:
                part = lists.take(rows)
                logits, (_, labels, gains, valid, correction, _) = run(model, part.examples)
                places = torch.from_numpy(part.positions).to(logits.device)
                offset = curve[places.clamp(0, len(curve) - 1)] * (places >= 0)
            else:
                logits, (_, labels, gains, valid, correction, _) = run(model, learn.take(rows))
                offset = correction
            loss = _loss(logits, labels, gains, valid, correction, offset, settings.pointwise)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if progress is not None:
                progress(step, steps)
    calibrate(model.eval(), later, None if shown is None else shown.parts(cut)[1].examples)
    return model.cpu()


def _batches(
    sizes: tuple[int, int], per_epoch: Sequence[int], rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.intp], bool]]:
    """Batches of one epoch, and whether each is of shown lists; both kinds in turn, in proportion."""
    parts = [np.array_split(rng.permutation(size), n) if n else [] for size, n in zip(sizes, per_epoch, strict=True)]
    turns = [((k + 0.5) / len(part), kind, rows) for kind, part in enumerate(parts) for k, rows in enumerate(part)]
    for _, kind, rows in sorted(turns, key=lambda turn: turn[:2]):
        yield rows, bool(kind)


def _loss(
    logits: Tensor,
    labels: Tensor,
    gains: Tensor,
    valid: Tensor,
    correction: Tensor,
    offset: Tensor,
    pointwise: float,
) -> Tensor:
    """Listwise loss of the logits plus `offset`, and pointwise loss by the weights of `correction`."""
    corrected = (logits[..., 0] + offset).masked_fill(~valid, -1e9)
    share = gains / gains.sum(dim=1, keepdim=True).clamp(min=1e-9)
    listwise = -(share * torch.log_softmax(corrected, dim=1)).sum(dim=1)
    there = (gains.sum(dim=1) > 0).float()
    weight = torch.exp(correction) * valid
    each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none") * weight.unsqueeze(-1)
    point = each.sum() / weight.sum().clamp(min=1)
    return (listwise * there).sum() / there.sum().clamp(min=1) + pointwise * point * logits.shape[1] / 10
