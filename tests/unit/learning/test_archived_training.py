"""Training from the archive: a folder, S3, and slates joined beforehand give the same release."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from learning_corpus import POSITIVE, SMALL, corpus
from moto.server import ThreadedMotoServer

from models.archive.files import ArchiveFile, columns, parquet
from models.archive.standing import erasures
from models.archive.target import LocalFolder, S3Folder, Target
from models.features.compute import FEATURES, SPEC
from models.rules import SHOWN
from schemas.errors import BadDataset, ConfigError
from schemas.records import Interaction, Item
from training.cli.train import train_command
from training.data.corpus import open_corpus
from training.data.slates.examples import ImpressionSettings, build_examples
from training.data.slates.logged import logged_in
from training.learn import learn
from training.release.learned import Learned

TINY = replace(SMALL, towers=replace(SMALL.towers, epochs=1), ranker=replace(SMALL.ranker, epochs=1), queries=60, neighbours=8)
SLATES = 40
EVENT_FILE = 200


def archive(target: Target) -> None:
    """Write the small corpus in several files, and slates of its last third, whose first items were liked."""
    items, events = corpus()
    rows: list[dict[str, object]] = [
        {**asdict(item), "categories": list(item.categories), "attributes": [], "_removed": False} for item in items
    ]
    put(target, "items", rows)
    rng = np.random.default_rng(1)
    slates: list[dict[str, object]] = []
    for n in range(SLATES):
        place = 600 + 5 * n
        shown = [events[place + 1].item_id, *(f"i{i}" for i in rng.permutation(40)[:4])]
        items_ = [
            {
                "item_id": item,
                "position": p,
                "score": 1.0,
                "propensity": 1.0,
                "sources": [],
                "features": list(rng.random(len(FEATURES))),
            }
            for p, item in enumerate(dict.fromkeys(shown))
        ]
        time_ms = events[place].event_time
        slate = {
            "request_id": f"r{n}",
            "user_id": events[place + 1].user_id,
            "event_time": time_ms,
            "release": "x",
            "arm": "default",
        }
        as_of = {"partition": 0, "offset": place, "event_time": time_ms}
        slates.append({**slate, "feature_spec": SPEC, "as_of": as_of, "items": items_})
    put(target, "impressions", slates[: SLATES // 2])
    put(target, "impressions", slates[SLATES // 2 :], SLATES // 2)
    for start in range(0, len(events), EVENT_FILE):
        part = [{**asdict(event), "_removed": False} for event in events[start : start + EVENT_FILE]]
        put(target, "interactions", part, start)


def put(target: Target, topic: str, rows: list[dict[str, object]], first: int = 0, partition: int = 0) -> None:
    origin = {"_partition": partition}
    placed = [{**row, **origin, "_offset": first + n, "_timestamp": 1_000_000_000 + n} for n, row in enumerate(rows)]
    target.write(ArchiveFile.of(topic, partition, first, first + len(rows) - 1, 1_000_000_000).path, parquet(topic, placed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archive")
    archive(LocalFolder(root))
    return root


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="archive")
        archive(S3Folder("archive", "some/where"))
        yield "s3://archive/some/where"
    finally:
        server.stop()


def trained(source: str, vectors: Path) -> Learned:
    torch.set_num_threads(1)
    found = open_corpus(source, POSITIVE)
    return learn(replace(found, shown=None), vectors, TINY)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_release_is_the_same_from_a_folder_and_from_s3(folder: Path, bucket: str, vectors: Path, tmp_path: Path) -> None:
    here, there = trained(str(folder), vectors), trained(bucket, vectors)
    assert 0 < here.measured["logged_slates"] <= TINY.queries * TINY.logged_share
    assert there.item_ids == here.item_ids
    assert there.graphs == here.graphs
    assert set(there.arrays) == set(here.arrays)
    assert all(np.array_equal(array, here.arrays[name]) for name, array in there.arrays.items())
    assert there.measured == here.measured
    assert there.write(tmp_path / "there", {}).name == here.write(tmp_path / "here", {}).name


def test_slates_that_were_joined_before_are_those_of_the_archive(folder: Path, tmp_path: Path) -> None:
    build_examples(LocalFolder(folder), tmp_path, ImpressionSettings(POSITIVE))
    found = open_corpus(str(folder), POSITIVE)
    assert found.logged is not None
    joined = logged_in(tmp_path, POSITIVE, {}, target := LocalFolder(folder), erasures(target))
    for until, most in ((found.events[-1].event_time, 1_000), (found.events[700].event_time, 5)):
        slates = found.logged(0, until, most, {})
        assert slates.height
        assert joined(0, until, most, {}).equals(slates)


def test_slates_that_were_joined_otherwise_are_refused(folder: Path, tmp_path: Path) -> None:
    target = LocalFolder(folder)
    archived = target, erasures(target)
    with pytest.raises(BadDataset, match="riffle examples"):
        logged_in(tmp_path, POSITIVE, {}, *archived)
    day = 86_400
    like = ImpressionSettings(POSITIVE, windows_ms={"like": 1_000})
    build_examples(target, tmp_path / "bias", replace(like, position_bias=0.0))
    with pytest.raises(BadDataset, match=r"'position_bias': 0\.0"):
        logged_in(tmp_path / "bias", POSITIVE, {"like": 1}, *archived)
    build_examples(target, tmp_path, like)
    logged_in(tmp_path, POSITIVE, {"like": 1, "view": day}, *archived)
    for rule, windows in (("True", {"like": 1.0}), (POSITIVE, {}), (POSITIVE, {"like": 1.0, "view": 2.0})):
        with pytest.raises(BadDataset, match="write the examples again"):
            logged_in(tmp_path, rule, windows, *archived)


def test_examples_of_a_part_of_the_archive_are_refused(folder: Path, tmp_path: Path) -> None:
    archived = tmp_path / "archive"
    shutil.copytree(folder, archived)
    target, out = LocalFolder(archived), tmp_path / "examples"
    put(target, "impressions", [dict.fromkeys(columns("impressions"))], partition=7)
    build_examples(target, out, ImpressionSettings(POSITIVE), [0])
    with pytest.raises(BadDataset, match="no examples of partition 7"):
        logged_in(out, POSITIVE, {}, target, erasures(target))
    build_examples(target, out, ImpressionSettings(POSITIVE), [7])
    logged_in(out, POSITIVE, {}, target, erasures(target))


def test_training_says_how_many_logged_slates_it_learned_from(
    folder: Path, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.cli.train.GATE_QUERIES", 3)
    monkeypatch.setattr("training.trainer.threads", lambda *_: 1)
    torch.set_num_threads(1)
    build_examples(LocalFolder(folder), tmp_path / "examples", ImpressionSettings(POSITIVE))
    tiny = {
        "towers": {"dimensions": 16, "blocks": 1, "epochs": 1},
        "ranker": {"width": 16, "experts": 2, "epochs": 1},
        "queries": 60,
    }
    (tmp_path / "tiny.json").write_text(json.dumps(tiny))
    said = ["--settings", str(tmp_path / "tiny.json"), "--out", str(tmp_path / "out"), "--cache", str(vectors.parent), "--json"]
    said += ["--positive", POSITIVE, "--examples", str(tmp_path / "examples")]
    # only items and events of the archive are read
    archived = tmp_path / "archive"
    shutil.copytree(folder, archived, ignore=shutil.ignore_patterns("topic=impressions"))
    ran = CliRunner().invoke(train_command, [str(archived), *said], catch_exceptions=False)
    facts = json.loads(ran.stdout.splitlines()[-1])
    assert 0 < facts["logged_slates"] <= 30


def test_examples_need_their_archive_and_a_full_training(folder: Path, tmp_path: Path) -> None:
    glass = tmp_path / "glass"
    glass.mkdir()
    (glass / "items.csv").write_text("item_id\ni0\n")
    (glass / "events.csv").write_text("user_id,item_id,event_time\nu,i0,1700000000000\n")
    for said, why in (([str(glass)], "archive's slates"), ([str(folder), "--incremental"], "an update keeps")):
        with pytest.raises(ConfigError, match=why):
            CliRunner().invoke(train_command, [*said, "--examples", str(tmp_path)], catch_exceptions=False)


def test_of_what_was_shown_as_many_are_read_as_of_what_was_done(tmp_path: Path) -> None:
    start, action = 1_700_000_000_000, ["like" if n % 10 == 0 else SHOWN for n in range(300)]
    events = [Interaction(f"e{n}", f"u{n % 7}", f"i{n % 3}", start + n, action[n]) for n in range(300)]
    target, dataset = LocalFolder(tmp_path / "archive"), tmp_path / "dataset"
    items = [{**asdict(Item(f"i{n}")), "categories": [], "attributes": [], "_removed": False} for n in range(3)]
    put(target, "items", items)
    put(target, "interactions", [{**asdict(event), "_removed": False} for event in events[:200]])
    put(target, "interactions", [{**asdict(event), "_removed": False} for event in events[200:]], partition=1)
    dataset.mkdir()
    (dataset / "items.csv").write_text("item_id\ni0\ni1\ni2\n")
    (dataset / "events.jsonl").write_text("".join(json.dumps(asdict(event)) + "\n" for event in events))
    for source in (target.root, dataset):
        for newest in (0, 20):
            found = open_corpus(str(source), newest=newest)
            assert list(found.events) == [event for event in events if event.action == "like"][-newest:]
            assert list(found.shown or ()) == [event for event in events if event.action == SHOWN][-newest:]
