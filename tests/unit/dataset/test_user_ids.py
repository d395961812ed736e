"""Files that name users: every form gives the same ids, and each row is an id, a warning or a bad row."""

from __future__ import annotations

import tempfile
from pathlib import Path

import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.dataset.bad_rows import Report
from models.dataset.user_ids import user_ids
from schemas.errors import BadDataset

ids = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(ids, min_size=1, max_size=8))
def test_every_form_gives_each_user_once_in_order(users: list[str]) -> None:
    frame = pl.DataFrame({"name": "x", "user_id": users})
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        frame.write_parquet(folder / "a.parquet")
        frame.write_csv(folder / "a.csv", quote_style="always")
        (folder / "a.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in frame.iter_rows(named=True)))
        (folder / "a.txt").write_text("".join(f"{user}\r\n" for user in users), encoding="utf-8-sig", newline="")
        for path in folder.iterdir():
            report = Report()
            assert list(user_ids(path, report)) == list(dict.fromkeys(users)), path
            assert report.bad_count == 0
            assert report.warnings["repeated_user"] == len(users) - len(set(users))


def test_bad_rows_are_noted_by_their_line_and_do_not_affect_others(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"user_id\nann\n" + b"x" * 257 + b"\n\xff\nbob\n7\n")
    report = Report()
    assert list(user_ids(tmp_path / "a.csv", report)) == ["ann", "bob", "7"]
    assert [(bad.row, bad.code) for bad in report.bad] == [(3, "invalid_field"), (4, "invalid_row")]
    (tmp_path / "a.txt").write_bytes(b"ann\n\n\xff\n" + "ü".encode() * 129 + b"\n b\n")
    report = Report()
    assert list(user_ids(tmp_path / "a.txt", report)) == ["ann", " b"], "blanks belong to an id"
    assert [(bad.row, bad.code) for bad in report.bad] == [(3, "invalid_row"), (4, "invalid_field")]


def test_numbers_are_their_digits_and_other_values_bad(tmp_path: Path) -> None:
    rows: list[object] = [7, 7.0, "7", 7.5, True, None, "", [1], {"a": 1}]
    (tmp_path / "a.jsonl").write_bytes(b"".join(orjson.dumps({"user_id": value}) + b"\n" for value in rows))
    report = Report()
    assert list(user_ids(tmp_path / "a.jsonl", report)) == ["7"]
    assert (report.warnings["repeated_user"], [bad.row for bad in report.bad]) == (2, [4, 5, 6, 7, 8, 9])
    assert {bad.field for bad in report.bad} == {"user_id"}


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.csv", b"user;name\nann;x\n", "no_column"),
        ("a.jsonl", b'{"name": "ann"}\n', "no_column"),
        ("a.parquet", b"ann\n", "unreadable"),
        ("a.txt", b"PAR1\0\0", "not_text"),
        ("a.txt", b"\xff\xfea\0", "not_text"),
    ],
)
def test_a_file_that_names_no_users_is_refused(tmp_path: Path, name: str, content: bytes, code: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadDataset) as found:
        list(user_ids(tmp_path / name, Report()))
    assert found.value.code == code
