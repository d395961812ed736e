"""Compiled loops over bytes: hashes of ids, and decoding of Avro interactions to columns.

Numba compiles them on first use and caches them beside the source (`__pycache__`, or `NUMBA_CACHE_DIR`). Integers that are
shifted or hashed are always `uint64` or `uint32`, because Numba converts a mix of signed and unsigned integers to floats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint32, uint64

__all__ = [
    "NULL",
    "SLOW",
    "TIME_LIMIT_MS",
    "decode_block",
    "hash_bytes",
    "murmur2",
    "partition_of",
    "partitions_of",
    "read_batch",
]

TIME_LIMIT_MS = 2**53
"Copy of `schemas.parsing.MAX_TIME_MS`, because Numba recompiles only if this file changes."
MAX_ID = 256
MAX_VALUE = 3e38
MAX_POSITION = 1_000_000
NULL = -1
"Length that stands for an absent text."
SLOW = 1
"Status of a record that these loops leave to the general decoder."

SIGMA = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    ],
    np.uint8,
)
"Message schedule of BLAKE2b, RFC 7693 section 2.7."
IV = np.array(
    [
        0x6A09E667F3BCC908,
        0xBB67AE8584CAA73B,
        0x3C6EF372FE94F82B,
        0xA54FF53A5F1D36F1,
        0x510E527FADE682D1,
        0x9B05688C2B3E6C1F,
        0x1F83D9ABFB41BD6B,
        0x5BE0CD19137E2179,
    ],
    np.uint64,
)


@njit(inline="always")
def _rotate(x: Any, n: int) -> Any:
    return (x >> uint64(n)) | (x << uint64(64 - n))


@njit(inline="always")
def _mix(a: Any, b: Any, c: Any, d: Any, x: Any, y: Any) -> Any:
    a = a + b + x
    d = _rotate(d ^ a, 32)
    c = c + d
    b = _rotate(b ^ c, 24)
    a = a + b + y
    d = _rotate(d ^ a, 16)
    c = c + d
    b = _rotate(b ^ c, 63)
    return a, b, c, d


@njit(cache=True, nogil=True)
def hash_bytes(data: Any, start: int, length: int, h: Any, m: Any) -> Any:
    """Compute `hash64`: BLAKE2b (RFC 7693), 8-byte digest, little-endian. `h`, `m`: uint64 scratch arrays `(8,)`, `(16,)`."""
    for i in range(8):
        h[i] = IV[i]
    h[0] ^= uint64(0x01010008)
    done = 0
    while True:
        left = length - done
        take = 128 if left > 128 else left
        for i in range(16):
            m[i] = uint64(0)
        for i in range(take):
            m[i >> 3] |= uint64(data[start + done + i]) << uint64(8 * (i & 7))
        done += take
        last = done >= length
        v0, v1, v2, v3, v4, v5, v6, v7 = h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]
        v8, v9, v10, v11 = IV[0], IV[1], IV[2], IV[3]
        v12, v13, v14, v15 = IV[4] ^ uint64(done), IV[5], IV[6], IV[7]
        if last:
            v14 = ~v14
        for r in range(12):
            s = SIGMA[r % 10]
            v0, v4, v8, v12 = _mix(v0, v4, v8, v12, m[s[0]], m[s[1]])
            v1, v5, v9, v13 = _mix(v1, v5, v9, v13, m[s[2]], m[s[3]])
            v2, v6, v10, v14 = _mix(v2, v6, v10, v14, m[s[4]], m[s[5]])
            v3, v7, v11, v15 = _mix(v3, v7, v11, v15, m[s[6]], m[s[7]])
            v0, v5, v10, v15 = _mix(v0, v5, v10, v15, m[s[8]], m[s[9]])
            v1, v6, v11, v12 = _mix(v1, v6, v11, v12, m[s[10]], m[s[11]])
            v2, v7, v8, v13 = _mix(v2, v7, v8, v13, m[s[12]], m[s[13]])
            v3, v4, v9, v14 = _mix(v3, v4, v9, v14, m[s[14]], m[s[15]])
        h[0] ^= v0 ^ v8
        h[1] ^= v1 ^ v9
        h[2] ^= v2 ^ v10
        h[3] ^= v3 ^ v11
        h[4] ^= v4 ^ v12
        h[5] ^= v5 ^ v13
        h[6] ^= v6 ^ v14
        h[7] ^= v7 ^ v15
        if last:
            return h[0]


@njit(cache=True, nogil=True)
def murmur2(data: Any, start: int, length: int) -> Any:
    """Compute Kafka's hash of a record's key (`org.apache.kafka.common.utils.Utils.murmur2`), in bytes of `data`: uint32."""
    mix = uint32(0x5BD1E995)
    h = uint32(0x9747B28C) ^ uint32(length)
    whole = start + (length & ~3)
    for at in range(start, whole, 4):
        k = uint32(data[at]) | uint32(data[at + 1]) << uint32(8)
        k = uint32(k | uint32(data[at + 2]) << uint32(16) | uint32(data[at + 3]) << uint32(24))
        k = uint32(k * mix)
        k = uint32(k ^ (k >> uint32(24)))
        h = uint32(uint32(h * mix) ^ uint32(k * mix))
    left = length & 3
    if left == 3:
        h = uint32(h ^ (uint32(data[whole + 2]) << uint32(16)))
    if left >= 2:
        h = uint32(h ^ (uint32(data[whole + 1]) << uint32(8)))
    if left:
        h = uint32(uint32(h ^ uint32(data[whole])) * mix)
    h = uint32(uint32(h ^ (h >> uint32(13))) * mix)
    return uint32(h ^ (h >> uint32(15)))


@njit(cache=True, nogil=True)
def partitions_of(keys: Any, starts: Any, lengths: Any, partitions: int) -> Any:
    """Return the partition of each key by Kafka's default partitioner, int64 `(n,)`; NULL where there is no key."""
    found = np.full(len(starts), NULL, np.int64)
    for i in range(len(starts)):
        if lengths[i] >= 0:
            found[i] = np.int64(murmur2(keys, starts[i], lengths[i]) & uint32(0x7FFFFFFF)) % partitions
    return found


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key by Kafka's default partitioner."""
    return int(murmur2(np.frombuffer(key, np.uint8), 0, len(key)) & 0x7FFFFFFF) % partitions


