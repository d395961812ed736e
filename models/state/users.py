"""TEMPORARY skeleton of user columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.state.bloom import TIER_BYTES
from models.state.kernels.user_rows import HISTORY
from models.state.rows import UserRecord, hash64


@dataclass(frozen=True, slots=True)
class Users:
    known: NDArray[np.bool_]
    size: NDArray[np.int32]
    time: NDArray[np.int64]
    item: NDArray[np.uint64]
    value: NDArray[np.float32]
    action: NDArray[np.int32]
    actions: Sequence[str]
    events: NDArray[np.int64]
    first_ms: NDArray[np.int64]
    last_ms: NDArray[np.int64]
    session_events: NDArray[np.int64]
    affinity_starts: NDArray[np.int64]
    affinity_category: NDArray[np.uint64]
    affinity_weight: NDArray[np.float64]
    affinity_ms: NDArray[np.int64]
    seen_items: NDArray[np.int64]
    seen_starts: NDArray[np.int64]
    seen_tiers: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.known)

    @classmethod
    def read(cls, rows: Sequence[bytes | None]) -> Users:
        return cls.of([None if row is None else UserRecord.decode(row) for row in rows])

    @classmethod
    def of(cls, records: Sequence[UserRecord | None]) -> Users:
        q = len(records)
        names: dict[str, int] = {}
        out = cls(
            np.zeros(q, np.bool_), np.zeros(q, np.int32), np.zeros((q, HISTORY), np.int64), np.zeros((q, HISTORY), np.uint64),
            np.full((q, HISTORY), np.nan, np.float32), np.full((q, HISTORY), -1, np.int32), [], np.zeros(q, np.int64),
            np.zeros(q, np.int64), np.zeros(q, np.int64), np.zeros(q, np.int64), np.zeros(q + 1, np.int64), np.zeros(0, np.uint64),
            np.zeros(0), np.zeros(0, np.int64), np.zeros(q, np.int64), np.zeros(q + 1, np.int64), np.zeros((0, TIER_BYTES), np.uint8),
        )
        cat, wei, at, tiers = [], [], [], []
        for n, r in enumerate(records):
            if r is not None:
                s = len(r.history)
                out.known[n], out.size[n] = True, s
                h = r.history[::-1]
                out.time[n, :s], out.item[n, :s], out.value[n, :s] = h["time"], h["item"], h["value"]
                numbers = np.asarray([names.setdefault(a, len(names)) for a in r.actions] or [0], np.int32)
                out.action[n, :s] = numbers[h["action"]]
                out.events[n], out.first_ms[n], out.last_ms[n] = sum(r.counts.values()), r.first_ms, r.last_ms
                out.session_events[n] = r.session[2]
                for c, (w, a) in r.affinities.items():
                    cat.append(hash64(c)); wei.append(w); at.append(a)
                out.seen_items[n] = sum(r.seen.counts)
                tiers += r.seen.tiers
            out.affinity_starts[n + 1], out.seen_starts[n + 1] = len(cat), len(tiers)
        from dataclasses import replace
        return replace(out, actions=list(names), affinity_category=np.asarray(cat, np.uint64), affinity_weight=np.asarray(wei, np.float64),
            affinity_ms=np.asarray(at, np.int64), seen_tiers=np.stack(tiers) if tiers else out.seen_tiers)
