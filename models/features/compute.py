"""The features of a candidate: one definition, computed by the same code when serving and when training replays.

Everything follows from event time and from what the batch already holds; wall clock plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.features.context import CONTEXT, context_of, hour_nearness
from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Model, Queries
from models.state.rows import AFFINITY_HALF_LIFE_MS, UserRecord
from models.units import DAY_MS

__all__ = ["FEATURES", "SOURCES", "SPEC", "compute"]

SPEC = "f7"
"Name of this specification. Any change to a feature's meaning changes it: a release of another one is refused."
SOURCES = ("covisitation", "ease", "learned", "content", "popular", "fresh")
ACTIONS = 4
LAST = 5

USER = ("user_events", "user_history", "user_value", "user_liked_share", "user_idle", "user_session", "user_span")
ITEM = (
    "item_popularity",
    "item_events",
    "item_trend",
    "item_age",
    "item_published",
    "item_value",
    "item_values",
    "item_price",
    "item_priced",
    "item_learned",
    *(f"item_action{n}" for n in range(ACTIONS)),
)
CROSS = (
    "covisit",
    "covisit_share",
    "covisit_last",
    "ease",
    "ease_share",
    "tower",
    "tower_standard",
    "content",
    "similar",
    "similar_last",
    "affinity",
    "affinity_share",
    "category_value",
    "category_liked",
    "category_hour",
    "price_above",
    "price_far",
    "popularity_share",
    *(f"by_{name}" for name in SOURCES),
)
FEATURES = (*USER, *CONTEXT, *ITEM, *CROSS)
"Names, in the order of the columns."
OF_USER = slice(0, len(USER))
OF_CONTEXT = slice(OF_USER.stop, OF_USER.stop + len(CONTEXT))
OF_ITEM = slice(OF_CONTEXT.stop, OF_CONTEXT.stop + len(ITEM))
OF_CROSS = slice(OF_ITEM.stop, OF_ITEM.stop + len(CROSS))


def compute(
    queries: Queries, candidates: Candidates, items: ItemStore, sources: Sequence[str], model: Model
) -> NDArray[np.float32]:
    """Features of every candidate: float32 `(n, len(FEATURES))`, all finite. `sources` names the columns of source scores."""
    out = np.zeros((len(candidates), len(FEATURES)), np.float32)
    out[:, OF_CONTEXT] = context_of(queries.requests, items.stream_time_ms)[candidates.query_row]
    _item(out[:, OF_ITEM], candidates.item_row, items, model)
    spans = candidates.spans(len(queries))
    profiles = _profiles(queries, items, model)
    for q, user in enumerate(queries.users):
        span = slice(int(spans[q]), int(spans[q + 1]))
        if span.start == span.stop:
            continue
        if user is not None and len(user.history):
            out[span, OF_USER] = _user(user, queries.liked[q] if q < len(queries.liked) else None, items, model)
        _cross(out[span, OF_CROSS], q, candidates.item_row[span], queries, items, model, profiles)
    start = len(FEATURES) - len(SOURCES)
    for n, name in enumerate(SOURCES):
        if name in sources:
            out[:, start + n] = ~np.isnan(candidates.source_scores[:, list(sources).index(name)])
    place = OF_CROSS.start + CROSS.index("popularity_share")
    popular = out[:, OF_ITEM.start]
    for q in range(len(queries)):
        part = popular[spans[q] : spans[q + 1]]
        if len(part):
            out[spans[q] : spans[q + 1], place] = part / max(float(part.max()), 1e-6)
    out[~np.isfinite(out)] = 0.0
    return out


def _user(user: UserRecord, liked: NDArray[np.bool_] | None, items: ItemStore, model: Model) -> tuple[float, ...]:
    values = user.history["value"]
    valued = ~np.isnan(values)
    mean = float(model.vocabulary.standard(values[valued]).mean()) if valued.any() else 0.0
    return (
        float(np.log1p(sum(user.counts.values()))),
        float(np.log1p(len(values))),
        mean,
        float(liked.mean()) if liked is not None and len(liked) else 0.0,
        float(np.log1p(max(items.stream_time_ms - user.last_ms, 0) / DAY_MS)),
        float(np.log1p(user.session[2])),
        float(np.log1p(max(user.last_ms - user.first_ms, 0) / DAY_MS)),
    )


def _item(out: NDArray[np.float32], rows: NDArray[np.int32], items: ItemStore, model: Model) -> None:
    popularity = items.popularity_now(rows)
    events = items.events[rows].sum(axis=1)
    counted = items.value_count[rows].sum(axis=1)
    mean = items.value_sum[rows].sum(axis=1) / np.maximum(counted, 1)
    now = items.stream_time_ms
    first, published = items.first_ms[rows], items.published_ms[rows]
    price = items.price[rows]
    standard = model.vocabulary.standard(np.where(counted > 0, mean, np.nan).astype(np.float32))
    out[:, 0] = np.log1p(popularity)
    out[:, 1] = np.log1p(events)
    out[:, 2] = popularity / (events + 1.0)
    out[:, 3] = np.where(first > 0, np.log1p(np.maximum(now - first, 0) / DAY_MS), 0)
    out[:, 4] = np.where(published > 0, np.log1p(np.maximum(now - published, 0) / DAY_MS), 0)
    out[:, 5] = standard * counted / (counted + 5.0)
    out[:, 6] = np.log1p(counted)
    out[:, 7] = np.log1p(np.maximum(np.nan_to_num(price), 0))
    out[:, 8] = ~np.isnan(price)
    out[:, 9] = model.met[rows]
    for n, name in enumerate(model.vocabulary.actions[:ACTIONS]):
        if name in items.action_names:
            slot = items.action_names.index(name)
            out[:, 10 + n] = items.actions[rows, :, slot].sum(axis=1) / (events + 5.0)


def _profiles(queries: Queries, items: ItemStore, model: Model) -> list[tuple[NDArray[np.float32], ...]]:
    """Per query, of the newest items, liked ones if there are any: mean of their words and of their content, and the last's."""
    found: list[tuple[NDArray[np.float32], ...]] = []
    for q in range(len(queries)):
        wanted = _newest(queries, q)
        content = model.content[wanted]
        found.append((_unit(items.text[wanted].sum(axis=0)), _unit(content.sum(axis=0)), content[:LAST]))
    return found


