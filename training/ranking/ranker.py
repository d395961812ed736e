"""The multi-task ranker: what all kinds share, how they are trained, and the multi-gate mixture of experts (Ma et al. 2018).

Trained listwise on what retrieval really returned (softmax over a query's candidates) and pointwise per head; then each
head is calibrated on later queries by Platt's method (1999), which keeps the order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from schemas.errors import BadDataset
from training.evaluation.ranking_metrics import expected_discount
from training.loop.group import Group
from training.loop.schedule import one_cycle
from training.recipe import KINDS, RankerSettings

__all__ = [
    "KINDS",
    "Examples",
    "MMoE",
    "Ranker",
    "RankerSettings",
    "calibrated_from",
    "fit_light",
    "listwise_ndcg",
    "make_ranker",
    "reliability",
    "train_ranker",
    "with_passes",
]

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Examples:
    """q queries with c candidates each, padded."""

    features: NDArray[np.float32]
    "`(q, c, features)`."
    labels: NDArray[np.float32]
    "Whether each head's action followed within the attribution window: `(q, c, heads)`."
    gains: NDArray[np.float32]
    "Listwise target: the sooner liked, the larger: `(q, c)`."
    valid: NDArray[np.bool_]
    "`(q, c)`."
    correction: NDArray[np.float32]
    "Logarithm of how many candidates one stands for: `(q, c)`."
    shown: NDArray[np.bool_]
    "Whether the query is a slate: its labels say what followed once an item was shown, others what followed of itself. `(q,)`."

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: slice | NDArray[np.intp]) -> Examples:
        """Some of the queries."""
        return Examples(*(getattr(self, name)[rows] for name in self.__slots__))


class Ranker(nn.Module):
    """Features `(n, f)` to a logit per head. Kinds differ in `logits`.

    The towers' vectors are no inputs: retrieval is trained twice, and what a column of them means in one training it does not
    in the other. What both mean alike, the product of a person's and an item's, is a feature.
    """

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(features), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(features), requires_grad=False)
        self._heads = heads

    def _calibrated(self) -> None:
        """Add what comes after the logits, last: slope and offset per head, and what training alone knows."""
        ones, zeros = torch.ones(self._heads), torch.zeros(self._heads)
        self.platt = nn.Parameter(torch.stack([ones, zeros]), requires_grad=False)
        # per head: log odds that training begins with, so that no weight need learn how rare an action is (Lin et al. 2017)
        self.prior = nn.Parameter(torch.zeros(self._heads))
        # per head: how much likelier an action is where an item was shown; what the logits say is without it
        self.apart = nn.Parameter(torch.zeros(self._heads))

    def fit(self, seen: NDArray[np.float32]) -> None:
        """Learn how features are spread, before training: `(n, f)`, the valid candidates of all training queries.

        A feature that never varied taught its weights nothing: it stays 0 whatever it says later.
        """
        deviation = seen.std(axis=0)
        with torch.no_grad():
            self.mean.copy_(torch.from_numpy(seen.mean(axis=0)))
            self.scale.copy_(torch.from_numpy(np.where(deviation < 1e-3, np.float32(1e9), deviation)))

    def set_prior(self, seen: Examples) -> None:
        """Begin with how often each head's action follows, and how much more often in slates than elsewhere, as log odds."""
        kinds = [seen.take(np.flatnonzero(seen.shown == kind)) for kind in (False, True)]
        odds = [_log_odds(part) for part in kinds if len(part)]
        with torch.no_grad():
            self.prior.copy_(torch.from_numpy(odds[0]))
            self.apart.copy_(torch.from_numpy(odds[-1] - odds[0]))

    def standard(self, features: Tensor) -> Tensor:
        """Features of mean 0 and deviation 1, clipped."""
        return ((features - self.mean) / self.scale).clamp(-5, 5)

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """Uncalibrated logits `(n, heads)`. The first head's order the listwise loss."""

    def forward(self, features: Tensor) -> Tensor:
        """Calibrated probability per head."""
        return torch.sigmoid((self.logits(features) + self.prior) * self.platt[0] + self.platt[1])


class MMoE(Ranker):
    """Experts shared by the heads, mixed by a gate per head; beside them, a linear part."""

    def __init__(self, features: int, heads: int, settings: RankerSettings) -> None:
        super().__init__(features, heads)
        width = settings.width
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(features, width), nn.GELU(), nn.Dropout(settings.dropout), nn.Linear(width, width // 2), nn.GELU()
            )
            for _ in range(settings.experts)
        )
        self.gates = nn.ModuleList(nn.Linear(features, settings.experts) for _ in range(heads))
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(width // 2, 16), nn.GELU(), nn.Linear(16, 1)) for _ in range(heads))
        self.linear = nn.Linear(features, heads)
        self._calibrated()

    def logits(self, features: Tensor) -> Tensor:
        """Uncalibrated logits."""
        standard = self.standard(features)
        experts = torch.stack([expert(standard) for expert in self.experts], dim=-2)
        outs = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = torch.softmax(gate(standard), dim=-1)
            outs.append(tower((weights.unsqueeze(-1) * experts).sum(dim=-2)))
        total: Tensor = torch.cat(outs, dim=-1) + self.linear(standard)
        return total


def make_ranker(features: int, heads: int, settings: RankerSettings) -> Ranker:
    """An untrained ranker of the kind that the settings ask for."""
    if settings.kind == "deepfm":
        from training.ranking.deepfm import DeepFM

        return DeepFM(features, heads, settings)
    return MMoE(features, heads, settings)


def _tensors(part: Examples, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(getattr(part, name))).to(device) for name in part.__slots__)


