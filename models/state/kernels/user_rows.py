"""User records: a compiled loop that applies a chunk's events to the bytes of records.

Each record is read into scratch arrays, changed event by event and written again. A user therefore costs one read and one
write per chunk, regardless of the number of events. `models.state.rows.UserRecord` defines the bytes and reads them in plain
Python.

The parts of the loop are inlined, because calls with so many arrays take as long as the work. They bind arrays to locals,
because reading an attribute in a loop counts a reference each time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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


SIZE, ARRIVED, ACTION, AFFINITY, TIERS, POSITIONS = range(6)
SESSION_KIND, SESSION_START, SESSION_LENGTH, SESSION_EVENTS, SESSION_MS, FIRST_MS = range(6, 12)
"""Places in `_Record.n`: numbers of events, of event ids, of actions, of categories, of tiers and of bit positions; the source,
start and length of the session's id, its number of events and its start; the time of the first event."""


class _Views(NamedTuple):
    """One array of bytes as arrays of several types."""

    u8: Any
    u16: Any
    u32: Any
    u64: Any
    i64: Any
    f32: Any
    f64: Any


class _Record(NamedTuple):
    """A record in work. The arrays are longer than their contents, whose numbers are in `n`."""

    n: Any
    "int64 `(12,)`: numbers and scalars, by the places above."
    times: Any
    "History: time, item, value and action of each event, by time. It is cut to the newest HISTORY at times."
    items: Any
    values: Any
    actions: Any
    arrived: Any
    "Ids of events, in the order of arrival."
    action_hash: Any
    "Actions: hash, count, and name as (source, start, length)."
    action_count: Any
    action_name: Any
    categories: Any
    "Affinities: category hash, weight, time of the weight, and name as above."
    weights: Any
    weights_at: Any
    category_name: Any
    lefts: Any
    "Weights at one time, while the weakest are dropped."
    tiers: Any
    "Seen-set: words, number of items, and number of set bits (DENSE: stored as words) of each tier."
    tier_items: Any
    tier_bits: Any


@njit(inline="always")
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


@njit(inline="always")
def _views(array: Any) -> _Views:
    return _Views(
        array,
        array.view(np.uint16),
        array.view(np.uint32),
        array.view(np.uint64),
        array.view(np.int64),
        array.view(np.float32),
        array.view(np.float64),
    )


@njit(inline="always")
def _scratch(events: int, categories: int) -> _Record:
    """Arrays for records that get `events` events of `categories` categories each."""
    room, most = HISTORY + SLACK, AFFINITIES + categories
    return _Record(
        np.zeros(12, np.int64),
        np.empty(room, np.int64),
        np.empty(room, np.uint64),
        np.empty(room, np.float32),
        np.empty(room, np.uint16),
        np.empty(HISTORY + events, np.uint64),
        np.empty(ACTIONS + 1, np.uint64),
        np.empty(ACTIONS + 1, np.uint32),
        np.empty((ACTIONS + 1, 3), np.int64),
        np.empty(most, np.uint64),
        np.empty(most, np.float64),
        np.empty(most, np.int64),
        np.empty((most, 3), np.int64),
        np.empty(most, np.float64),
        np.empty((MAX_TIERS, WORDS), np.uint64),
        np.zeros(MAX_TIERS, np.int64),
        np.zeros(MAX_TIERS, np.int64),
    )


