"""User records: a compiled loop that applies a chunk's events to the bytes of records.

Each record is read into scratch arrays, changed event by event and written again. A user therefore costs one read and one
write per chunk, regardless of the number of events. `models.state.rows.UserRecord` defines the bytes and reads them in plain
Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint64

from models.state.bloom import BITS, CAPACITY, FIRST_TIERS, LATER_CAPACITY, MAX_TIERS, SLICES
from models.state.kernels.decay import halved
from models.state.kernels.hash_index import find

__all__ = ["ACTIONS", "AFFINITIES", "AFFINITY_HALF_LIFE_MS", "DENSE", "FORMAT", "FORWARD_UNITS", "HEAD", "HISTORY", "LONG"]
__all__ += ["SESSION_GAP_MS", "SLACK", "UNIT", "WINDOW", "WORDS", "apply_records"]

FORMAT = 3
"Current record format. Format 2 differs only in the size of tiers."
LONG = 4
"""Format of a record with more than FIRST_TIERS tiers, otherwise the same. The number of its own makes versions that support
fewer tiers refuse the record instead of misreading it."""
HEAD = 48
HISTORY = 200
"Number of events kept per user."
SLACK = 56
AFFINITIES = 64
"Number of categories kept per user."
ACTIONS = 64
"Number of distinct actions counted per user; further ones count as `other`."
WORDS = (BITS + 63) // 64
"Number of 64-bit words of a seen-set's tier."
DENSE = 0xFFFF
"Marks, in place of a number of positions, a tier that is stored as words."
SPARSE = 4 * WORDS
"Maximum number of set bits of a tier that is stored as bit positions, 2 bytes each."
AFFINITY_HALF_LIFE_MS = 30 * 86_400_000
SESSION_GAP_MS = 30 * 60_000
WINDOW = 8
"Number of distinct earlier items that an event is co-visited with."
UNIT = 2.0**-17
"Unit of co-visitation weight. Weights are whole numbers of it, so that sums do not depend on the order of their terms."
FORWARD_UNITS = np.array([round(0.8**rank * 65_536) * 2 for rank in range(WINDOW)], np.uint64)
"Weight of a co-visit by recency; the backward direction has half the weight."
OTHER = np.frombuffer(b"other", np.uint8)
OTHER_HASH = 12_651_461_517_645_861_078
IN_RECORD, IN_EVENT, IN_CATALOGUE, IS_OTHER = 0, 1, 2, 3


@njit(cache=True, nogil=True)
def _name(out: Any, at: int, kind: int, start: int, length: int, record: Any, events: Any, catalogue: Any) -> int:
    """Copy a name from its source `kind` to `out[at:]`; returns the next position."""
    for i in range(length):
        if kind == IN_RECORD:
            out[at + i] = record[start + i]
        elif kind == IN_EVENT:
            out[at + i] = events[start + i]
        elif kind == IN_CATALOGUE:
            out[at + i] = catalogue[start + i]
        else:
            out[at + i] = OTHER[i]
    return at + length


@njit(cache=True, nogil=True)
def apply_records(
    order: Any,
    bounds: Any,
    data: Any,
    starts: Any,
    lengths: Any,
    hashes: Any,
    times: Any,
    values: Any,
    item_rows: Any,
    bloom: Any,
    category_ids: Any,
    category_hashes: Any,
    category_starts: Any,
    category_names: Any,
    index_keys: Any,
    index_rows: Any,
    old: Any,
    old_starts: Any,
    new: Any,
    new_starts: Any,
    accepted: Any,
    pairs: Any,
    units: Any,
) -> int:
    """Apply a chunk's events to the records of its u users.

    Events (`schemas.columns.EventColumns`) are visited in `order` int64 `(n,)`, those of user p at
    `order[bounds[p]:bounds[p + 1]]`. `item_rows` int32 `(n,)` are their items' rows in the store; `bloom` and `category_ids`
    hold the items' bit positions in a seen-set and their categories, event by event (`models.tables.users.ItemsOf`).
    Old records are in `old` uint8, p at `old_starts[p]:old_starts[p + 1]`, 8-byte aligned, empty for a new user. New records
    go to `new` and `new_starts`. `accepted` uint8 `(n,)` is set to 1 for events that are not duplicates. Co-visits go to
    `pairs` int32 `(m, 2)` (the item that gains a neighbour, the neighbour) and `units` uint64 `(m,)`.

    Returns the number of co-visits, or -1 if `new` is too small; then only the output arrays have changed.
    """
    old16, old32, old64 = old.view(np.uint16), old.view(np.uint32), old.view(np.uint64)
    olds, oldf, oldv = old.view(np.int64), old.view(np.float64), old.view(np.float32)
    new16, new32, new64 = new.view(np.uint16), new.view(np.uint32), new.view(np.uint64)
    news, newf, newv = new.view(np.int64), new.view(np.float64), new.view(np.float32)
    room = HISTORY + SLACK
    h_time, h_item = np.empty(room, np.int64), np.empty(room, np.uint64)
    h_value, h_action = np.empty(room, np.float32), np.empty(room, np.uint16)
    longest = 0
    for p in range(len(bounds) - 1):
        longest = max(longest, bounds[p + 1] - bounds[p])
    arrived = np.empty(HISTORY + longest, np.uint64)
    a_hash, a_count = np.empty(ACTIONS + 1, np.uint64), np.empty(ACTIONS + 1, np.uint32)
    a_name = np.empty((ACTIONS + 1, 3), np.int64)
    most = AFFINITIES + category_ids.shape[1]
    f_hash, f_weight, f_at = np.empty(most, np.uint64), np.empty(most, np.float64), np.empty(most, np.int64)
    f_name, f_left = np.empty((most, 3), np.int64), np.empty(most, np.float64)
    # per tier: its words, its number of items, and its number of set bits, or DENSE if it is stored as words
    tiers = np.empty((MAX_TIERS, WORDS), np.uint64)
    tier_items, tier_bits = np.zeros(MAX_TIERS, np.int64), np.zeros(MAX_TIERS, np.int64)
    distinct = np.empty(WINDOW, np.uint64)
    made = 0
    at = 0
    new_starts[0] = 0
    for p in range(len(bounds) - 1):
        # read
        base = old_starts[p]
        n_actions = n_affinities = size = n_arrived = n_tiers = 0
        session_kind, session_start, session_length = IN_RECORD, 0, 0
        session_events, first_ms, session_ms = np.int64(0), np.int64(0), np.int64(0)
        if old_starts[p + 1] > base:
            n_tiers, n_actions, n_affinities = (
                np.int64(old[base + 1]),
                np.int64(old16[base // 2 + 1]),
                np.int64(old16[base // 2 + 2]),
            )
            size, n_arrived = np.int64(old16[base // 2 + 3]), np.int64(old16[base // 2 + 4])
            session_length, session_events = np.int64(old16[base // 2 + 5]), np.int64(old32[base // 4 + 3])
            first_ms, session_ms = olds[base // 8 + 2], olds[base // 8 + 3]
            n_positions = np.int64(old32[base // 4 + 8])
            w = base // 8 + HEAD // 8
            for i in range(size):
                h_time[i], h_item[i] = olds[w + i], old64[w + size + i]
            w += 2 * size
            for i in range(n_arrived):
                arrived[i] = old64[w + i]
            w += n_arrived
            for i in range(n_actions):
                a_hash[i] = old64[w + i]
            w += n_actions
            for i in range(n_affinities):
                f_hash[i], f_weight[i], f_at[i] = old64[w + i], oldf[w + n_affinities + i], olds[w + 2 * n_affinities + i]
            w += 3 * n_affinities
            n_dense = 0
            q = base // 2 + np.int64(old32[base // 4 + 9])
            v = base // 4 + np.int64(old32[base // 4 + 10])
            for i in range(size):
                h_value[i] = oldv[v + i]
                h_action[i] = old16[q + i]
            for i in range(n_actions):
                a_count[i] = old32[v + size + i]
            q += size
            lengths_at = q
            q += n_actions + n_affinities
            positions_at = q + 2 * n_tiers
            for t in range(n_tiers):
                tier_items[t] = np.int64(old16[q + t])
                held = np.int64(old16[q + n_tiers + t])
                tier_bits[t] = held
                if held == DENSE:
                    for i in range(WORDS):
                        tiers[t, i] = old64[w + n_dense * WORDS + i]
                    n_dense += 1
                else:
                    for i in range(WORDS):
                        tiers[t, i] = uint64(0)
                    for i in range(held):
                        bit = np.int64(old16[positions_at + i])
                        tiers[t, bit >> 6] |= uint64(1) << uint64(bit & 63)
                    positions_at += held
            name_at = 2 * (q + 2 * n_tiers + n_positions)
            session_start = name_at
            name_at += session_length
            for i in range(n_actions):
                a_name[i, 0], a_name[i, 1], a_name[i, 2] = IN_RECORD, name_at, np.int64(old16[lengths_at + i])
                name_at += a_name[i, 2]
            for i in range(n_affinities):
                f_name[i, 0], f_name[i, 1], f_name[i, 2] = IN_RECORD, name_at, np.int64(old16[lengths_at + n_actions + i])
                name_at += f_name[i, 2]
        # change
        for k in range(bounds[p], bounds[p + 1]):
            e = order[k]
            event, item, time, row = hashes[0, e], hashes[1, e], times[e], item_rows[e]
            known = False
            for i in range(max(0, n_arrived - HISTORY), n_arrived):
                known |= arrived[i] == event
            if known:
                continue
            arrived[n_arrived] = event
            n_arrived += 1
            accepted[e] = 1
            action, kind, name, length = hashes[2, e], IN_EVENT, starts[2, e], lengths[2, e]
            slot = -1
            for i in range(n_actions):
                if a_hash[i] == action:
                    slot = i
            if slot < 0 and n_actions >= ACTIONS:
                action, kind, name, length = uint64(OTHER_HASH), IS_OTHER, 0, len(OTHER)
                for i in range(n_actions):
                    if a_hash[i] == action:
                        slot = i
            if slot < 0:
                slot = n_actions
                a_hash[slot], a_count[slot] = action, 0
                a_name[slot, 0], a_name[slot, 1], a_name[slot, 2] = kind, name, length
                n_actions += 1
            # co-visits with the distinct items before it
            found = 0
            for i in range(size - 1, max(-1, size - 1 - HISTORY, size - 1 - 4 * WINDOW), -1):
                other = h_item[i]
                if other == item:
                    continue
                fresh = True
                for j in range(found):
                    fresh &= distinct[j] != other
                if not fresh:
                    continue
                distinct[found] = other
                other_row = find(index_keys, index_rows, other)
                if other_row >= 0:
                    pairs[made, 0], pairs[made, 1], units[made] = other_row, row, FORWARD_UNITS[found]
                    pairs[made + 1, 0], pairs[made + 1, 1] = row, other_row
                    units[made + 1] = FORWARD_UNITS[found] >> uint64(1)
                    made += 2
                found += 1
                if found == WINDOW:
                    break
            # session
            starts_anew = size == 0 or time - h_time[size - 1] > SESSION_GAP_MS
            given = lengths[3, e]
            if not starts_anew and given >= 0:
                same = given == session_length
                if same:
                    for i in range(given):
                        byte = old[session_start + i] if session_kind == IN_RECORD else data[session_start + i]
                        same &= data[starts[3, e] + i] == byte
                starts_anew = not same
            if starts_anew:
                session_kind, session_start, session_length = IN_EVENT, starts[3, e], max(given, 0)
                session_ms, session_events = time, np.int64(1)
            else:
                session_events += 1
            first_ms = min(first_ms, time) if size else time
            # history, by event time
            if size == room:
                for i in range(HISTORY):
                    h_time[i], h_item[i] = h_time[size - HISTORY + i], h_item[size - HISTORY + i]
                    h_value[i], h_action[i] = h_value[size - HISTORY + i], h_action[size - HISTORY + i]
                size = HISTORY
            place = size
            while place > 0 and h_time[place - 1] > time:
                h_time[place], h_item[place] = h_time[place - 1], h_item[place - 1]
                h_value[place], h_action[place] = h_value[place - 1], h_action[place - 1]
                place -= 1
            h_time[place], h_item[place], h_value[place], h_action[place] = time, item, values[e], slot
            size += 1
            a_count[slot] += 1
            # seen-set
            seen = False
            for t in range(n_tiers):
                seen = True
                for i in range(SLICES):
                    bit = bloom[e, i]
                    if (tiers[t, bit >> 6] >> uint64(bit & 63)) & uint64(1) == uint64(0):
                        seen = False
                        break
                if seen:
                    break
            if not seen:
                most_items = CAPACITY if n_tiers <= FIRST_TIERS else LATER_CAPACITY
                if n_tiers == 0 or tier_items[n_tiers - 1] >= most_items:
                    if n_tiers == MAX_TIERS:
                        for t in range(MAX_TIERS - 1):
                            tier_items[t], tier_bits[t] = tier_items[t + 1], tier_bits[t + 1]
                            tiers[t] = tiers[t + 1]
                        n_tiers -= 1
                    tier_items[n_tiers] = tier_bits[n_tiers] = 0
                    for i in range(WORDS):
                        tiers[n_tiers, i] = uint64(0)
                    n_tiers += 1
                newest = n_tiers - 1
                for i in range(SLICES):
                    bit = bloom[e, i]
                    mask = uint64(1) << uint64(bit & 63)
                    if tiers[newest, bit >> 6] & mask == uint64(0):
                        tiers[newest, bit >> 6] |= mask
                        if tier_bits[newest] != DENSE:
                            tier_bits[newest] += 1
                if tier_bits[newest] > SPARSE:
                    tier_bits[newest] = DENSE
                tier_items[newest] += 1
            # affinities
            for c in range(category_ids.shape[1]):
                category = category_ids[e, c]
                if category < 0:
                    break
                mine = category_hashes[category]
                slot = -1
                for i in range(n_affinities):
                    if f_hash[i] == mine:
                        slot = i
                if slot < 0:
                    slot = n_affinities
                    n_affinities += 1
                    f_hash[slot], f_weight[slot], f_at[slot] = mine, 0.0, time
                    f_name[slot, 0], f_name[slot, 1] = IN_CATALOGUE, category_starts[category]
                    f_name[slot, 2] = category_starts[category + 1] - category_starts[category]
                if time >= f_at[slot]:
                    f_weight[slot] = halved(f_weight[slot], time - f_at[slot], AFFINITY_HALF_LIFE_MS) + 1.0
                    f_at[slot] = time
                else:
                    f_weight[slot] += halved(1.0, f_at[slot] - time, AFFINITY_HALF_LIFE_MS)
            if n_affinities > AFFINITIES:
                newest = f_at[0]
                for i in range(1, n_affinities):
                    newest = max(newest, f_at[i])
                for i in range(n_affinities):
                    f_left[i] = halved(f_weight[i], newest - f_at[i], AFFINITY_HALF_LIFE_MS)
                for i in range(1, n_affinities):
                    left, mine, weight, when = f_left[i], f_hash[i], f_weight[i], f_at[i]
                    kind, name, length = f_name[i, 0], f_name[i, 1], f_name[i, 2]
                    j = i
                    while j > 0 and (f_left[j - 1] < left or (f_left[j - 1] == left and f_hash[j - 1] > mine)):
                        f_left[j], f_hash[j], f_weight[j], f_at[j] = f_left[j - 1], f_hash[j - 1], f_weight[j - 1], f_at[j - 1]
                        f_name[j, 0], f_name[j, 1], f_name[j, 2] = f_name[j - 1, 0], f_name[j - 1, 1], f_name[j - 1, 2]
                        j -= 1
                    f_left[j], f_hash[j], f_weight[j], f_at[j] = left, mine, weight, when
                    f_name[j, 0], f_name[j, 1], f_name[j, 2] = kind, name, length
                n_affinities = AFFINITIES
        # write
        kept, first = min(size, HISTORY), max(0, size - HISTORY)
        kept_arrived, first_arrived = min(n_arrived, HISTORY), max(0, n_arrived - HISTORY)
        names = session_length
        for i in range(n_actions):
            names += a_name[i, 2]
        for i in range(n_affinities):
            names += f_name[i, 2]
        n_dense = n_positions = 0
        for t in range(n_tiers):
            if tier_bits[t] == DENSE:
                n_dense += 1
            else:
                n_positions += tier_bits[t]
        largest = (
            HEAD
            + 8 * (2 * kept + kept_arrived + n_actions + 3 * n_affinities + WORDS * n_dense)
            + 4 * (kept + n_actions)
            + 2 * (kept + n_actions + n_affinities + 2 * n_tiers + n_positions)
            + names
            + 8
        )
        if at + largest > len(new):
            return -1
        for i in range(HEAD // 8):
            new64[at // 8 + i] = uint64(0)
        w = at // 8 + HEAD // 8
        for i in range(kept):
            news[w + i], new64[w + kept + i] = h_time[first + i], h_item[first + i]
        w += 2 * kept
        for i in range(kept_arrived):
            new64[w + i] = arrived[first_arrived + i]
        w += kept_arrived
        for i in range(n_actions):
            new64[w + i] = a_hash[i]
        w += n_actions
        for i in range(n_affinities):
            new64[w + i], newf[w + n_affinities + i], news[w + 2 * n_affinities + i] = f_hash[i], f_weight[i], f_at[i]
        w += 3 * n_affinities
        for t in range(n_tiers):
            if tier_bits[t] == DENSE:
                for i in range(WORDS):
                    new64[w + i] = tiers[t, i]
                w += WORDS
        v = 2 * w
        new32[at // 4 + 10] = v - at // 4
        for i in range(kept):
            newv[v + i] = h_value[first + i]
        for i in range(n_actions):
            new32[v + kept + i] = a_count[i]
        q = 2 * (v + kept + n_actions)
        new32[at // 4 + 9] = q - at // 2
        for i in range(kept):
            new16[q + i] = h_action[first + i]
        q += kept
        for i in range(n_actions):
            new16[q + i] = a_name[i, 2]
        q += n_actions
        for i in range(n_affinities):
            new16[q + i] = f_name[i, 2]
        q += n_affinities
        positions_at = q + 2 * n_tiers
        for t in range(n_tiers):
            new16[q + t], new16[q + n_tiers + t] = tier_items[t], tier_bits[t]
            if tier_bits[t] == DENSE:
                continue
            begin = positions_at
            for i in range(WORDS):
                word = tiers[t, i]
                bit = i * 64
                while word != uint64(0):
                    if word & uint64(1):
                        new16[begin] = bit
                        begin += 1
                    word >>= uint64(1)
                    bit += 1
            positions_at = begin
        end = _name(new, 2 * positions_at, session_kind, session_start, session_length, old, data, category_names)
        for i in range(n_actions):
            end = _name(new, end, a_name[i, 0], a_name[i, 1], a_name[i, 2], old, data, category_names)
        for i in range(n_affinities):
            end = _name(new, end, f_name[i, 0], f_name[i, 1], f_name[i, 2], old, data, category_names)
        while end & 7:
            new[end] = 0
            end += 1
        new[at], new[at + 1] = FORMAT if n_tiers <= FIRST_TIERS else LONG, n_tiers
        new16[at // 2 + 1], new16[at // 2 + 2], new16[at // 2 + 3] = n_actions, n_affinities, kept
        new16[at // 2 + 4], new16[at // 2 + 5], new32[at // 4 + 3] = kept_arrived, session_length, session_events
        news[at // 8 + 2], news[at // 8 + 3] = first_ms, session_ms
        new32[at // 4 + 8] = n_positions
        at = end
        new_starts[p + 1] = at
    return made
