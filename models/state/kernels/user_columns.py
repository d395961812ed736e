"""User records as columns: a compiled loop that checks a batch of records and copies them to columns.

`models.state.rows.UserRecord.decode` defines which bytes are a record; the loop accepts the same ones of the current formats.
Every length in a record is checked before anything is read by it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint8, uint64

from models.state.bloom import MAX_TIERS, TIER_BYTES
from models.state.kernels.hash_index import find
from models.state.kernels.user_rows import ACTIONS, AFFINITIES, DENSE, FORMAT, HEAD, HISTORY, LONG, OTHER_HASH, WORDS

__all__ = ["changeable", "read_columns"]


@njit(inline="always")
def _same(left: Any, left_at: int, right: Any, right_at: int, length: int) -> bool:
    """Whether `length` bytes of two arrays are equal."""
    same = True
    for i in range(length):
        same &= left[left_at + i] == right[right_at + i]
    return same


@njit(inline="always")
def _within(byte: int, low: int, high: int) -> bool:
    return low <= byte <= high


@njit(cache=True, nogil=True)
def _is_text(data: Any, at: int, end: int) -> bool:
    """Whether bytes are UTF-8 by RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF."""
    while at < end:
        lead = np.int64(data[at])
        at += 1
        if lead < 0x80:
            continue
        more, low, high = 1, 0x80, 0xBF
        if _within(lead, 0xE0, 0xEF):
            more = 2
            low = 0xA0 if lead == 0xE0 else 0x80
            high = 0x9F if lead == 0xED else 0xBF
        elif _within(lead, 0xF0, 0xF4):
            more = 3
            low = 0x90 if lead == 0xF0 else 0x80
            high = 0x8F if lead == 0xF4 else 0xBF
        elif not _within(lead, 0xC2, 0xDF):
            return False
        if at + more > end or not _within(np.int64(data[at]), low, high):
            return False
        for i in range(1, more):
            if not _within(np.int64(data[at + i]), 0x80, 0xBF):
                return False
        at += more
    return True


@njit(cache=True, nogil=True)
def _names_end(u8: Any, u16: Any, at: int, end: int, lengths_at: int, session_bytes: int, actions: int, affinities: int) -> int:
    """Check the texts from byte `at` on, which must end by `end`; returns their end, or -1 for texts that are none.

    The texts are the session's id, the actions and the categories. Lengths of the latter two begin at half-word `lengths_at`.
    """
    first = at
    at += session_bytes
    for i in range(actions + affinities):
        at += np.int64(u16[lengths_at + i])
    if at > end:
        return -1
    high = uint8(0)
    for i in range(first, at):
        high |= u8[i]
    if high >= 0x80:
        # several names may be invalid one by one though their bytes are valid in sequence
        text = first + session_bytes
        if not _is_text(u8, first, text):
            return -1
        for i in range(actions + affinities):
            length = np.int64(u16[lengths_at + i])
            if not _is_text(u8, text, text + length):
                return -1
            text += length
    left = first + session_bytes
    for i in range(actions):
        length = np.int64(u16[lengths_at + i])
        right = left + length
        for j in range(i + 1, actions):
            other = np.int64(u16[lengths_at + j])
            if other == length and _same(u8, left, u8, right, length):
                return -1
            right += other
        left += length
    return at


@njit(cache=True, nogil=True)
def _sound_tiers(u16: Any, q: int, tiers: int, sparse: int, room: int) -> bool:
    """Whether tiers at half-word `q` have at most `sparse` positions, all within a tier, and `room` bytes hold the dense."""
    positions_at, positions = q + 2 * tiers, 0
    sound = True
    for t in range(tiers):
        held = np.int64(u16[q + tiers + t])
        if held == DENSE:
            room -= 8 * WORDS
            continue
        if positions + held > sparse:
            return False
        for i in range(positions, positions + held):
            sound &= u16[positions_at + i] < 8 * TIER_BYTES
        positions += held
    return sound and room >= 0


@njit(cache=True, nogil=True)
def _sound(u8: Any, u16: Any, u32: Any, base: int, length: int) -> bool:
    """Whether `length` bytes from `base` on are a record of a current format."""
    if length < HEAD or (u8[base] != FORMAT and u8[base] != LONG):
        return False
    tiers, actions, affinities = np.int64(u8[base + 1]), np.int64(u16[base // 2 + 1]), np.int64(u16[base // 2 + 2])
    events, hashes = np.int64(u16[base // 2 + 3]), np.int64(u16[base // 2 + 4])
    sparse, medium = np.int64(u32[base // 4 + 8]), 4 * np.int64(u32[base // 4 + 10])
    if tiers > MAX_TIERS or events > HISTORY or actions > ACTIONS + 1:
        return False
    dense = HEAD + 8 * (2 * events + hashes + actions + 3 * affinities)
    narrow = medium + 4 * (events + actions)
    names = narrow + 2 * (events + actions + affinities + 2 * tiers + sparse)
    if names > length:
        return False
    q = (base + narrow) // 2
    sound = True
    for i in range(events):
        sound &= u16[q + i] < actions
    q += events
    lengths_at = q
    q += actions + affinities
    if not sound or not _sound_tiers(u16, q, tiers, sparse, length - dense):
        return False
    session_bytes = np.int64(u16[base // 2 + 5])
    return _names_end(u8, u16, base + names, base + length, lengths_at, session_bytes, actions, affinities) >= 0


@njit(cache=True, nogil=True)
def changeable(data: Any, starts: Any) -> Any:
    """Return which records `apply_records` can change: they stay within their bytes, and fit into its arrays.

    `data` uint8 holds the records, r at `starts[r]:starts[r + 1]`, 8-byte aligned. The result is boolean `(r,)`; an empty
    record, of a new user, can be changed.
    """
    u16, u32, u64 = data.view(np.uint16), data.view(np.uint32), data.view(np.uint64)
    found = np.ones(len(starts) - 1, np.bool_)
    for r in range(len(found)):
        base, length = starts[r], starts[r + 1] - starts[r]
        if length == 0:
            continue
        if not _sound(data, u16, u32, base, length):
            found[r] = False
            continue
        actions, affinities = np.int64(u16[base // 2 + 1]), np.int64(u16[base // 2 + 2])
        events, hashes = np.int64(u16[base // 2 + 3]), np.int64(u16[base // 2 + 4])
        narrow = 4 * (np.int64(u32[base // 4 + 10]) + events + actions)
        found[r] = (
            hashes <= HISTORY
            and affinities <= AFFINITIES
            and 2 * np.int64(u32[base // 4 + 9]) == narrow
            and (actions <= ACTIONS or _has_other(u64, base // 8 + HEAD // 8 + 2 * events + hashes, actions))
            and _rising(u16, (base + narrow) // 2 + events + actions + affinities, np.int64(data[base + 1]))
        )
    return found


@njit(cache=True, nogil=True)
def _has_other(u64: Any, at: int, actions: int) -> bool:
    """Whether one of the hashes of actions from word `at` on is that of `other`, which is the last one that is added."""
    found = False
    for i in range(actions):
        found |= u64[at + i] == uint64(OTHER_HASH)
    return found


@njit(cache=True, nogil=True)
def _rising(u16: Any, q: int, tiers: int) -> bool:
    """Whether the bit positions of each sparse tier at half-word `q` rise, so that their number is that of the set bits."""
    at = q + 2 * tiers
    rising = True
    for t in range(tiers):
        held = np.int64(u16[q + tiers + t])
        if held == DENSE:
            continue
        for i in range(at + 1, at + held):
            rising &= u16[i - 1] < u16[i]
        at += held
    return rising


@njit(cache=True, nogil=True)
def _tiers(u8: Any, u16: Any, dense: int, q: int, n_tiers: int, out: Any, first: int) -> int:
    """Copy tiers to `out[first:]`: dense ones at byte `dense`, the numbers and positions of sparse ones at half-word `q`.

    Returns the number of items in the tiers.
    """
    positions_at, items = q + 2 * n_tiers, 0
    for t in range(n_tiers):
        items += np.int64(u16[q + t])
        held = np.int64(u16[q + n_tiers + t])
        if held == DENSE:
            for i in range(TIER_BYTES):
                out[first + t, i] = u8[dense + i]
            dense += 8 * WORDS
        else:
            for i in range(TIER_BYTES):
                out[first + t, i] = 0
            for i in range(held):
                bit = np.int64(u16[positions_at + i])
                out[first + t, bit >> 3] |= uint8(1 << (bit & 7))
            positions_at += held
    return items


@njit(cache=True, nogil=True)
def read_columns(
    data: Any,
    starts: Any,
    lengths: Any,
    known: Any,
    index_keys: Any,
    index_rows: Any,
    name_starts: Any,
    name_texts: Any,
) -> Any:
    """Read the records of q users.

    `data` uint8 holds them, that of user r in `lengths[r]` bytes from `starts[r]` on, 8-byte aligned; nothing is read where
    `known[r]` is false. Known names of actions: `index_keys` and `index_rows` (`models.state.kernels.hash_index`) find a name
    by its hash, and its UTF-8 bytes are `name_texts[name_starts[n]:name_starts[n + 1]]`.

    Returns the index of the first row that is no record of a current format, or -1; the columns of `models.state.users.Users`
    without `known` and `actions`, in order; and the distinct actions, int64 `(a, 4)`: number of the known name or -1, start and
    length of the name in `data`, place of its hash in `data` in units of 8 bytes. Unknown names may repeat.
    """
    u16, u32, u64 = data.view(np.uint16), data.view(np.uint32), data.view(np.uint64)
    i64, f32, f64 = data.view(np.int64), data.view(np.float32), data.view(np.float64)
    q, bad = len(known), -1
    n_tiers = n_affinities = n_names = 0
    for r in range(q):
        if not known[r]:
            continue
        base = starts[r]
        if not _sound(data, u16, u32, base, lengths[r]):
            bad, q, n_tiers, n_affinities, n_names = r, 0, 0, 0, 0
            break
        n_tiers += np.int64(data[base + 1])
        n_names += np.int64(u16[base // 2 + 1])
        n_affinities += np.int64(u16[base // 2 + 2])
    sizes = np.zeros(q, np.int32)
    times, items = np.zeros((q, HISTORY), np.int64), np.zeros((q, HISTORY), np.uint64)
    values, actions = np.empty((q, HISTORY), np.float32), np.empty((q, HISTORY), np.int32)
    events, first_ms, last_ms = np.zeros(q, np.int64), np.zeros(q, np.int64), np.zeros(q, np.int64)
    session_events, seen_items = np.zeros(q, np.int64), np.zeros(q, np.int64)
    affinity_starts, seen_starts = np.zeros(q + 1, np.int64), np.zeros(q + 1, np.int64)
    categories, weights = np.empty(n_affinities, np.uint64), np.empty(n_affinities, np.float64)
    weights_at, tiers = np.empty(n_affinities, np.int64), np.empty((n_tiers, TIER_BYTES), np.uint8)
    names, made = np.empty((n_names, 4), np.int64), 0
    number_of, numbers = np.full(len(name_starts) - 1, -1, np.int32), np.empty(ACTIONS + 1, np.int32)
    for r in range(q):
        size = 0
        affinity, tier = affinity_starts[r], seen_starts[r]
        if known[r]:
            base = starts[r]
            size, n_here = np.int64(u16[base // 2 + 3]), np.int64(u16[base // 2 + 1])
            here, tiers_here = np.int64(u16[base // 2 + 2]), np.int64(data[base + 1])
            session_events[r], first_ms[r] = np.int64(u32[base // 4 + 3]), i64[base // 8 + 2]
            time_at = base // 8 + HEAD // 8
            hash_at = time_at + 2 * size + np.int64(u16[base // 2 + 4])
            category_at = hash_at + n_here
            for i in range(here):
                categories[affinity + i] = u64[category_at + i]
                weights[affinity + i] = f64[category_at + here + i]
                weights_at[affinity + i] = i64[category_at + 2 * here + i]
            affinity += here
            value_at = base // 4 + np.int64(u32[base // 4 + 10])
            action_at = 2 * (value_at + size + n_here)
            lengths_at = action_at + size
            tiers_at = lengths_at + n_here + here
            seen_items[r] = _tiers(data, u16, 8 * (category_at + 3 * here), tiers_at, tiers_here, tiers, tier)
            tier += tiers_here
            name_at = 2 * (tiers_at + 2 * tiers_here + np.int64(u32[base // 4 + 8])) + np.int64(u16[base // 2 + 5])
            for a in range(n_here):
                length = np.int64(u16[lengths_at + a])
                name = np.int64(find(index_keys, index_rows, u64[hash_at + a]))
                if name >= 0:
                    # the index may already hold names that were added after `name_starts` was made
                    there = name < len(number_of) and name_starts[name + 1] - name_starts[name] == length
                    if not there or not _same(data, name_at, name_texts, name_starts[name], length):
                        name = -1
                number = number_of[name] if name >= 0 else -1
                if number < 0:
                    number = made
                    names[made, 0], names[made, 1], names[made, 2], names[made, 3] = name, name_at, length, hash_at + a
                    made += 1
                    if name >= 0:
                        number_of[name] = number
                numbers[a] = number
                name_at += length
                events[r] += np.int64(u32[value_at + size + a])
            for i in range(size):
                j = size - 1 - i
                times[r, i], items[r, i] = i64[time_at + j], u64[time_at + size + j]
                values[r, i], actions[r, i] = f32[value_at + j], numbers[u16[action_at + j]]
            sizes[r] = size
            last_ms[r] = times[r, 0] if size else 0
        for i in range(size, HISTORY):
            values[r, i], actions[r, i] = np.nan, -1
        affinity_starts[r + 1], seen_starts[r + 1] = affinity, tier
    columns = (sizes, times, items, values, actions, events, first_ms, last_ms, session_events)
    affinities = (affinity_starts, categories, weights, weights_at)
    return bad, columns, affinities, (seen_items, seen_starts, tiers), names[:made]
