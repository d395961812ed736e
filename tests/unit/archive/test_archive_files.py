"""Archive files: names give the offsets of a file, and no offset is read twice."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from models.archive.files import ArchiveFile, columns, next_offsets, parquet, read_archive
from models.archive.spool import Spool
from models.archive.target import LocalFolder, S3Folder, Target, open_target
from schemas.errors import ConfigError

OFFSETS = st.integers(0, 2**62)
TOPICS = st.sampled_from(["interactions", "impressions"])


def row(offset: int, partition: int = 0) -> dict[str, object]:
    return {
        "event_id": f"e{offset}",
        "user_id": "u",
        "item_id": "i",
        "event_time": 1_000 + offset,
        "action": "view",
        "value": 0.1,
        "position": None,
        "_partition": partition,
        "_offset": offset,
        "_timestamp": 1_700_000_000_000,
    }


def put(target: Target, partition: int, first: int, last: int) -> None:
    file = ArchiveFile.of("interactions", partition, first, last, 1_700_000_000_000)
    target.write(file.path, parquet("interactions", [row(n, partition) for n in range(first, last + 1)]))


@given(TOPICS, st.integers(0, 99_999), OFFSETS, OFFSETS, st.integers(0, 4_000_000_000_000))
def test_a_name_reads_back_as_what_it_was_made_of(topic: str, partition: int, a: int, b: int, time_ms: int) -> None:
    file = ArchiveFile.of(topic, partition, min(a, b), max(a, b), time_ms)
    assert ArchiveFile.parse(file.path) == file


@given(st.lists(st.tuples(OFFSETS, OFFSETS), min_size=2, max_size=20))
def test_names_sort_as_offsets_do(ranges: list[tuple[int, int]]) -> None:
    found = [ArchiveFile("interactions", "2026-01-01", 0, min(r), max(r)) for r in ranges]
    assert [file.path for file in sorted(found)] == sorted(file.path for file in found)


@pytest.mark.parametrize("path", ["x.parquet", "topic=a/date=2026-01-01/b-00000-1-2.parquet", "topic=a/a.parquet"])
def test_other_files_are_left_alone(path: str) -> None:
    assert ArchiveFile.parse(path) is None


def laws_of_a_target(target: Target) -> None:
    assert next_offsets(target, "interactions") == {}
    assert read_archive(target, "interactions").collect().schema == pl.Schema(columns("interactions"))
    put(target, 0, 0, 9)
    put(target, 0, 10, 14)
    put(target, 0, 5, 12)  # what a worker that had lost the partition wrote as well
    put(target, 0, 10, 14)
    put(target, 1, 3, 4)
    assert next_offsets(target, "interactions") == {0: 15, 1: 5}
    assert next_offsets(target, "impressions") == {}
    found = read_archive(target, "interactions").collect()
    assert sorted(zip(found["_partition"], found["_offset"], strict=True)) == [
        *((0, n) for n in range(15)),
        (1, 3),
        (1, 4),
    ]
    assert found.schema == pl.Schema(columns("interactions"))
    assert found["value"].to_list() == [0.1] * 17
    assert found["session_id"].null_count() == 17


def test_a_folder_is_a_target(tmp_path: Path) -> None:
    laws_of_a_target(LocalFolder(tmp_path))


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        put(LocalFolder(tmp_path), 0, 0, 1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="riffle")
        yield client
    finally:
        server.stop()


@pytest.mark.filterwarnings("ignore")
def test_s3_is_a_target(s3: Any) -> None:
    laws_of_a_target(S3Folder("riffle", "some/prefix", s3))


@pytest.mark.filterwarnings("ignore")
def test_files_of_s3_are_fetched_when_they_are_read_and_once(s3: Any) -> None:
    target = S3Folder("riffle", "fetched", s3)
    for n in range(3):
        put(target, 0, 10 * n, 10 * n + 9)
    fetched: list[str] = []
    s3.meta.events.register("before-call.s3.GetObject", lambda params, **_: fetched.append(params["url_path"]))
    rows = read_archive(target, "interactions")
    assert fetched == []
    assert rows.select("_offset").head(3).collect()["_offset"].to_list() == [0, 1, 2]
    assert len(fetched) == 1
    for engine in ("in-memory", "streaming"):
        assert rows.filter(pl.col("_offset") > 17).select("event_id").collect(engine=engine)["event_id"].to_list() == [
            f"e{n}" for n in range(18, 30)
        ]
    assert len(fetched) == len(set(fetched)) == 3


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_s3_no_longer_has_is_an_error(s3: Any) -> None:
    target = S3Folder("riffle", "gone", s3)
    put(target, 0, 0, 9)
    rows = read_archive(target, "interactions")
    s3.delete_object(Bucket="riffle", Key=target.prefix + target.names("")[0])
    with pytest.raises(Exception, match="404"):
        rows.collect()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30), st.integers(0, 40))
def test_a_spool_gives_what_it_fetched_and_keeps_to_its_room(reads: list[tuple[int, bool]], room: int) -> None:
    fetched: list[str] = []

    def fetch(path: str, local: Path) -> None:
        fetched.append(path)
        if failing:
            local.write_bytes(b"par")
            raise OSError("away")
        local.write_bytes(path.encode() * 10)

    spool, newest = Spool(fetch, room), list[str]()
    for number, failing in reads:
        path, before = str(number), len(fetched)
        there = path in newest[-(room // 10) :] if room >= 10 else False
        try:
            with spool.file(path) as local, spool.file(path) as again:
                assert local == again
                assert local.read_bytes() == path.encode() * 10
                folder = local.parent
        except OSError:
            assert failing
            assert not there
            assert spool._folder is not None
            assert len(list(spool._folder.iterdir())) <= room // 10, "nothing stays of what was fetched in part"
            continue
        assert (len(fetched) == before) == there
        newest = [*(name for name in newest if name != path), path]
        assert sum(file.stat().st_size for file in folder.iterdir()) <= room
    kept = spool._folder
    del spool
    assert kept is None or not kept.exists()


def test_impressions_keep_their_nested_items() -> None:
    item = {"item_id": "a", "position": 0, "score": 1.5, "propensity": 1.0, "sources": ["popular"], "features": [0.5]}
    impression = {
        "request_id": "r",
        "user_id": "u",
        "event_time": 1,
        "release": "none",
        "arm": "default",
        "feature_spec": "1",
        "as_of": None,
        "items": [item],
        "_partition": 0,
        "_offset": 0,
        "_timestamp": 1,
    }
    back = pl.read_parquet(io.BytesIO(parquet("impressions", [impression]))).to_dicts()[0]
    assert back["items"] == [item]
    assert back["as_of"] is None


def test_targets_are_told_apart(tmp_path: Path) -> None:
    assert isinstance(open_target(str(tmp_path)), LocalFolder)
    for wrong in ("gs://bucket", "s3://"):
        with pytest.raises(ConfigError):
            open_target(wrong)
