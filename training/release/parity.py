"""Parity of an exported release with torch: whole requests are answered twice, with the graphs and with the torch modules.

All other code is the same, so that any difference (in a user's vector, a new item's, a probability) shows in the answers. The
requests also measure the latency of ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.pipeline.batch import Candidates, Queries
from models.pipeline.clock import after_all
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.slot import ModelSlot
from models.pipeline.stages import Observer
from models.release.graphs import session_of
from models.release.nearest import STANDARD
from models.release.release import Release
from models.release.serving import ServingModel
from schemas.records import Request, Slate
from training.evaluation.evaluate import K
from training.replay.world import SimulatedWorker

__all__ = ["Frozen", "Modules", "Parity", "TorchGraphs", "in_parity"]

TIE = 1e-6
"Scores within this distance may swap ranks. It is a hundredth of the allowed score difference."
HELD_BACK = 0.1
"Fraction of the catalogue that a user's second and later requests exclude, so that no two requests are alike."
EACH = 20
"Maximum number of requests per user: with few users, further requests find nothing new."
ROUNDS = 3
ONE_SIDED = 4
"Maximum number of candidates that only one side has, from ties at the cut-offs of retrieval and light score."


@dataclass(frozen=True, slots=True)
class Modules:
    """The trained torch modules."""

    user: nn.Module
    item: nn.Module
    ranker: nn.Module


class Frozen(nn.Module):
    """Wraps a graph as a module, for a part that an update copies unchanged."""

    def __init__(self, graph: bytes) -> None:
        super().__init__()
        self._session = session_of(graph, 1)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run the graph and return its first output."""
        named = {wanted.name: given.numpy() for wanted, given in zip(self._session.get_inputs(), inputs, strict=True)}
        return torch.from_numpy(self._session.run(None, named)[0])