@njit(inline="always")
def _read(r: _Record, old: _Views, base: int) -> None:
    """Read the record at `base` of `old`."""
    n, times, items, arrived, action_hash, categories = r.n, r.times, r.items, r.arrived, r.action_hash, r.categories
    weights, weights_at, values, actions, action_count, action_name = (
        r.weights,
        r.weights_at,
        r.values,
        r.actions,
        r.action_count,
        r.action_name,
    )
    category_name = r.category_name
    u16, u32, u64, i64, f32, f64 = old.u16, old.u32, old.u64, old.i64, old.f32, old.f64
    n_tiers, n_actions, n_affinities = np.int64(old.u8[base + 1]), np.int64(u16[base // 2 + 1]), np.int64(u16[base // 2 + 2])
    size, n_arrived = np.int64(u16[base // 2 + 3]), np.int64(u16[base // 2 + 4])
    session_length = np.int64(u16[base // 2 + 5])
    w = base // 8 + HEAD // 8
    for i in range(size):
        times[i], items[i] = i64[w + i], u64[w + size + i]
    w += 2 * size
    for i in range(n_arrived):
        arrived[i] = u64[w + i]
    w += n_arrived
    for i in range(n_actions):
        action_hash[i] = u64[w + i]
    w += n_actions
    for i in range(n_affinities):
        categories[i], weights[i] = u64[w + i], f64[w + n_affinities + i]
        weights_at[i] = i64[w + 2 * n_affinities + i]
    w += 3 * n_affinities
    q = base // 2 + np.int64(u32[base // 4 + 9])
    v = base // 4 + np.int64(u32[base // 4 + 10])
    for i in range(size):
        values[i] = f32[v + i]
        actions[i] = u16[q + i]
    for i in range(n_actions):
        action_count[i] = u32[v + size + i]
    q += size
    lengths_at = q
    q += n_actions + n_affinities
    _read_tiers(r, old, w, q, n_tiers)
    session_start = 2 * (q + 2 * n_tiers + np.int64(u32[base // 4 + 8]))
    name_at = session_start + session_length
    for i in range(n_actions):
        action_name[i, 0], action_name[i, 1], action_name[i, 2] = IN_RECORD, name_at, np.int64(u16[lengths_at + i])
        name_at += action_name[i, 2]
    for i in range(n_affinities):
        length = np.int64(u16[lengths_at + n_actions + i])
        category_name[i, 0], category_name[i, 1], category_name[i, 2] = IN_RECORD, name_at, length
        name_at += length
    n[SIZE], n[ARRIVED], n[ACTION], n[AFFINITY], n[TIERS] = size, n_arrived, n_actions, n_affinities, n_tiers
    n[SESSION_KIND], n[SESSION_START], n[SESSION_LENGTH] = IN_RECORD, session_start, session_length
    n[SESSION_EVENTS], n[SESSION_MS], n[FIRST_MS] = np.int64(u32[base // 4 + 3]), i64[base // 8 + 3], i64[base // 8 + 2]


@njit(inline="always")
def _read_tiers(r: _Record, old: _Views, w: int, q: int, n_tiers: int) -> None:
    """Read the tiers: dense ones at word `w`, the numbers and then the bit positions of sparse ones at half-word `q`."""
    tier_items, tier_bits, tiers = r.tier_items, r.tier_bits, r.tiers
    u16, u64 = old.u16, old.u64
    positions_at = q + 2 * n_tiers
    for t in range(n_tiers):
        tier_items[t] = np.int64(u16[q + t])
        held = np.int64(u16[q + n_tiers + t])
        tier_bits[t] = held
        if held == DENSE:
            for i in range(WORDS):
                tiers[t, i] = u64[w + i]
            w += WORDS
        else:
            for i in range(WORDS):
                tiers[t, i] = uint64(0)
            for i in range(held):
                bit = np.int64(u16[positions_at + i])
                tiers[t, bit >> 6] |= uint64(1) << uint64(bit & 63)
            positions_at += held


@njit(inline="always")
def _arrived_before(r: _Record, event: int) -> bool:
    """Whether the event is a duplicate; if not, remember its id."""
    n, arrived = r.n, r.arrived
    n_arrived = n[ARRIVED]
    known = False
    for i in range(max(0, n_arrived - HISTORY), n_arrived):
        known |= arrived[i] == event
    if not known:
        arrived[n_arrived] = event
        n[ARRIVED] = n_arrived + 1
    return known


@njit(inline="always")
def _action(r: _Record, action: int, start: int, length: int) -> int:
    """Count the action of an event; returns its number in the record."""
    n, action_hash, action_count, action_name = r.n, r.action_hash, r.action_count, r.action_name
    n_actions = n[ACTION]
    kind, slot = IN_EVENT, -1
    for i in range(n_actions):
        if action_hash[i] == action:
            slot = i
    if slot < 0 and n_actions >= ACTIONS:
        action, kind, start, length = uint64(OTHER_HASH), IS_OTHER, 0, len(OTHER)
        for i in range(n_actions):
            if action_hash[i] == action:
                slot = i
    if slot < 0:
        slot = n_actions
        action_hash[slot], action_count[slot] = action, 0
        action_name[slot, 0], action_name[slot, 1], action_name[slot, 2] = kind, start, length
        n[ACTION] = n_actions + 1
    action_count[slot] += 1
    return slot


@njit(inline="always")
def _covisit(
    r: _Record, item: int, row: int, distinct: Any, index_keys: Any, index_rows: Any, pairs: Any, units: Any, made: int
) -> int:
    """Add the co-visits of an item with the newest WINDOW distinct items before it; returns the number of co-visits so far."""
    n, items = r.n, r.items
    size = n[SIZE]
    found = 0
    for i in range(size - 1, max(-1, size - 1 - HISTORY, size - 1 - 4 * WINDOW), -1):
        other = items[i]
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
    return made


@njit(inline="always")
def _session(r: _Record, time: int, start: int, given: int, data: Any, old: Any) -> None:
    """Continue the session, or start one after a gap or with another id. `given`: the event's length of id, -1 for none."""
    n, times = r.n, r.times
    size = n[SIZE]
    starts_anew = size == 0 or time - times[size - 1] > SESSION_GAP_MS
    if not starts_anew and given >= 0:
        same = given == n[SESSION_LENGTH]
        if same:
            for i in range(given):
                byte = old[n[SESSION_START] + i] if n[SESSION_KIND] == IN_RECORD else data[n[SESSION_START] + i]
                same &= data[start + i] == byte
        starts_anew = not same
    if starts_anew:
        n[SESSION_KIND], n[SESSION_START], n[SESSION_LENGTH] = IN_EVENT, start, max(given, 0)
        n[SESSION_MS], n[SESSION_EVENTS] = time, 1
    else:
        n[SESSION_EVENTS] += 1
    n[FIRST_MS] = min(n[FIRST_MS], time) if size else time


@njit(inline="always")
def _remember(r: _Record, time: int, item: int, value: float, action: int) -> None:
    """Insert an event into the history, by event time."""
    n, times, items, values, actions = r.n, r.times, r.items, r.values, r.actions
    size = n[SIZE]
    if size == HISTORY + SLACK:
        for i in range(HISTORY):
            j = size - HISTORY + i
            times[i], items[i], values[i], actions[i] = times[j], items[j], values[j], actions[j]
        size = HISTORY
    place = size
    while place > 0 and times[place - 1] > time:
        times[place], items[place] = times[place - 1], items[place - 1]
        values[place], actions[place] = values[place - 1], actions[place - 1]
        place -= 1
    times[place], items[place], values[place], actions[place] = time, item, value, action
    n[SIZE] = size + 1


@njit(inline="always")
def _see(r: _Record, bloom: Any, event: int) -> None:
    """Add the bit positions of an event's item to the newest tier, unless one of the tiers holds them all."""
    n, tiers, tier_items, tier_bits = r.n, r.tiers, r.tier_items, r.tier_bits
    n_tiers = n[TIERS]
    for t in range(n_tiers):
        seen = True
        for i in range(SLICES):
            bit = bloom[event, i]
            if (tiers[t, bit >> 6] >> uint64(bit & 63)) & uint64(1) == uint64(0):
                seen = False
                break
        if seen:
            return
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
        n[TIERS] = n_tiers
    newest = n_tiers - 1
    for i in range(SLICES):
        bit = bloom[event, i]
        mask = uint64(1) << uint64(bit & 63)
        if tiers[newest, bit >> 6] & mask == uint64(0):
            tiers[newest, bit >> 6] |= mask
            if tier_bits[newest] != DENSE:
                tier_bits[newest] += 1
    if tier_bits[newest] > SPARSE:
        tier_bits[newest] = DENSE
    tier_items[newest] += 1


@njit(inline="always")
def _like(r: _Record, number: int, category: int, starts: Any, time: int) -> None:
    """Raise the affinity for a category by an event. `number`: the category's number; its name begins at `starts[number]`."""
    n, categories, weights, weights_at, category_name = r.n, r.categories, r.weights, r.weights_at, r.category_name
    slot = -1
    for i in range(n[AFFINITY]):
        if categories[i] == category:
            slot = i
    if slot < 0:
        slot = n[AFFINITY]
        n[AFFINITY] = slot + 1
        categories[slot], weights[slot], weights_at[slot] = category, 0.0, time
        category_name[slot, 0], category_name[slot, 1] = IN_CATALOGUE, starts[number]
        category_name[slot, 2] = starts[number + 1] - starts[number]
    if time >= weights_at[slot]:
        weights[slot] = halved(weights[slot], time - weights_at[slot], AFFINITY_HALF_LIFE_MS) + 1.0
        weights_at[slot] = time
    else:
        weights[slot] += halved(1.0, weights_at[slot] - time, AFFINITY_HALF_LIFE_MS)


@njit(inline="always")
def _keep_strongest(r: _Record) -> None:
    """Sort the affinities by weight at the newest time, then hash, and keep AFFINITIES of them."""
    n, weights_at, lefts, weights, categories, category_name = (
        r.n,
        r.weights_at,
        r.lefts,
        r.weights,
        r.categories,
        r.category_name,
    )
    n_affinities = n[AFFINITY]
    newest = weights_at[0]
    for i in range(1, n_affinities):
        newest = max(newest, weights_at[i])
    for i in range(n_affinities):
        lefts[i] = halved(weights[i], newest - weights_at[i], AFFINITY_HALF_LIFE_MS)
    for i in range(1, n_affinities):
        left, category, weight, when = lefts[i], categories[i], weights[i], weights_at[i]
        kind, name, length = category_name[i, 0], category_name[i, 1], category_name[i, 2]
        j = i
        while j > 0 and (lefts[j - 1] < left or (lefts[j - 1] == left and categories[j - 1] > category)):
            lefts[j], categories[j] = lefts[j - 1], categories[j - 1]
            weights[j], weights_at[j] = weights[j - 1], weights_at[j - 1]
            for field in range(3):
                category_name[j, field] = category_name[j - 1, field]
            j -= 1
        lefts[j], categories[j], weights[j], weights_at[j] = left, category, weight, when
        category_name[j, 0], category_name[j, 1], category_name[j, 2] = kind, name, length
    n[AFFINITY] = AFFINITIES


@njit(inline="always")
def _largest(r: _Record) -> int:
    """Bytes that the record takes at most. Also counts its bit positions."""
    n, action_name, category_name, tier_bits = r.n, r.action_name, r.category_name, r.tier_bits
    names = n[SESSION_LENGTH]
    for i in range(n[ACTION]):
        names += action_name[i, 2]
    for i in range(n[AFFINITY]):
        names += category_name[i, 2]
    n_dense = n_positions = 0
    for t in range(n[TIERS]):
        if tier_bits[t] == DENSE:
            n_dense += 1
        else:
            n_positions += tier_bits[t]
    n[POSITIONS] = n_positions
    kept, kept_arrived = min(n[SIZE], HISTORY), min(n[ARRIVED], HISTORY)
    return (
        HEAD
        + 8 * (2 * kept + kept_arrived + n[ACTION] + 3 * n[AFFINITY] + WORDS * n_dense)
        + 4 * (kept + n[ACTION])
        + 2 * (kept + n[ACTION] + n[AFFINITY] + 2 * n[TIERS] + n_positions)
        + names
        + 8
    )


@njit(inline="always")
def _write(r: _Record, new: _Views, at: int, old: Any, data: Any, category_names: Any) -> int:
    """Write the record to `new` from byte `at` on; returns its end. `_largest` was called before."""
    n, times, items, arrived, action_hash, categories = r.n, r.times, r.items, r.arrived, r.action_hash, r.categories
    weights, weights_at, tier_bits, tiers, values, action_count = (
        r.weights,
        r.weights_at,
        r.tier_bits,
        r.tiers,
        r.values,
        r.action_count,
    )
    actions, action_name, category_name = r.actions, r.action_name, r.category_name
    n_actions, n_affinities, n_tiers = n[ACTION], n[AFFINITY], n[TIERS]
    kept, first = min(n[SIZE], HISTORY), max(0, n[SIZE] - HISTORY)
    kept_arrived, first_arrived = min(n[ARRIVED], HISTORY), max(0, n[ARRIVED] - HISTORY)
    u8, u16, u32, u64, i64, f32, f64 = new.u8, new.u16, new.u32, new.u64, new.i64, new.f32, new.f64
    for i in range(HEAD // 8):
        u64[at // 8 + i] = uint64(0)
    w = at // 8 + HEAD // 8
    for i in range(kept):
        i64[w + i], u64[w + kept + i] = times[first + i], items[first + i]
    w += 2 * kept
    for i in range(kept_arrived):
        u64[w + i] = arrived[first_arrived + i]
    w += kept_arrived
    for i in range(n_actions):
        u64[w + i] = action_hash[i]
    w += n_actions
    for i in range(n_affinities):
        u64[w + i], f64[w + n_affinities + i] = categories[i], weights[i]
        i64[w + 2 * n_affinities + i] = weights_at[i]
    w += 3 * n_affinities
    for t in range(n_tiers):
        if tier_bits[t] == DENSE:
            for i in range(WORDS):
                u64[w + i] = tiers[t, i]
            w += WORDS
    v = 2 * w
    u32[at // 4 + 10] = v - at // 4
    for i in range(kept):
        f32[v + i] = values[first + i]
    for i in range(n_actions):
        u32[v + kept + i] = action_count[i]
    q = 2 * (v + kept + n_actions)
    u32[at // 4 + 9] = q - at // 2
    for i in range(kept):
        u16[q + i] = actions[first + i]
    q += kept
    for i in range(n_actions):
        u16[q + i] = action_name[i, 2]
    q += n_actions
    for i in range(n_affinities):
        u16[q + i] = category_name[i, 2]
    end = 2 * _write_tiers(r, new, q + n_affinities)
    end = _name(u8, end, n[SESSION_KIND], n[SESSION_START], n[SESSION_LENGTH], old, data, category_names)
    for i in range(n_actions):
        kind, start, length = action_name[i, 0], action_name[i, 1], action_name[i, 2]
        end = _name(u8, end, kind, start, length, old, data, category_names)
    for i in range(n_affinities):
        kind, start, length = category_name[i, 0], category_name[i, 1], category_name[i, 2]
        end = _name(u8, end, kind, start, length, old, data, category_names)
    while end & 7:
        u8[end] = 0
        end += 1
    u8[at], u8[at + 1] = FORMAT if n_tiers <= FIRST_TIERS else LONG, n_tiers
    u16[at // 2 + 1], u16[at // 2 + 2], u16[at // 2 + 3] = n_actions, n_affinities, kept
    u16[at // 2 + 4], u16[at // 2 + 5], u32[at // 4 + 3] = kept_arrived, n[SESSION_LENGTH], n[SESSION_EVENTS]
    i64[at // 8 + 2], i64[at // 8 + 3] = n[FIRST_MS], n[SESSION_MS]
    u32[at // 4 + 8] = n[POSITIONS]
    return end


@njit(inline="always")
def _write_tiers(r: _Record, new: _Views, q: int) -> int:
    """Write the numbers of the tiers and the bit positions of sparse ones at half-word `q`; returns the next half-word."""
    n, tier_items, tier_bits, tiers = r.n, r.tier_items, r.tier_bits, r.tiers
    n_tiers = n[TIERS]
    u16 = new.u16
    at = q + 2 * n_tiers
    for t in range(n_tiers):
        u16[q + t], u16[q + n_tiers + t] = tier_items[t], tier_bits[t]
        if tier_bits[t] == DENSE:
            continue
        for i in range(WORDS):
            word = tiers[t, i]
            bit = i * 64
            while word != uint64(0):
                if word & uint64(1):
                    u16[at] = bit
                    at += 1
                word >>= uint64(1)
                bit += 1
    return at


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
    source, target = _views(old), _views(new)
    longest = 0
    for p in range(len(bounds) - 1):
        longest = max(longest, bounds[p + 1] - bounds[p])
    r = _scratch(longest, category_ids.shape[1])
    n, distinct = r.n, np.empty(WINDOW, np.uint64)
    made = 0
    at = 0
    new_starts[0] = 0
    for p in range(len(bounds) - 1):
        for i in range(len(n)):
            n[i] = 0
        if old_starts[p + 1] > old_starts[p]:
            _read(r, source, old_starts[p])
        for k in range(bounds[p], bounds[p + 1]):
            e = order[k]
            if _arrived_before(r, hashes[0, e]):
                continue
            accepted[e] = 1
            item, time = hashes[1, e], times[e]
            action = _action(r, hashes[2, e], starts[2, e], lengths[2, e])
            made = _covisit(r, item, item_rows[e], distinct, index_keys, index_rows, pairs, units, made)
            _session(r, time, starts[3, e], lengths[3, e], data, old)
            _remember(r, time, item, values[e], action)
            _see(r, bloom, e)
            for c in range(category_ids.shape[1]):
                category = category_ids[e, c]
                if category < 0:
                    break
                _like(r, category, category_hashes[category], category_starts, time)
            if n[AFFINITY] > AFFINITIES:
                _keep_strongest(r)
        if at + _largest(r) > len(new):
            return -1
        at = _write(r, target, at, old, data, category_names)
        new_starts[p + 1] = at
    return made