@njit(inline="always")
def _varint(data: Any, at: int, end: int) -> Any:
    """Read a zigzag varint (Avro 1.12, "Binary encoding"): value and next position; position -1 if truncated or too long."""
    value = uint64(0)
    shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= uint64(byte & 0x7F) << uint64(shift)
        if byte < 0x80:
            half = np.int64(value >> uint64(1))
            return (half if value & uint64(1) == uint64(0) else ~half), at
        shift += 7
    return np.int64(0), -1


@njit(inline="always")
def _identifier(data: Any, at: int, end: int, plain: bool) -> Any:
    """Read an id of 1 to MAX_ID bytes, of ASCII only if `plain`: start, length, next position (-1: invalid)."""
    length, at = _varint(data, at, end)
    if at < 0 or length < 1 or length > MAX_ID or at + length > end:
        return 0, 0, -1
    if plain:
        for i in range(at, at + length):
            if data[i] >= 0x80:
                return 0, 0, -1
    return at, length, at + length


@njit(inline="always")
def _optional(data: Any, at: int, end: int, plain: bool) -> Any:
    branch, at = _varint(data, at, end)
    if at < 0 or branch < 0 or branch > 1:
        return 0, NULL, -1
    if branch == 0:
        return 0, NULL, at
    return _identifier(data, at, end, plain)


