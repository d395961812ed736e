"""Co-visitation: compiled loops that sum increments per pair until the flush, and add them to the rows of items."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint64

__all__ = ["KEPT", "add_pairs", "grouped", "merge_rows", "regrouped"]

FORMAT = 2
HEAD = 16
KEPT = 128
"Number of neighbours kept when a row exceeds twice as many."
UNEVEN = 64
"More increments than this with equal leading bits trigger a general sort: for hashes of a hot item, or crafted ones."
SPREAD = 0x9E3779B97F4A7C15


@njit(cache=True, nogil=True)
def add_pairs(pairs: Any, units: Any, count: int, keys: Any, sums: Any, more_keys: Any, more_sums: Any, size: int) -> int:
    """Add `count` increments to the table `keys`, `sums` (uint64, a power of two long; a sum of 0 marks a free slot).

    A key holds the item's row in the high and the neighbour's row in the low 32 bits. Each key has exactly one slot. If
    another key occupies it, that one is evicted: appended to `more_keys`, `more_sums` at `size`, which must have room for
    `count`. Frequent pairs are thus summed within a table that fits the processor's cache. Returns the new `size`.
    """
    mask = len(keys) - 1
    for i in range(count):
        key = (uint64(pairs[i, 0]) << uint64(32)) | uint64(pairs[i, 1])
        at = np.int64((key * uint64(SPREAD)) >> uint64(20)) & mask
        if sums[at] != uint64(0) and keys[at] != key:
            more_keys[size], more_sums[size] = keys[at], sums[at]
            size += 1
            sums[at] = uint64(0)
        keys[at] = key
        sums[at] += units[i]
    return size


@njit(cache=True, nogil=True)
def grouped(keys: Any, sums: Any, item_hashes: Any, partitions: int) -> Any:
    """Group sums of pairs by owner partition (hash of the item modulo `partitions`) and item; pairs may repeat.

    Returns, for m distinct items and p pairs: owner int64 `(m,)` ascending, item hash uint64 `(m,)`, end of the item's pairs
    int64 `(m,)`, neighbour hash uint64 `(p,)`, units uint64 `(p,)`.
    """
    n = len(item_hashes)
    per_item = np.zeros(n + 1, np.int64)
    for i in range(len(keys)):
        per_item[np.int64(keys[i] >> uint64(32))] += 1
    per_owner = np.zeros(partitions + 1, np.int64)
    for row in range(n):
        if per_item[row]:
            per_owner[np.int64(item_hashes[row] % uint64(partitions)) + 1] += 1
    for owner in range(partitions):
        per_owner[owner + 1] += per_owner[owner]
    m = per_owner[partitions]
    owners, items, ends, rows = np.empty(m, np.int64), np.empty(m, np.uint64), np.empty(m, np.int64), np.empty(m, np.int64)
    for row in range(n):
        if per_item[row]:
            owner = np.int64(item_hashes[row] % uint64(partitions))
            rows[per_owner[owner]] = row
            owners[per_owner[owner]] = owner
            per_owner[owner] += 1
    place = np.zeros(n, np.int64)
    at = 0
    for i in range(m):
        items[i] = item_hashes[rows[i]]
        place[rows[i]] = at
        at += per_item[rows[i]]
        ends[i] = at
    others, units = np.empty(len(keys), np.uint64), np.empty(len(keys), np.uint64)
    for i in range(len(keys)):
        row = np.int64(keys[i] >> uint64(32))
        others[place[row]] = item_hashes[np.int64(keys[i] & uint64(0xFFFFFFFF))]
        units[place[row]] = sums[i]
        place[row] += 1
    return owners, items, ends, others, units


@njit(cache=True, nogil=True)
def regrouped(items: Any, ends: Any, others: Any, units: Any, order: Any) -> Any:
    """Group increments whose items may repeat, so that each item occurs once; `order` sorts `items`.

    Arguments and result are the columns of `models.tables.neighbours.Increments`.
    """
    m, p = len(items), len(others)
    new_items, new_ends = np.empty(m, np.uint64), np.empty(m, np.int64)
    new_others, new_units = np.empty(p, np.uint64), np.empty(p, np.uint64)
    made, at = 0, 0
    for k in range(m):
        i = order[k]
        if made == 0 or new_items[made - 1] != items[i]:
            new_items[made] = items[i]
            made += 1
        for j in range(ends[i - 1] if i else 0, ends[i]):
            new_others[at], new_units[at] = others[j], units[j]
            at += 1
        new_ends[made - 1] = at
    return new_items[:made], new_ends[:made], new_others, new_units


@njit(cache=True, nogil=True)
def _sort(others: Any, units: Any, hashes: Any, sums: Any, places: Any) -> None:
    """Sort increments by ascending hash from `others`, `units` to `hashes`, `sums`; in linear time for evenly spread hashes.

    A bucket sort by the leading bits, with about as many buckets as increments, is followed by an insertion sort. `places` is
    int64 scratch space of at least `2 * len(others) + 3` entries.
    """
    n, bits = len(others), 1
    while (1 << bits) < n:
        bits += 1
    shift = uint64(64 - bits)
    places[: (1 << bits) + 1] = 0
    for i in range(n):
        places[np.int64(others[i] >> shift) + 1] += 1
    fullest = 0
    for k in range(1 << bits):
        fullest = max(fullest, places[k + 1])
        places[k + 1] += places[k]
    if fullest > UNEVEN:
        order = np.argsort(others)
        for i in range(n):
            hashes[i], sums[i] = others[order[i]], units[order[i]]
        return
    for i in range(n):
        k = np.int64(others[i] >> shift)
        hashes[places[k]], sums[places[k]] = others[i], units[i]
        places[k] += 1
    for i in range(1, n):
        other, weight, at = hashes[i], sums[i], i
        while at > 0 and hashes[at - 1] > other:
            hashes[at], sums[at] = hashes[at - 1], sums[at - 1]
            at -= 1
        hashes[at], sums[at] = other, weight


@njit(cache=True, nogil=True)
def merge_rows(old: Any, old_starts: Any, ends: Any, others: Any, units: Any, new: Any, new_starts: Any) -> None:
    """Add increments to m rows (`models.state.rows.NeighbourRow`) by sorting the increments and merging them with each row.

    Row i is `old[old_starts[i]:old_starts[i + 1]]` (uint8, empty for a new row). Its increments end at `ends[i]` of `others`
    and `units` (uint64; a neighbour may repeat). The resulting rows go to `new` and `new_starts`.
    """
    old32, old64 = old.view(np.uint32), old.view(np.uint64)
    new32, new64 = new.view(np.uint32), new.view(np.uint64)
    longest, most = 0, 0
    for i in range(len(ends)):
        longest, most = max(longest, ends[i] - (ends[i - 1] if i else 0)), max(most, (old_starts[i + 1] - old_starts[i]) // 16)
    here, weights, places = np.empty(longest, np.uint64), np.empty(longest, np.uint64), np.empty(2 * longest + 3, np.int64)
    hashes, sums = np.empty(longest + most, np.uint64), np.empty(longest + most, np.uint64)
    at, begin = 0, 0
    new_starts[0] = 0
    for i in range(len(ends)):
        base = old_starts[i] // 8
        n, total = 0, uint64(0)
        if old_starts[i + 1] > old_starts[i]:
            n, total = np.int64(old32[2 * base + 1]), old64[base + 1]
        m = ends[i] - begin
        _sort(others[begin : ends[i]], units[begin : ends[i]], here, weights, places)
        a, b, made = 0, 0, 0
        while a < n or b < m:
            if b == m or (a < n and old64[base + 2 + a] < here[b]):
                hashes[made], sums[made] = old64[base + 2 + a], old64[base + 2 + n + a]
                a += 1
                made += 1
                continue
            other, weight = here[b], weights[b]
            total += weight
            b += 1
            if a < n and old64[base + 2 + a] == other:
                hashes[made], sums[made] = other, old64[base + 2 + n + a] + weight
                a += 1
                made += 1
            elif made and hashes[made - 1] == other:
                sums[made - 1] += weight
            else:
                hashes[made], sums[made] = other, weight
                made += 1
        keep = made
        bar, ties = uint64(0), made
        if made > 2 * KEPT:
            keep = KEPT
            bar = np.partition(sums[:made], made - KEPT)[made - KEPT]
            above = 0
            for k in range(made):
                above += sums[k] > bar
            ties = KEPT - above
        w = at // 8
        new64[w] = uint64(0)
        new[at] = FORMAT
        new32[2 * w + 1], new64[w + 1] = keep, total
        put = 0
        for k in range(made):
            if sums[k] > bar or (sums[k] == bar and ties > 0):
                if sums[k] == bar:
                    ties -= 1
                new64[w + 2 + put], new64[w + 2 + keep + put] = hashes[k], sums[k]
                put += 1
        at += HEAD + 16 * keep
        new_starts[i + 1] = at
        begin = ends[i]
