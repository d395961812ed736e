"""Re-ranking of slates that another system showed: how high the item that the user then liked ranks among the shown ones.

Each slate becomes a request of its user with the shown items as `candidates`, at its moment in history, through the serving
pipeline. Items that the user has seen are kept, because the other system showed them. The same items are ranked in the order
in which they were shown, and by two pointwise baselines that know no user: the rate of likes per impression in the slates
before the first query, shrunk to the mean, and the number of events so far.

Users look more often at the top of what was shown, so a like is likelier there. The shown order gains from this. `as_shown`
gains in the same way: it orders by the probability of a like and by the probability that the position is looked at, and so
predicts where a user clicks in the shown order. `mrr_unbiased` removes the gain instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.pipeline.clock import after_all
from models.pipeline.pipeline import CandidatePipeline
from models.rules import PositiveRule
from schemas.records import Request, Slate, SlateItem
from training.data.corpus import Corpus
from training.data.events import EventFrame
from training.data.slates.examination import Examination
from training.data.slates.logged import LoggedSlate
from training.data.slates.shown import all_slates, final_slates, liked_slates
from training.data.table import Heads
from training.discount import discounts
from training.evaluation.calibration import Traffic
from training.evaluation.ranking_metrics import bootstrap
from training.replay.world import SimulatedWorker

__all__ = ["ORDERS", "ListFigures", "ListRanker", "ShownTest", "shown_test"]

MOST = 5_000
"Maximum number of slates, evenly spread."
PRIOR = 20.0
"Impressions of mean rate that an item's rate of likes is shrunk by."
LEAST = 1e-6
"Smallest probability whose log odds are taken, and that of a dropped item."
LARGEST_WEIGHT = 10.0
"Largest inverse of an examination probability by which a slate weighs."
NEWEST = 1_000_000
"Number of newest slates before the first query from which rates of likes are counted."
ORDERS: Mapping[str, str] = {
    "riffle": "the serving pipeline",
    "as_shown": "its probability of a like, and how likely the shown position is looked at",
    "shown": "as they were shown",
    "like_rate": "likes per impression before",
    "like_rate_as_shown": "the same rate, and how likely the shown position is looked at",
    "popularity": "events so far",
}
"Orders that are measured, with their descriptions."
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ShownTest:
    """Slates to re-rank, in order of `place`, and rates of likes before the first of them."""

    slates: Sequence[LoggedSlate]
    rates: Mapping[str, float]
    "By item; items that were never shown have `mean_rate`."
    mean_rate: float
    examination: Examination | None
    "How likely each position is looked at; None where it was not measured."
    traffic: Sequence[LoggedSlate] = ()
    "Slates with and without likes, in order of `place`, on which probabilities are compared with outcomes."


def shown_test(
    corpus: Corpus,
    share: float,
    most: int | None = None,
    examination: Examination | None = None,
    heads: Heads = (),
    windows_ms: Mapping[str, int] = MappingProxyType({}),
    traffic: int = 0,
) -> ShownTest | None:
    """Slates that were shown after the first `share` of the events and have a like, at most `most` (MOST); None without any.

    Probabilities of `heads` are compared with outcomes, within `windows_ms`, on at most `traffic` slates, liked or not.
    """
    cut, events = int(len(corpus.events) * share), corpus.events
    if corpus.shown is None or not isinstance(events, EventFrame) or not 0 < cut < len(events):
        return None
    rule = PositiveRule(corpus.positive)
    found = liked_slates(corpus.shown, events, rule, {}, cut, MOST if most is None else most)
    if not found:
        return None
    before = all_slates(corpus.shown, EventFrame(events.frame.head(cut)), rule, {}, NEWEST)
    # of open slates only those with a like are known
    before = before.filter("closed")
    mean = float(before["liked"].mean() or 0.0)  # type: ignore[arg-type]
    counts = before.group_by("item_id").agg(pl.col("liked").sum(), pl.len())
    rates = {item: (likes + PRIOR * mean) / (times + PRIOR) for item, likes, times in counts.iter_rows()}
    every = final_slates(corpus.shown, events, heads, rule, windows_ms, cut, traffic) if heads and traffic else []
    return ShownTest(found, rates, mean, examination, every)


@dataclass(slots=True)
class ListFigures:
    """Outcomes of the slates so far."""

    users: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    "Position of the first liked item of each slate, -1 where it is unknown."
    reciprocal: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in ORDERS})
    "By order: 1 / rank of the first liked item, ranks from 1."
    ndcg: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in ORDERS})
    "By order: NDCG of the liked items over the whole slate."
    dropped: int = 0
    "Number of shown items that the pipeline does not show, because they are unknown or filtered; they rank last, as shown."
    liked_dropped: int = 0
    "Number of liked items among them."

    def __len__(self) -> int:
        return len(self.users)

    def note(self, slate: LoggedSlate, orders: Mapping[str, NDArray[np.intp]], dropped: NDArray[np.bool_]) -> None:
        """Add a slate. `orders`: indices of its items, best first, by name; `dropped`: by item, see `dropped`."""
        liked = slate.labels[:, 0] > 0
        self.users.append(slate.user_id)
        self.lengths.append(len(liked))
        first = np.flatnonzero(liked)[0]
        self.positions.append(-1 if slate.positions is None else int(slate.positions[first]))
        self.dropped += int(dropped.sum())
        self.liked_dropped += int((dropped & liked).sum())
        discount = discounts(np.arange(len(liked)))
        for name, order in orders.items():
            hits = liked[order]
            self.reciprocal[name].append(1.0 / (1.0 + float(np.flatnonzero(hits)[0])))
            self.ndcg[name].append(float(discount[hits].sum() / discount[: int(liked.sum())].sum()))

    def _unbiased(self) -> list[str]:
        """Orders to which no position is known, and the shown order."""
        return [name for name in ORDERS if not name.endswith("as_shown")]

    def to_json(self, examination: Examination | None = None) -> dict[str, Any]:
        """Means with 95 % intervals over users, by measure and order, and differences to the shown order.

        With `examination`, `mrr_unbiased` weighs each slate by the inverse of the probability that the position of its like was
        looked at, at most LARGEST_WEIGHT: an estimate of the MRR if users looked at all positions alike.
        """
        people = np.unique(np.asarray(self.users), return_inverse=True)[1].astype(np.int64)
        measures = {"mrr": self.reciprocal, "ndcg": self.ndcg}
        weights: Floats | None = None
        if examination is not None:
            inverse = 1.0 / examination.at(np.asarray(self.positions)).astype(np.float64)
            weights = np.minimum(inverse, LARGEST_WEIGHT)
        found: dict[str, Any] = {
            "slates": len(self),
            "users": len(set(self.users)),
            "items_per_slate": round(float(np.mean(self.lengths)), 1),
            "items_dropped": self.dropped,
            "likes_dropped": self.liked_dropped,
        }
        for measure, by_order in measures.items():
            values = {name: np.asarray(column) for name, column in by_order.items() if column}
            found[measure] = {name: bootstrap(column, people).to_json() for name, column in values.items()}
            change = bootstrap(values["riffle"] - values["shown"], people)
            found[f"{measure}_over_shown"] = change.to_json()
        if weights is not None:
            means = {name: float(np.average(np.asarray(self.reciprocal[name]), weights=weights)) for name in self._unbiased()}
            found["mrr_unbiased"] = {name: round(mean, 4) for name, mean in means.items()}
        return found


class ListRanker:
    """Re-ranks slates in a simulated worker, as of the events applied so far."""

    def __init__(self, world: SimulatedWorker, test: ShownTest) -> None:
        self._world, self._test = world, test
        self._pipeline = CandidatePipeline(world.items, slot=world.slot, clock=after_all)
        self._rng = np.random.default_rng(0)
        self.figures, self.traffic = ListFigures(), Traffic()
        todo = [*((slate, self.ask) for slate in test.slates), *((slate, self.compare) for slate in test.traffic)]
        self._pending = deque(sorted(todo, key=lambda one: one[0].place))

    def due(self, n: int) -> bool:
        """Whether a slate was shown before event `n` and waits for its turn."""
        return bool(self._pending) and self._pending[0][0].place <= n

    def proceed(self) -> None:
        """Re-rank or compare the next slate, at the time when it was shown.

        Raises:
            RuntimeError: a part of the pipeline failed.
        """
        slate, work = self._pending.popleft()
        self._world.publish(slate.shown_ms)
        work(slate)

    def ask(self, slate: LoggedSlate) -> None:
        """Re-rank a slate.

        Raises:
            RuntimeError: a part of the pipeline failed; figures of a degraded pipeline would mislead.
        """
        world, names = self._world, slate.item_ids
        answer = self._answer(slate, explain=self._test.examination is not None)
        number = {name: n for n, name in enumerate(names)}
        ranked = [number[item.item_id] for item in answer.items]
        dropped = np.ones(len(names), np.bool_)
        dropped[ranked] = False
        rows = world.items.rows_of(names)
        events = np.where(rows >= 0, world.items.events[np.maximum(rows, 0)].sum(axis=1), 0)
        rates = [self._test.rates.get(name, self._test.mean_rate) for name in names]
        # items whose position is unknown count as shown in the order of their records
        shown = np.argsort(np.arange(len(names)) if slate.positions is None else slate.positions, kind="stable")
        orders = {
            "riffle": np.concatenate([np.asarray(ranked, np.intp), shown[dropped[shown]]]),
            "shown": shown,
            "like_rate": self._best_first(np.asarray(rates)),
            "popularity": self._best_first(events.astype(np.float64)),
        }
        if self._test.examination is not None and slate.positions is not None:
            orders["as_shown"] = self._as_shown(slate, answer, number, self._test.examination)
            look = self._test.examination.log_at(slate.positions)
            orders["like_rate_as_shown"] = self._best_first(np.log(np.maximum(rates, LEAST)) + look)
        self.figures.note(slate, orders, dropped)

    def compare(self, slate: LoggedSlate) -> None:
        """Compare the probabilities of a slate's items with their outcomes. Items that the pipeline drops have none.

        Raises:
            RuntimeError: a part of the pipeline failed.
        """
        labels = dict(zip(slate.item_ids, slate.labels > 0, strict=True))
        told = [(item, (item.explanation or {}).get("heads")) for item in self._answer(slate, explain=True).items]
        rows = [(list(heads.values()), labels[item.item_id]) for item, heads in told if isinstance(heads, Mapping)]
        if rows:
            self.traffic.note(np.asarray([heads for heads, _ in rows], np.float32), np.stack([came for _, came in rows]))

    def _answer(self, slate: LoggedSlate, *, explain: bool) -> Slate:
        world, names = self._world, tuple(slate.item_ids)
        record = world.record(slate.user_id)
        world.know(record)
        request = Request("evaluate", slate.user_id, k=len(names), candidates=names, repeats=True, explain=explain)
        answer = self._pipeline.run([request], [record], [None])[0]
        if answer.degraded:
            raise RuntimeError(f"the pipeline is degraded: {', '.join(answer.degraded)}")
        return answer

    @staticmethod
    def _as_shown(slate: LoggedSlate, answer: Slate, number: Mapping[str, int], examination: Examination) -> NDArray[np.intp]:
        """Indices by the log odds of a like, weighed as in choices, plus the log examination of the position."""
        score = np.full(len(number), LEAST)
        for item in answer.items:
            score[number[item.item_id]] = min(max(_probability(item), LEAST), 1 - LEAST)
        assert slate.positions is not None
        return np.argsort(
            -(examination.scale * np.log(score / (1 - score)) + examination.log_at(slate.positions)), kind="stable"
        )

    def _best_first(self, scores: Floats) -> NDArray[np.intp]:
        """Indices by descending score; ties in random order, because a record's place must not decide."""
        return np.lexsort((self._rng.random(len(scores)), -scores))


def _probability(item: SlateItem) -> float:
    """Probability of the first head, a like; the score without a release. With further heads the score is no probability."""
    heads = (item.explanation or {}).get("heads")
    return float(next(iter(heads.values()))) if isinstance(heads, Mapping) and heads else item.score