@dataclass(frozen=True, slots=True)
class Parity:
    """Differences between graphs and torch, and the cost of ranking."""

    worst: float
    "Largest difference in a candidate's score."
    differing: int
    "Requests whose first K differ for a reason other than a tie: of two scores, at a candidate cut-off, or in the selection."
    tied: int
    "Requests whose first K differ by a tie at a candidate cut-off or in the selection."
    swapped: int
    "Requests whose first K differ for any reason."
    requests: int
    rank_p99_ms: float
    "99th percentile of ranking one request's candidates (features and graph), in the quietest third of the run, ms."
    candidates: int
    "Median number of candidates of those requests."

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON for the manifest."""
        return {
            "scores": float(f"{self.worst:.3g}"),
            "top10_differing": self.differing,
            "top10_tied": self.tied,
            "top10_swapped": self.swapped,
            "requests": self.requests,
            "rank_p99_ms": round(self.rank_p99_ms, 2),
            "candidates": self.candidates,
        }


class TorchGraphs:
    """`Graphs` that run torch modules."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules

    def user(self, items: NDArray[np.float32], events: NDArray[np.float32], mask: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Graphs.user`."""
        return _run(self._modules.user, items, events, mask)

    def item(
        self,
        content: NDArray[np.float32],
        text: NDArray[np.float32],
        image: NDArray[np.float32],
        present: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """See `Graphs.item`."""
        return _run(self._modules.item, content, text, image, present)

    def rank(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Graphs.rank`."""
        return _run(self._modules.ranker, features)


def _run(module: nn.Module, *inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        found: NDArray[np.float32] = module(*(torch.from_numpy(np.ascontiguousarray(part)) for part in inputs)).numpy()
    return found


class _Last(Observer):
    """Keeps the most recently ranked candidates, with their scores."""

    def __init__(self) -> None:
        self.candidates: Candidates | None = None

    def on_ranked(self, queries: Queries, candidates: Candidates) -> None:  # noqa: ARG002
        """Keep the candidates."""
        self.candidates = candidates


_Answer = tuple[Slate, dict[int, float]]
"A slate, and the score of each candidate by item row."
_Answers = tuple[_Answer, _Answer]


class _Side:
    """One of the two sides, with its own pipeline."""

    def __init__(self, world: SimulatedWorker, model: ServingModel) -> None:
        slot = ModelSlot()
        slot.swap(model)
        self._world = world
        self._last = _Last()
        self._pipeline = CandidatePipeline(world.items, slot=slot, clock=after_all, observers=[self._last])

    def ask(self, request: Request) -> _Answer:
        """Return the pipeline's slate and its candidates' scores; no scores where nothing was ranked."""
        self._last.candidates = None
        slate = self._pipeline.run([request], [self._world.record(request.user_id)], [None])[0]
        last = self._last.candidates
        return slate, {} if last is None else dict(zip(last.item_row.tolist(), last.score.tolist(), strict=True))


def in_parity(
    world: SimulatedWorker, release: Release, modules: Modules, people: Sequence[str], requests: int, seed: int = 0
) -> Parity:
    """Compare both sides on the same `requests` of `people`, drawn in turn, with the current state of `world`.

    There are at most `EACH` requests per user. With fewer users than requests, further requests of a user exclude other items.
    At tied scores at a candidate cut-off, torch and ONNX may retrieve different items, and one of these may enter the slate.
    Such a request is repeated without the few items that only one side has, and counts as tied if the answers then agree. A
    request also counts as tied if both sides score the same candidates equally, because only ties in the selection can then
    differ.
    """
    rng = np.random.default_rng(seed)
    exported = ServingModel(release)
    # the same index, because the sampled queries of one of its own would depend on the modules
    trained = ServingModel(release, index=exported.index or STANDARD, graphs=TorchGraphs(modules))
    mine, theirs = _Side(world, exported), _Side(world, trained)
    catalogue = world.items.ids
    order = [people[n] for n in rng.permutation(len(people)).tolist()]
    worst, differing, tied, swapped = 0.0, 0, 0, 0
    cost: list[float] = []
    sizes: list[int] = []
    for n in range(min(requests, EACH * len(people))):
        user = order[n % len(order)]
        held_back = rng.permutation(len(catalogue))[: int(len(catalogue) * HELD_BACK)] if n >= len(order) else ()
        request = Request("parity", user, k=K, exclude=tuple(catalogue[row] for row in held_back))
        world.know(world.record(user))
        slate, scores = mine.ask(request)
        other, expected = theirs.ask(request)
        both = scores.keys() & expected.keys()
        worst = max([worst, *(abs(scores[row] - expected[row]) for row in both)])
        got, wanted = ([item.item_id for item in s.items] for s in (slate, other))
        swapped += got != wanted
        if not _same(slate, other):
            alone = [catalogue[row] for row in scores.keys() ^ expected.keys()]
            found = ((slate, scores), (other, expected))
            agree = _tied(request, alone, found, lambda asked: (mine.ask(asked), theirs.ask(asked)))
            differing, tied = differing + (not agree), tied + agree
        cost.append(slate.timings_ms["rank"])
        sizes.append(len(scores))
    return Parity(worst, differing, tied, swapped, len(cost), _quiet_p99(cost), int(np.median(sizes)) if sizes else 0)


def _tied(request: Request, alone: Sequence[str], found: _Answers, again: Callable[[Request], _Answers]) -> bool:
    """Whether both sides agree up to ties, when asked `again` without the few items in `alone` that only one side had."""
    if len(alone) > ONE_SIDED or any(slate.degraded or not scores for slate, scores in found):
        return False  # a failed side cannot tie
    answers = again(replace(request, exclude=(*request.exclude, *alone))) if alone else found
    (slate, scores), (other, expected) = answers
    # both slates come from the same selection, so equal candidates and scores give equal slates up to ties
    alike = scores.keys() == expected.keys() and all(abs(score - expected[row]) <= TIE for row, score in scores.items())
    return alike or _same(slate, other)


def _same(a: Slate, b: Slate) -> bool:
    """Whether two slates have the same items at the same ranks, up to equal scores."""
    if len(a.items) != len(b.items):
        return False
    return all(x.item_id == y.item_id or abs(x.score - y.score) <= TIE for x, y in zip(a.items, b.items, strict=True))


def _quiet_p99(cost: list[float]) -> float:
    """Smallest 99th percentile over the thirds of the run, so that other load on the machine counts least."""
    if not cost:
        return 0.0
    return min(float(np.quantile(part, 0.99)) for part in np.array_split(np.asarray(cost), ROUNDS) if len(part))