@njit(cache=True, nogil=True)
def decode_block(
    data: Any, begins: Any, ends: Any, header: Any, keys: Any, key_starts: Any, key_lengths: Any, checked: Any
) -> Any:
    """Decode n interactions in `data` (uint8, record i at `begins[i]:ends[i]`), with keys in `keys`.

    Each starts with `header` (10 bytes: single-object marker and fingerprint of the current schema). `checked[i]` is
    nonzero for a record that the general decoder has accepted, whose texts may contain non-ASCII characters.

    Returns status uint8 `(n,)` (0, or SLOW for the general decoder); starts and lengths of event id, item id, action and
    session, int64 `(4, n)` each (NULL length: absent); hashes of the first three, uint64 `(3, n)`; event time int64 `(n,)`;
    value float32 `(n,)`, NaN where absent.
    """
    n = len(begins)
    status = np.full(n, SLOW, np.uint8)
    starts, lengths = np.zeros((4, n), np.int64), np.zeros((4, n), np.int64)
    hashes = np.zeros((3, n), np.uint64)
    times, values = np.zeros(n, np.int64), np.full(n, np.nan, np.float32)
    h, m = np.empty(8, np.uint64), np.empty(16, np.uint64)
    word = np.zeros(1, np.uint64)
    double = word.view(np.float64)
    for i in range(n):
        at, end = begins[i], ends[i]
        if end - at < 10:
            continue
        same = True
        for j in range(10):
            same &= data[at + j] == header[j]
        if not same:
            continue
        plain = checked[i] == 0
        starts[0, i], lengths[0, i], at = _identifier(data, at + 10, end, plain)
        if at < 0:
            continue
        user, size, at = _identifier(data, at, end, plain)
        if at < 0 or size != key_lengths[i]:
            continue
        for j in range(size):
            same &= data[user + j] == keys[key_starts[i] + j]
        if not same:
            continue
        starts[1, i], lengths[1, i], at = _identifier(data, at, end, plain)
        if at < 0:
            continue
        times[i], at = _varint(data, at, end)
        if at < 0 or times[i] < 0 or times[i] >= TIME_LIMIT_MS:
            continue
        starts[2, i], lengths[2, i], at = _identifier(data, at, end, plain)
        if at < 0:
            continue
        branch, at = _varint(data, at, end)
        if at < 0 or branch < 0 or branch > 1:
            continue
        if branch == 1:
            if at + 8 > end:
                continue
            word[0] = uint64(0)
            for j in range(8):
                word[0] |= uint64(data[at + j]) << uint64(8 * j)
            at += 8
            if not abs(double[0]) <= MAX_VALUE:
                continue
            values[i] = np.float32(double[0])
        starts[3, i], lengths[3, i], at = _optional(data, at, end, plain)
        if at < 0:
            continue
        _, _, at = _optional(data, at, end, plain)
        if at < 0:
            continue
        branch, at = _varint(data, at, end)
        if at < 0 or branch < 0 or branch > 1:
            continue
        if branch == 1:
            position, at = _varint(data, at, end)
            if at < 0 or position < 0 or position > MAX_POSITION:
                continue
        if at != end:
            continue
        for j in range(3):
            hashes[j, i] = hash_bytes(data, starts[j, i], lengths[j, i], h, m)
        status[i] = 0
    return status, starts, lengths, hashes, times, values


@njit(cache=True, nogil=True)
def read_batch(data: Any, at: int, end: int, columns: Any) -> bool:
    """Read the records of a Kafka batch (message format v2) from `data[at:end]` into `columns`, int64 `(6, n)`.

    The rows of `columns` are: offset and timestamp (relative to the batch's first ones), start and length of the key, start and
    length of the value; NULL length: none. Returns whether all n records are complete and without headers.
    """
    for i in range(columns.shape[1]):
        size, at = _varint(data, at, end)
        if at < 0 or size < 1 or size > end - at:
            return False
        stop = at + size
        columns[1, i], at = _varint(data, at + 1, stop)
        if at < 0:
            return False
        columns[0, i], at = _varint(data, at, stop)
        for column in (2, 4):
            if at < 0:
                return False
            length, at = _varint(data, at, stop)
            if at < 0 or length < NULL or length > stop - at:
                return False
            columns[column, i], columns[column + 1, i] = at, length
            at += max(length, 0)
        headers, at = _varint(data, at, stop)
        if at != stop or headers != 0:
            return False
    return at == end