def _newest(queries: Queries, q: int) -> NDArray[np.int32]:
    """Rows of the newest items of a query's person, newest first: those they liked, if there are any."""
    rows = queries.history_rows[q]
    liked = queries.liked[q] if q < len(queries.liked) else np.zeros(0, np.bool_)
    wanted = rows[: len(liked)][liked] if liked.any() else rows
    newest: NDArray[np.int32] = wanted[wanted >= 0][: queries.recent_rows.shape[1]]
    return newest


def _price_above(newest: NDArray[np.int32], rows: NDArray[np.int32], items: ItemStore) -> NDArray[np.float32]:
    """How far a candidate's price lies above what the person's newest items cost, as a logarithm; 0 where either is unknown."""
    usual = items.price[newest]
    usual = np.log1p(np.maximum(usual[~np.isnan(usual)], 0))
    if not len(usual):
        return np.zeros(len(rows), np.float32)
    above: NDArray[np.float32] = np.nan_to_num(np.log1p(np.maximum(items.price[rows], 0)) - usual.mean())
    return above


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.linalg.norm(vector))
    scaled: NDArray[np.float32] = vector / length if length > 0 else vector
    return scaled


def _cross(
    out: NDArray[np.float32],
    q: int,
    rows: NDArray[np.int32],
    queries: Queries,
    items: ItemStore,
    model: Model,
    profiles: list[tuple[NDArray[np.float32], ...]],
) -> None:
    covisit, ease = queries.signals.get("covisitation"), queries.signals.get("ease")
    if covisit is not None:
        out[:, 0] = covisit.at(q, rows)
        out[:, 1] = out[:, 0] / max(covisit.largest(q), 1e-9)
    last = queries.recent_rows[q, 0]
    if last >= 0:
        near, weight = items.neighbour_rows[last], items.neighbour_weights[last]
        order = np.argsort(near, kind="stable")
        place = np.minimum(np.searchsorted(near[order], rows), len(near) - 1)
        total = max(float(items.neighbour_total[last]), 1e-9)
        out[:, 2] = np.where(near[order][place] == rows, weight[order][place] / total, 0)
    if ease is not None:
        out[:, 3] = ease.at(q, rows)
        out[:, 4] = out[:, 3] / max(ease.largest(q), 1e-9)
    if queries.user_vectors is not None:
        dots = model.vectors[rows] @ queries.user_vectors[q]
        out[:, 5] = dots
        out[:, 6] = (dots - dots.mean()) / (float(dots.std()) + 1e-6)
    words, similar, latest = profiles[q]
    contents = model.content[rows]
    out[:, 7], out[:, 8] = items.text[rows] @ words, contents @ similar
    if len(latest):
        out[:, 9] = (contents @ latest.T).max(axis=1)
    user = queries.users[q]
    if user is not None and len(user.history):
        out[:, 10:15] = _categories(
            user, queries.history_rows[q], queries.liked[q] if q < len(queries.liked) else None, rows, items, model
        )
    above = _price_above(_newest(queries, q), rows, items)
    out[:, 15], out[:, 16] = above, np.abs(above)


