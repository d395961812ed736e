"""Fuzzer of stored user records: damaged ones are refused, or read as `UserRecord.decode` reads them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from fuzzing import fuzz, must_find
from grown import ITEMS, assert_columns, rows_of, stream
from hypothesis import given
from hypothesis import strategies as st

from models.state import users
from models.state.kernels import user_columns
from models.state.kernels.user_rows import FORMAT, LONG
from models.state.rows import UserRecord, hash64
from models.state.users import Users
from schemas.errors import StoreCorrupt

HEAD = 48
DRAWN = [(1, 1, 40, 1), (2, 3, 40, 6), (3, 5, 40, 3), (4, 90, ITEMS, 80), (5, 1_500, ITEMS, 5), (6, ITEMS, ITEMS, 5)]
"Seed, events, items and actions of the users whose records are damaged."


@cache
def sound() -> list[bytes]:
    found = rows_of({f"u{n}": stream(f"u{n}", *one) for n, one in enumerate(DRAWN)})
    return [row for row in found if row is not None]


def damaged(n: int, how: str, at: int, byte: int) -> bytes:
    row = bytearray(sound()[n])
    if how == "cut":
        return bytes(row[: at % len(row)])
    if how == "cut the end":
        return bytes(row[: len(row) - at % 9])
    if how == "word" or how == "flip in the head":
        at %= HEAD
    if how == "flip near the end":
        at = len(row) - 1 - at % min(len(row), 400)
    if how == "word":
        row[at // 2 * 2 : at // 2 * 2 + 2] = byte.to_bytes(2, "little")
    elif how == "byte":
        row[at % len(row)] = byte
    else:
        row[at % len(row)] ^= 1 << (byte & 7)
    return bytes(row)


HOW = ["cut", "cut the end", "word", "byte", "flip", "flip in the head", "flip near the end"]
DAMAGED = st.builds(damaged, st.integers(0, len(DRAWN) - 1), st.sampled_from(HOW), st.integers(0, 60_000), st.integers(0, 255))
Read = Callable[[Sequence[bytes | None]], Users]


def outcome(read: Callable[[Any], Any], given_: Any) -> Any:
    """What `read` returns, or the message with which it refuses."""
    try:
        return read(given_)
    except StoreCorrupt as exc:
        return str(exc)


def refused_or_read(read: Read, row: bytes) -> None:
    """The row is what decoding it says, alone and among others, which are unaffected."""
    record = outcome(UserRecord.decode, row)
    for before, after in ([], []), ([sound()[0]], [None, sound()[1]]):
        found = outcome(read, [*before, row, *after])
        if isinstance(record, str):
            assert found == record
        elif row[0] not in {FORMAT, LONG}:
            assert "must be converted" in found
        else:
            q = len(before)
            # a category is known by the hash beside its name, which damage may have parted
            mine = found.affinity_category[found.affinity_starts[q] : found.affinity_starts[q + 1]].tolist()
            parted = mine != [hash64(name) for name in record.affinities]
            around = [[None if one is None else UserRecord.decode(one) for one in side] for side in (before, after)]
            assert_columns(found, [*around[0], record, *around[1]], skip_affinities=q if parted else -1)


@fuzz
@given(DAMAGED)
def test_a_damaged_record(row: bytes) -> None:
    refused_or_read(Users.read, row)


def test_sound_records_are_read() -> None:
    for row in sound():
        refused_or_read(Users.read, row)
    assert max(len(UserRecord.decode(row).seen.tiers) for row in sound()) > 3


def broken(before: str, after: str) -> Read:
    """The reader with its loops changed, uncompiled."""
    source = inspect.getsource(user_columns)
    assert source.count(before) == 1, before
    module = ModuleType("broken_columns")
    exec(re.sub(r"@njit\(.*\)\n", "", source.replace(before, after)), module.__dict__)
    module.find = user_columns.find.py_func  # type: ignore[attr-defined]

    def read(rows: Sequence[bytes | None]) -> Users:
        with patch.object(users, "read_columns", module.read_columns), np.errstate(all="ignore"):
            return Users.read(rows)

    return read


@pytest.mark.parametrize(
    "change",
    [
        ("length < HEAD or ", ""),
        ("if names > length:", "if False:"),
        ("sound &= u16[q + i] < actions", "pass"),
        ("if positions + held > sparse:", "if False:"),
        ("sound &= u16[positions_at + i] < 8 * TIER_BYTES", "pass"),
        ("sound and room >= 0", "sound"),
        ("if at > end:", "if False:"),
        ("if high >= 0x80:", "if False:"),
        ("not _same(data, name_at, name_texts, name_starts[name], length)", "False"),
    ],
)
def test_loops_without_one_of_their_checks_are_found(change: tuple[str, str]) -> None:
    small = st.builds(damaged, st.integers(0, 2), st.sampled_from(HOW), st.integers(0, 1_000), st.integers(0, 255))
    must_find(refused_or_read, broken(*change), small)


@fuzz
@given(st.binary(max_size=8) | st.text(max_size=4).map(str.encode), st.binary(max_size=2))
def test_text_is_what_python_reads_as_text(data: bytes, more: bytes) -> None:
    raw = data + more
    try:
        raw.decode()
        readable = True
    except UnicodeDecodeError:
        readable = False
    assert user_columns._is_text(np.frombuffer(raw, np.uint8), 0, len(raw)) == readable


def test_every_pair_and_the_edges_of_longer_forms_are_text_as_in_python() -> None:
    def readable(raw: bytes) -> bool:
        try:
            raw.decode()
        except UnicodeDecodeError:
            return False
        return True

    bytes_ = range(256)
    edges = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF]
    cases = [bytes((a, b)) for a in bytes_ for b in bytes_]
    cases += [bytes((a, b, c)) for a in range(0xC0, 256) for b in edges for c in edges]
    cases += [bytes((a, b, c, d)) for a in range(0xE0, 256) for b in edges for c in edges for d in edges]
    for raw in cases:
        assert user_columns._is_text(np.frombuffer(raw, np.uint8), 0, len(raw)) == readable(raw), raw
