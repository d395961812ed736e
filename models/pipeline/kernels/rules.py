"""Merchandising rules: factors of scores, draws of new items, and the arrangement of slates.

A rule matches an item if its mask does, the item was published since the rule's `since` (epoch ms), and, where `few` is not 0,
the item has fewer than `few` events.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint64

from models.pipeline.kernels.order import key

__all__ = ["arranged", "draws", "factors", "rescaled"]

MARGIN = 0.01
"Distance of the base below the lowest score, as a fraction of the range of the scores."
LARGEST = 3e38
RESERVED, DRAWN, FILLED, PINNED = 1, 2, 3, 4
"Why a candidate is in the slate."


@njit(inline="always")
def _matches(rule: int, row: int, masks: Any, since: Any, published: Any, few: Any, events: Any) -> bool:
    return masks[rule, row] and published[row] >= since[rule] and (few[rule] == 0 or events[row] < few[rule])


@njit(cache=True, nogil=True)
def factors(query_row: Any, item_row: Any, which: Any, active: Any, factor: Any, masks: Any, since: Any, published: Any) -> Any:
    """Multiply the factors of the rules `which` that match each candidate: float64 `(n,)`, within 1e-6..1e6."""
    out = np.ones(len(item_row), np.float64)
    for i in range(len(item_row)):
        for r in which:
            row = item_row[i]
            if active[query_row[i], r] and masks[r, row] and published[row] >= since[r]:
                out[i] *= factor[r]
        out[i] = min(max(out[i], 1e-6), 1e6)
    return out


@njit(cache=True, nogil=True)
def rescaled(scores: Any, starts: Any, factor: Any) -> Any:
    """Multiply the distance of each score from its query's base: float32 `(n,)`, monotone in score and factor.

    The base is 0 if all finite scores of the query are positive, else it lies a little below the lowest one. Scores that are
    not finite, and all scores of a query whose factors are all 1, stay as they are.
    """
    out = scores.copy()
    for q in range(len(starts) - 1):
        low, high, changed = np.inf, -np.inf, False
        for i in range(starts[q], starts[q + 1]):
            changed |= factor[i] != 1.0
            if np.isfinite(scores[i]):
                low, high = min(low, np.float64(scores[i])), max(high, np.float64(scores[i]))
        if not changed or low > high:
            continue
        base = 0.0
        if low <= 0:
            base = low - (MARGIN * (high - low) if high > low else 1.0)
        for i in range(starts[q], starts[q + 1]):
            if factor[i] != 1.0 and np.isfinite(scores[i]):
                moved = base + factor[i] * (np.float64(scores[i]) - base)
                out[i] = np.float32(min(max(moved, -LARGEST), LARGEST))
    return out


@njit(cache=True, nogil=True)
def draws(
    pool: Any, most: Any, restricted: Any, wanted_starts: Any, wanted: Any, category_ids: Any, hashes: Any, salts: Any
) -> Any:
    """Draw up to `most[q]` items of `pool` for each query: those with the smallest keys under the query's salt.

    A query that is `restricted` draws among items with one of its categories. Returns item rows, int32, and each query's start
    and the last end.
    """
    q, size = len(most), len(pool)
    starts = np.zeros(q + 1, np.int64)
    room = 0
    for n in range(q):
        room += min(most[n], size)
    out = np.empty(room, np.int32)
    keys, rows = np.empty(size, np.uint64), np.empty(size, np.int32)
    end = 0
    for n in range(q):
        found = 0
        if most[n] > 0:
            for row in pool:
                inside = not restricted[n]
                if not inside:
                    for c in range(category_ids.shape[1]):
                        for w in range(wanted_starts[n], wanted_starts[n + 1]):
                            inside |= category_ids[row, c] == wanted[w]
                if inside:
                    keys[found], rows[found] = key(hashes[row], salts[n]), row
                    found += 1
            if found > most[n]:
                last = np.partition(keys[:found], most[n] - 1)[most[n] - 1]
                limit = end + most[n]
                for i in range(found):
                    if keys[i] <= last and end < limit:
                        out[end] = rows[i]
                        end += 1
            else:
                out[end : end + found] = rows[:found]
                end += found
        starts[n + 1] = end
    return out[:end].copy(), starts


@njit(inline="always")
def _fits(i: int, hits: Any, limits: Any, groups: Any, counts: Any) -> bool:
    fits = True
    for c in range(len(limits)):
        fits &= not (hits[c, i] and groups[c, i] >= 0 and counts[c, groups[c, i]] >= limits[c])
    return fits


@njit(inline="always")
def _count(i: int, hits: Any, groups: Any, counts: Any) -> None:
    for c in range(len(hits)):
        if hits[c, i] and groups[c, i] >= 0:
            counts[c, groups[c, i]] += 1


@njit(cache=True, nogil=True)
def _hits(chosen: Any, rows: Any, masks: Any, since: Any, published: Any, few: Any, events: Any) -> Any:
    """Return whether each of the rules `chosen` matches each row: bool `(rules, n)`."""
    out = np.zeros((len(chosen), len(rows)), np.bool_)
    for c in range(len(chosen)):
        for i in range(len(rows)):
            out[c, i] = _matches(chosen[c], rows[i], masks, since, published, few, events)
    return out


@njit(cache=True, nogil=True)
def _groups(chosen: Any, per: Any, category: Any) -> Any:
    """Return the group in which each cap counts each candidate, 0 or the number of its category or -1, and their number."""
    numbers, last = np.full(len(category), -1, np.int64), 0
    order = np.argsort(category)
    for j in range(len(order)):
        i = order[j]
        if category[i] < 0:
            continue
        if j > 0 and category[order[j - 1]] >= 0 and category[order[j - 1]] != category[i]:
            last += 1
        numbers[i] = last
    out = np.zeros((len(chosen), len(category)), np.int64)
    for c in range(len(chosen)):
        if per[chosen[c]]:
            out[c] = numbers
    return out, last + 1


@njit(cache=True, nogil=True)
def _active(rules: Any, active: Any) -> Any:
    """Return those of `rules` that are active for a query, in their order."""
    out, n = np.empty(len(rules), np.int64), 0
    for r in rules:
        if active[r]:
            out[n] = r
            n += 1
    return out[:n]


@njit(cache=True, nogil=True)
def _filled(
    length: int,
    pin_slots: Any,
    reserve: bool,
    requires: Any,
    least: Any,
    first: Any,
    wanted: Any,
    fresh: Any,
    places: Any,
    new: Any,
    drawn: Any,
    caps: Any,
    groups: Any,
    n_groups: int,
    limits: Any,
    salt: Any,
) -> Any:
    """Fill one slate from candidates 0, 1, …, which are ordered best first. Returns the candidate and the rule of each place.

    `pin_slots` `(length,)`: pinned candidates, -1 at other places; the rule of a pinned place is returned as -1. `wanted`,
    `new` and `caps`: whether each rule of `requires`, `fresh` and the caps matches each candidate. `drawn`: candidates in the
    order in which new ones are drawn. `reserve`: first take the candidates that the requirements lack.
    """
    size = caps.shape[1]
    slot, member, rule = pin_slots.copy(), np.zeros(size, np.int8), np.full(size, -1, np.int64)
    counts = np.zeros((len(limits), n_groups), np.int64)
    members = 0
    for p in range(length):
        if slot[p] >= 0:
            member[slot[p]] = PINNED
            _count(slot[p], caps, groups, counts)
            members += 1
    # requirements, the earliest last place first: so all that is reserved so far fits before this one's last place, too
    reserved, n_reserved = np.empty(length, np.int64), 0
    by_place = np.empty(length, np.int64)
    if reserve:
        for j in range(len(requires)):
            last, need, room = min(first[requires[j]], length), least[requires[j]], 0
            for p in range(last):
                if slot[p] < 0:
                    room += 1
                elif wanted[j, slot[p]]:
                    need -= 1
            for n in range(n_reserved):
                need -= wanted[j, reserved[n]]
            need = min(need, room - n_reserved)
            for i in range(size):
                if need <= 0:
                    break
                if not member[i] and wanted[j, i] and _fits(i, caps, limits, groups, counts):
                    member[i], rule[i] = RESERVED, requires[j]
                    reserved[n_reserved], by_place[n_reserved] = i, last
                    n_reserved += 1
                    members += 1
                    need -= 1
                    _count(i, caps, groups, counts)
    picked, n_picked = np.empty(length, np.int64), 0
    for j in range(len(fresh)):
        need = min(places[fresh[j]], length - members)
        for i in drawn:
            if need <= 0:
                break
            if not member[i] and new[j, i] and _fits(i, caps, limits, groups, counts):
                member[i], rule[i] = DRAWN, fresh[j]
                picked[n_picked] = i
                n_picked += 1
                members += 1
                need -= 1
                _count(i, caps, groups, counts)
    for strict in (True, False):
        for i in range(size):
            if members == length:
                break
            if not member[i] and (not strict or _fits(i, caps, limits, groups, counts)):
                member[i] = FILLED
                members += 1
                _count(i, caps, groups, counts)
    # the places of new items: drawn among those that leave room for what is reserved
    keys = np.empty(length, np.uint64)
    for p in range(length):
        keys[p] = key(uint64(p + 1), salt)
    turn, placed = np.argsort(keys), np.zeros(size, np.bool_)
    at = 0
    for n in range(n_picked):
        while at < length:
            p = turn[at]
            at += 1
            if slot[p] >= 0:
                continue
            free = True
            for m in range(n_reserved):
                room, due = 0, 0
                if by_place[m] > p:
                    for o in range(by_place[m]):
                        room += slot[o] < 0
                    for o in range(n_reserved):
                        due += by_place[o] <= by_place[m]
                    free &= room - 1 >= due
            if free:
                slot[p] = picked[n]
                placed[picked[n]] = True
                break
    ahead = 0
    for p in range(length):
        if slot[p] >= 0:
            continue
        chosen = -1
        for m in range(n_reserved):
            if placed[reserved[m]]:
                continue
            room, due, best = 0, 0, size
            for o in range(p, by_place[m]):
                room += slot[o] < 0
            for o in range(n_reserved):
                if not placed[reserved[o]] and by_place[o] <= by_place[m]:
                    due += 1
                    best = min(best, reserved[o])
            if due >= room:
                chosen = best
                break
        if chosen < 0:
            while placed[ahead] or not member[ahead] or member[ahead] == PINNED:
                ahead += 1
            chosen = ahead
        slot[p], placed[chosen] = chosen, True
    why = np.full(length, -1, np.int64)
    for p in range(length):
        why[p] = rule[slot[p]]
    return slot, why


@njit(cache=True, nogil=True)
def arranged(
    order: Any,
    starts: Any,
    item_row: Any,
    category: Any,
    k: Any,
    active: Any,
    pin_rules: Any,
    pin_rows: Any,
    pin_positions: Any,
    require_rules: Any,
    cap_rules: Any,
    fresh_rules: Any,
    least: Any,
    first: Any,
    most: Any,
    per: Any,
    few: Any,
    places: Any,
    masks: Any,
    since: Any,
    published: Any,
    events: Any,
    hashes: Any,
    salts: Any,
) -> Any:
    """Arrange each query's slate of at most `k` candidates by its active rules.

    `order`: candidates, best first within a query; those of query q are `order[starts[q]:starts[q + 1]]`. Pins take their
    places. New items are drawn for theirs. The best others that no cap excludes follow; caps give way only where a slate would
    be shorter. If the slate breaks a requirement, it is filled again, and the best matching candidates are reserved first.

    Returns the chosen candidates, int64, the rule that placed each, int64, -1 for none, each query's start and the last end,
    and the skipped pins of each query `(q, 3)`: the catalogue does not hold the item; it is not among the candidates; the slate
    is shorter than the position.
    """
    q = len(k)
    ends, skipped = np.zeros(q + 1, np.int64), np.zeros((q, 3), np.int64)
    for n in range(q):
        ends[n + 1] = ends[n] + max(0, min(k[n], starts[n + 1] - starts[n]))
    out, by = np.empty(ends[q], np.int64), np.full(ends[q], -1, np.int64)
    for n in range(q):
        mine, length = order[starts[n] : starts[n + 1]], ends[n + 1] - ends[n]
        rows, size = item_row[mine], len(mine)
        caps, fresh = _active(cap_rules, active[n]), _active(fresh_rules, active[n])
        requires = _active(require_rules, active[n])
        slots, pinned_by = np.full(length, -1, np.int64), np.full(length, -1, np.int64)
        for p in range(len(pin_rules)):
            if not active[n, pin_rules[p]]:
                continue
            if pin_rows[p] < 0:
                skipped[n, 0] += 1
                continue
            if pin_positions[p] >= length:
                skipped[n, 2] += 1
                continue
            found = -1
            for i in range(size):
                if rows[i] == pin_rows[p]:
                    found = i
                    break
            if found < 0:
                skipped[n, 1] += 1
                continue
            slots[pin_positions[p]], pinned_by[pin_positions[p]] = found, pin_rules[p]
        wanted = _hits(requires, rows, masks, since, published, few, events)
        new = _hits(fresh, rows, masks, since, published, few, events)
        hits = _hits(caps, rows, masks, since, published, few, events)
        groups, n_groups = _groups(caps, per, category[mine])
        drawn = np.empty(size, np.int64)
        count = 0
        for i in range(size):
            for j in range(len(fresh)):
                if new[j, i]:
                    drawn[count] = i
                    count += 1
                    break
        keys = np.empty(count, np.uint64)
        for i in range(count):
            keys[i] = key(hashes[rows[drawn[i]]], salts[n])
        drawn = drawn[:count][np.argsort(keys)]
        limits = most[caps]
        slot, why = slots, pinned_by
        for attempt in range(2):
            slot, why = _filled(
                length, slots, attempt == 1, requires, least, first, wanted, fresh, places[n], new, drawn, hits, groups,
                n_groups, limits, salts[n],
            )  # fmt: skip
            met = True
            for j in range(len(requires)):
                found = 0
                for p in range(min(first[requires[j]], length)):
                    found += wanted[j, slot[p]]
                met &= found >= least[requires[j]]
            if met:
                break
        for p in range(length):
            out[ends[n] + p] = mine[slot[p]]
            by[ends[n] + p] = pinned_by[p] if pinned_by[p] >= 0 else why[p]
    return out, by, ends, skipped