def _categories(
    user: UserRecord,
    history: NDArray[np.int32],
    liked: NDArray[np.bool_] | None,
    rows: NDArray[np.int32],
    items: ItemStore,
    model: Model,
) -> NDArray[np.float32]:
    """Of the candidates' categories: decayed affinity, its share, usual value, liked share, and how much larger their share of
    the person's events is at this time of day than at any. `(n, 5)`.
    """
    size = len(items.category_names)
    if not size:
        return np.zeros((len(rows), 5), np.float32)
    affinity = np.zeros(size + 1)
    for name, (weight, at) in user.affinities.items():
        number = items.category_rows([name])
        if len(number):
            affinity[number[0]] = weight * 2.0 ** (-max(items.stream_time_ms - at, 0) / AFFINITY_HALF_LIFE_MS)
    events = user.history[::-1]
    known = history[: len(events)] >= 0
    categories = items.category_ids[history[: len(events)][known]]
    values = model.vocabulary.standard(events["value"][known])
    there = categories >= 0
    flat = categories[there]
    event = np.nonzero(there)[0]
    count = np.bincount(flat, minlength=size + 1)
    value = np.bincount(flat, values[event], minlength=size + 1) / (count + 3.0)
    fond = np.zeros(len(values)) if liked is None else liked[: len(events)][known].astype(np.float64)
    share = np.bincount(flat, fond[event], minlength=size + 1) / (count + 3.0)
    near = hour_nearness(events["time"][known], items.stream_time_ms)
    hour = np.bincount(flat, near[event], minlength=size + 1)
    hour = (hour - near.sum() * count / max(len(near), 1)) / (near.sum() + 3.0)
    mine = items.category_ids[rows]
    valid = mine >= 0
    number = np.maximum(valid.sum(axis=1), 1)
    # no category is number `size`, where every column is 0
    mine = np.where(valid, mine, size)[:, valid.any(axis=0)]
    told = np.stack([affinity, affinity / max(float(affinity.max()), 1e-6), value, share, hour])
    sums = told[:, mine].sum(axis=2)
    out: NDArray[np.float32] = (sums / number).T.astype(np.float32)
    out[:, 0] = np.log1p(sums[0])
    return out
