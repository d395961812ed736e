"""Content-only baseline, which a release has to beat on cold items.

Scores are cosines to the mean vector of the user's liked items (of all interacted items, while none is liked). Catalogue,
queries and the exclusion of items that the user interacted with are those of the release. The user's history is live; nothing
is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.records import Interaction, Item

__all__ = ["nearest_ranks"]


def nearest_ranks(
    items: Sequence[Item],
    events: Sequence[Interaction],
    positive: Callable[[str, float | None], bool],
    asked: Sequence[int],
    vectors: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Rank of the liked item at each of the `asked` events, -1 where it cannot be shown: int64 `(len(asked),)`.

    `vectors`: `(len(items), d)`, zeros where there is no content. Half of the ties count as better; there are many where a
    modality is missing.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    number = {item.item_id: n for n, item in enumerate(items)}
    published = np.asarray([item.published_at or 0 for item in items], np.int64)
    available = np.asarray([item.available for item in items], np.bool_)
    liked: dict[str, NDArray[np.float32]] = {}
    met: dict[str, NDArray[np.float32]] = {}
    seen: dict[str, list[int]] = {}
    wanted, ranks = set(asked), []
    for n, event in enumerate(events):
        item, user = number.get(event.item_id, -1), event.user_id
        if n in wanted:
            profile = liked.get(user, met.get(user))
            scores = np.zeros(len(items), np.float32) if profile is None else unit @ profile
            scores[~available | (published > event.event_time)] = -np.inf
            scores[seen.get(user, [])] = -np.inf
            mine = scores[item] if item >= 0 else -np.inf
            ranks.append(int((scores > mine).sum() + ((scores == mine).sum() - 1) // 2) if np.isfinite(mine) else -1)
        if item >= 0:
            seen.setdefault(user, []).append(item)
            for kept, counts in ((met, True), (liked, positive(event.action, event.value))):
                if counts:
                    kept[user] = kept[user] + unit[item] if user in kept else unit[item].copy()
    return np.asarray(ranks, np.int64)