def _run(model: Ranker, part: Examples) -> tuple[Tensor, tuple[Tensor, ...]]:
    tensors = _tensors(part, model.mean.device)
    features = tensors[0]
    logits = model.logits(features.flatten(0, 1))
    shown = tensors[-1][:, None, None].to(logits.dtype)
    return logits.reshape(*features.shape[:2], -1) + model.prior + shown * model.apart, tensors


def with_passes(queries: int, settings: RankerSettings, least_steps: int) -> RankerSettings:
    """The settings, with as many passes over so many queries as make `least_steps` steps, if theirs are fewer."""
    per_epoch = max(1, -(-queries // settings.batch))
    return replace(settings, epochs=max(settings.epochs, -(-least_steps // per_epoch)))


def train_ranker(examples: Examples, settings: RankerSettings, progress: Progress | None = None) -> Ranker:
    """Train on the first nine tenths of the queries, calibrate on the rest; on a GPU where there is one.

    Deterministic for one seed and one number of threads. The ranker comes back on the CPU.

    Raises:
        BadDataset: there are no examples.
    """
    if not len(examples):
        raise BadDataset("no_meetings", "in the newer events nobody meets an item for the first time: nothing can be ranked")
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    learn, later = _parts(examples)
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
            logits, (_, labels, gains, valid, correction, _) = _run(model, learn.take(rows))
            loss = _loss(logits, labels, gains, valid, correction, settings.pointwise)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if progress is not None:
                progress(step, steps)
    model.eval()
    logits, labels, weight = _scored(model, later)
    slope, offset = _platt(logits, labels, weight)
    with torch.no_grad():
        model.platt[0], model.platt[1] = slope, offset
    return model.cpu()


def _log_odds(part: Examples) -> NDArray[np.float32]:
    """Of each head's labels, with half a label of either kind more."""
    weight = np.exp(part.correction[part.valid])[:, None]
    hits = (part.labels[part.valid] * weight).sum(axis=0) + 0.5
    odds: NDArray[np.float32] = np.log(hits / (weight.sum() - hits + 1.0)).astype(np.float32)
    return odds


def calibrated_from(queries: int) -> int:
    """Number of the first of so many queries that is not trained on."""
    return min(queries - 1, max(1, int(queries * 0.9)))


def listwise_ndcg(model: Ranker, examples: Examples) -> float:
    """Mean NDCG of the valid candidates in the order of the first head, of the queries with a gain; 0 without any.

    Of candidates that score the same each has the mean discount of their places: `examples` hold those that were liked first.
    """
    if not len(examples):
        return 0.0
    with torch.inference_mode():
        logits, _ = _run(model, examples)
    scores = np.where(examples.valid, logits[..., 0].numpy(), -np.inf)
    discount = 1.0 / np.log2(np.arange(scores.shape[1]) + 2.0)
    gains = (examples.gains * expected_discount(scores, discount)).sum(axis=1)
    best = -np.sort(-examples.gains, axis=1) @ discount
    return float((gains[best > 0] / best[best > 0]).mean()) if (best > 0).any() else 0.0


def _parts(examples: Examples) -> tuple[Examples, Examples]:
    """What is learned from, and the later queries that calibrate; all queries where those would be too few."""
    cut = calibrated_from(len(examples))
    learn, later = examples.take(slice(0, cut)), examples.take(slice(cut, None))
    return learn, later if len(later) >= 50 else learn


def _scored(model: Ranker, part: Examples) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and labels of the valid candidates, and how many each stands for."""
    with torch.inference_mode():
        logits, (_, labels, _, valid, correction, _) = _run(model, part)
        found = logits[valid], labels[valid], torch.exp(correction[valid])
    # outside of inference mode a copy can take part in gradients
    return found[0].clone(), found[1].clone(), found[2].clone()


def _loss(logits: Tensor, labels: Tensor, gains: Tensor, valid: Tensor, correction: Tensor, pointwise: float) -> Tensor:
    corrected = (logits[..., 0] + correction).masked_fill(~valid, -1e9)
    share = gains / gains.sum(dim=1, keepdim=True).clamp(min=1e-9)
    listwise = -(share * torch.log_softmax(corrected, dim=1)).sum(dim=1)
    there = (gains.sum(dim=1) > 0).float()
    weight = torch.exp(correction) * valid
    each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none") * weight.unsqueeze(-1)
    point = each.sum() / weight.sum().clamp(min=1)
    return (listwise * there).sum() / there.sum().clamp(min=1) + pointwise * point * logits.shape[1] / 10


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


def reliability(model: Ranker, examples: Examples, bins: int = 10) -> list[list[dict[str, float]]]:
    """How far the ranker's probabilities hold on the later queries: per head, bins of equal weight by probability.

    Each bin says the mean probability `predicted`, the share `observed`, and the `weight` of its candidates. Two halves of the
    queries are each calibrated by the other, so that no figure comes from what its own calibration was fitted to.
    """
    later = _parts(examples)[1]
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


def fit_light(
    scores: NDArray[np.float32], hit: NDArray[np.int64], sources: list[str], default: dict[str, float]
) -> dict[str, float]:
    """Weights of the sources' normalised scores that put the hit highest, by a softmax over a query's candidates.

    `scores`: `(q, c, sources)`, 0 where a source did not bring the candidate; `hit`: place of the item that was liked,
    `(q,)`. Too few queries leave the defaults.
    """
    if len(hit) < 100:
        return dict(default)
    x, y = torch.from_numpy(scores), torch.from_numpy(hit)
    raw = torch.full((len(sources),), 0.5, requires_grad=True)
    heat = torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.Adam([raw, heat], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ F.softplus(raw) * torch.exp(heat), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    weights = F.softplus(raw).detach()
    weights = weights / weights.max()
    return {name: round(float(w), 4) for name, w in zip(sources, weights.tolist(), strict=True)}
