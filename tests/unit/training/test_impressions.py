"""Impressions joined with the actions that followed: compared with a plain recomputation, by partition, without future data."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import training.data.slates.attribution
import training.data.slates.examples
from models.archive.files import ArchiveFile, parquet
from models.archive.standing import erasures
from models.archive.target import LocalFolder
from models.features.compute import FEATURES, GENERATIONS
from models.rules import SHOWN
from schemas.codec import decode, encode
from schemas.records import Interaction
from training.data.events import EventFrame
from training.data.slates.examples import (
    ImpressionSettings,
    build_examples,
    examples_of,
    made_with,
    newest_examples,
    newest_of,
    read_examples,
)
from training.data.slates.logged import logged_of, slates_of

NOW = 1_700_000_000_000
WINDOWS = ImpressionSettings(positive="action == 'like'", window_ms=10, windows_ms={"buy": 25})
LIKED_LONGER = replace(WINDOWS, positive="action != 'view'", windows_ms={"buy": 5, "positive": 18})

ACT = st.tuples(
    st.just("act"),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["view", "like", "buy", SHOWN]),
    st.integers(0, 12),
    st.none() | st.integers(0, 5),
)
SHOW = st.tuples(st.just("show"), st.integers(0, 3), st.lists(st.integers(0, 3), min_size=0, max_size=3, unique=True))
STEPS = st.lists(st.one_of(ACT, SHOW), max_size=40)


def history(steps: list[tuple[Any, ...]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Events and slates as archived, of users in two partitions; each event draws its advance of event time."""
    events: list[dict[str, Any]] = []
    slates: list[dict[str, Any]] = []
    time = NOW
    for n, step in enumerate(steps):
        partition = step[1] % 2
        mine = [e for e in events if e["_partition"] == partition]
        if step[0] == "act":
            _, user, item, action, gap, request = step
            time += gap
            made = Interaction(
                f"e{n}", f"u{user}", f"i{item}", time, action, None, None, None if request is None else f"r{request}"
            )
            origin = {"_partition": partition, "_offset": len(mine), "_timestamp": NOW + n, "_removed": False}
            events.append({**asdict(made), **origin})
        else:
            last = mine[-1] if mine else None
            as_of = last and {"partition": partition, "offset": last["_offset"], "event_time": last["event_time"]}
            items = [
                {"item_id": f"i{item}", "position": p, "score": 1.0, "propensity": 0.5, "sources": [], "features": [n, p]}
                for p, item in enumerate(step[2])
            ]
            offset = sum(s["_partition"] == partition for s in slates)
            slate = {"request_id": f"r{len(slates)}", "user_id": f"u{step[1]}", "event_time": last["event_time"] if last else 0}
            slate |= {"release": "x", "arm": "default", "feature_spec": "f1", "as_of": as_of, "items": items}
            slates.append({**slate, "_partition": partition, "_offset": offset, "_timestamp": NOW + n})
    return events, slates


def archived(folder: str, events: list[dict[str, Any]], slates: list[dict[str, Any]]) -> LocalFolder:
    target = LocalFolder(Path(folder))
    for topic, rows in (("interactions", events), ("impressions", slates)):
        for partition in (0, 1):
            mine = [row for row in rows if row["_partition"] == partition]
            if mine:
                file = ArchiveFile.of(topic, partition, mine[0]["_offset"], mine[-1]["_offset"], NOW)
                target.write(file.path, parquet(topic, mine))
    return target


def examples(target: LocalFolder, partition: int, how: ImpressionSettings = WINDOWS) -> list[dict[str, Any]]:
    return examples_of(target, partition, how).collect().to_dicts()


def expected_labels(
    events: list[dict[str, Any]], slates: list[dict[str, Any]], how: ImpressionSettings
) -> dict[tuple[str, str], set[str]]:
    """Recompute the attribution, event by event."""
    found: dict[tuple[str, str], set[str]] = {
        (slate["request_id"], item["item_id"]): set() for slate in slates for item in slate["items"]
    }
    for event in events:
        if event["action"] == SHOWN:
            continue
        liked = event["action"] in ("like", "buy") if how is LIKED_LONGER else event["action"] == "like"
        window = how.windows_ms.get(event["action"], 10)
        liked_window = how.windows_ms.get("positive", 10) if liked else -(10**15)
        candidates = []
        for slate in slates:
            if slate["user_id"] != event["user_id"] or event["item_id"] not in {i["item_id"] for i in slate["items"]}:
                continue
            if event["request_id"] not in {None, slate["request_id"]}:
                continue
            as_of = slate["as_of"]
            elapsed = event["event_time"] - as_of["event_time"] if as_of else event["_timestamp"] - slate["_timestamp"]
            after = event["_offset"] > as_of["offset"] if as_of else True
            if after and elapsed <= max(window, liked_window) and (event["request_id"] is not None or elapsed >= 0):
                candidates.append((slate, elapsed))
        if candidates:
            chosen, elapsed = max(candidates, key=lambda c: (c[0]["as_of"]["offset"] if c[0]["as_of"] else -1, c[0]["_offset"]))
            label = found[chosen["request_id"], event["item_id"]]
            if elapsed <= window:
                label.add(event["action"])
            if elapsed <= liked_window:
                label.add("positive")
    return found


@settings(max_examples=30, deadline=None)
@given(STEPS, st.sampled_from([WINDOWS, LIKED_LONGER]))
def test_labels_equal_a_plain_recomputation_and_nothing_is_counted_twice(
    steps: list[tuple[Any, ...]], how: ImpressionSettings
) -> None:
    events, slates = history(steps)
    with tempfile.TemporaryDirectory() as folder:
        target = archived(folder, events, slates)
        found = [row for partition in (0, 1) for row in examples(target, partition, how)]
    labels = {(row["request_id"], row["item_id"]): {pair["key"] for pair in row["labels"]} for row in found}
    assert labels == expected_labels(events, slates, how)
    assert len(found) == len(labels) == sum(len(slate["items"]) for slate in slates)
    given_ = sum(len(names - {"positive"}) for names in labels.values())
    assert given_ <= len(events)
    shown = {(s["request_id"], i["item_id"]): (s, i) for s in slates for i in s["items"]}
    for row in found:
        slate, item = shown[row["request_id"], row["item_id"]]
        assert (row["features"], row["position"], row["propensity"]) == (item["features"], item["position"], 0.5)
        assert (row["user_id"], row["event_time"], row["feature_spec"]) == (slate["user_id"], slate["event_time"], "f1")
        weight = 2.0 * (1.0 if row["labels"] else (1 + item["position"]) ** -0.5)
        assert row["weight"] == pytest.approx(weight, rel=1e-6)
        again = {**row, "labels": {pair["key"]: pair["value"] for pair in row["labels"]}}
        assert decode("training_example", encode("training_example", again))[0]["labels"] == again["labels"]


@settings(max_examples=15, deadline=None)
@given(STEPS, st.randoms(use_true_random=False))
def test_features_know_no_event_and_labels_know_none_from_before(steps: list[tuple[Any, ...]], random: Any) -> None:
    """Removing or changing events after the slates leaves features unchanged; events before them, labels."""
    events, slates = history(steps)
    with tempfile.TemporaryDirectory() as folder:
        whole = [row for p in (0, 1) for row in examples(archived(folder, events, slates), p)]
    kept = ["request_id", "item_id", "features", "position", "propensity", "event_time", "as_of"]
    altered = [{**e, "action": "view", "item_id": f"i{random.randrange(4)}"} for e in events]
    with tempfile.TemporaryDirectory() as folder:
        other = [row for p in (0, 1) for row in examples(archived(folder, altered, slates), p)]
    assert [[row[name] for name in kept] for row in whole] == [[row[name] for name in kept] for row in other]
    reflected = [(s["_partition"], s["as_of"]["offset"] if s["as_of"] else -1) for s in slates]
    first = {p: min((offset for q, offset in reflected if p == q), default=-1) for p in (0, 1)}
    past = [{**e, "action": "buy"} if e["_offset"] <= first[e["_partition"]] else e for e in events]
    with tempfile.TemporaryDirectory() as folder:
        assert [row for p in (0, 1) for row in examples(archived(folder, past, slates), p)] == whole


@settings(max_examples=12, deadline=None)
@given(STEPS)
def test_one_partition_alone_gives_exactly_its_rows(steps: list[tuple[Any, ...]]) -> None:
    events, slates = history(steps)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as out:
        target = archived(folder, events, slates)
        files = build_examples(target, Path(out) / "all", WINDOWS)
        assert len(files) == len({slate["_partition"] for slate in slates})
        for file in files:
            partition = int(file.stem[-5:])
            (alone,) = build_examples(target, Path(out) / "one", WINDOWS, [partition], at_once=1)
            assert pl.read_parquet(alone).equals(pl.read_parquet(file))
            assert alone.read_bytes() == file.read_bytes()
        rows = sum(len(slate["items"]) for slate in slates)
        assert read_examples(files, ["f1"]).collect().height == rows
        assert read_examples(files, ["f2"]).collect().height == 0


@settings(max_examples=12, deadline=None)
@given(STEPS, st.integers(0, 100))
def test_nothing_after_the_end_is_looked_at(steps: list[tuple[Any, ...]], after: int) -> None:
    events, slates = history(steps)
    until = NOW + after
    cut = replace(WINDOWS, until_ms=until)
    early = [e for e in events if e["event_time"] <= until], [s for s in slates if s["event_time"] <= until]
    with tempfile.TemporaryDirectory() as folder:
        whole = archived(folder, events, slates)
        bounded = [row for p in (0, 1) for row in examples(whole, p, cut)]
    with tempfile.TemporaryDirectory() as folder:
        assert [row for p in (0, 1) for row in examples(archived(folder, *early), p)] == bounded


@settings(max_examples=25, deadline=None)
@given(STEPS, st.integers(0, 100))
def test_a_slate_is_learned_from_only_when_its_windows_are_over(steps: list[tuple[Any, ...]], after: int) -> None:
    """A missing action is no negative yet: of the newest slates only those count whose longest window has ended."""
    events, slates = history(steps)
    cut = replace(WINDOWS, until_ms=NOW + after)
    with tempfile.TemporaryDirectory() as folder:
        found = newest_examples(archived(folder, events, slates), cut, ["f1"], 0, 1_000)
    shown = {
        (s["user_id"], s["request_id"]) for s in slates if s["items"] and s["as_of"] and s["event_time"] <= NOW + after - 25
    }
    assert set(found.select("user_id", "request_id").iter_rows()) == shown


SHOWN_TWICE: list[tuple[Any, ...]] = [
    ("act", 0, 0, "view", 1, None),
    ("show", 0, [0]),
    ("show", 0, [0]),
    ("act", 0, 0, "like", 1, None),
]


SHOWN_AROUND_AN_ERASURE: list[tuple[Any, ...]] = [
    ("act", 2, 0, "view", 1, None),
    ("show", 0, [0]),
    ("act", 0, 0, "view", 1, None),
    ("show", 0, [0]),
    ("show", 0, [0]),
]
NOBODY = 9


def cut_up(folder: str, events: list[dict[str, Any]], slates: list[dict[str, Any]], size: int) -> LocalFolder:
    """Write an archive of files of `size` rows, each of which begins with the last row of the previous one."""
    target = LocalFolder(Path(folder))
    for topic, rows in (("interactions", events), ("impressions", slates)):
        for partition in (0, 1):
            mine = [row for row in rows if row["_partition"] == partition]
            for start in range(0, len(mine), size):
                part = mine[max(0, start - 1) : start + size]
                file = ArchiveFile.of(topic, partition, part[0]["_offset"], part[-1]["_offset"], NOW)
                target.write(file.path, parquet(topic, part))
    return target


def muddled(
    events: list[dict[str, Any]], slates: list[dict[str, Any]], erased: int, again: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return archived records, and those that remain valid: a user is erased, records are sent again, items shown twice.

    Every other slate has features of another specification.
    """
    slates = [{**s, "feature_spec": "f2" if s["_offset"] % 2 else "f1"} for s in slates]
    gone = next((e for e in events if e["user_id"] == f"u{erased}"), None)
    limit = -1 if gone is None else gone["_timestamp"]
    removed = dict.fromkeys(gone) if gone else {}
    kept = {"user_id", "_partition", "_offset", "_timestamp"}
    archived_events = [
        {**removed, **{k: v for k, v in e.items() if k in kept}, "_removed": True} if e is gone else e for e in events
    ]
    standing_e = [e for e in events if e["user_id"] != f"u{erased}" or e["_timestamp"] > limit]
    standing_s = [s for s in slates if s["user_id"] != f"u{erased}" or s["_timestamp"] > limit]
    for standing, rows in ((standing_e, archived_events), (standing_s, slates)):
        for row in standing[:again]:
            offset = 1 + max(r["_offset"] for r in rows if r["_partition"] == row["_partition"])
            rows.append({**row, "_offset": offset, "_timestamp": NOW + 1_000})
    twice = [{**s, "items": [*s["items"], *({**i, "position": 9} for i in s["items"][:1])]} for s in slates]
    return archived_events, twice, standing_e, standing_s


def recomputed(events: list[dict[str, Any]], slates: list[dict[str, Any]], how: ImpressionSettings) -> list[dict[str, Any]]:
    """Recompute the examples, slate by slate, in order."""
    labels, rows = expected_labels(events, slates, how), []
    for slate in sorted(slates, key=lambda s: (s["_partition"], s["_offset"])):
        as_of = slate["as_of"] and {name: slate["as_of"][name] for name in ("partition", "offset")}
        same = {name: slate[name] for name in ("request_id", "user_id", "event_time", "feature_spec", "release")}
        for item in slate["items"]:
            names = sorted(labels[slate["request_id"], item["item_id"]])
            weight = 2.0 if names else 2.0 * (1 + item["position"]) ** -0.5
            mine = {name: item[name] for name in ("item_id", "features", "position", "propensity")}
            said = [{"key": name, "value": 1.0} for name in names]
            rows.append({**same, **mine, "as_of": as_of, "labels": said, "weight": pytest.approx(weight, rel=1e-6)})
    return rows


@settings(max_examples=40, deadline=None)
@given(
    STEPS,
    st.sampled_from([WINDOWS, LIKED_LONGER]),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 2),
    st.integers(0, 12),
)
@example(SHOWN_TWICE, WINDOWS, 2, 2, 3, 0, 12)
def test_however_an_archive_is_cut_and_read_its_examples_are_those_of_a_plain_recomputation(
    steps: list[tuple[Any, ...]], how: ImpressionSettings, size: int, at_once: int, erased: int, again: int, most: int
) -> None:
    events, slates, standing_events, standing_slates = muddled(*history(steps), erased, again)
    expected = recomputed(standing_events, standing_slates, how)
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as out,
    ):
        patch.setattr(training.data.slates.attribution, "AT_ONCE", at_once)
        patch.setattr(training.data.slates.examples, "SLATES", 1)
        target = cut_up(folder, events, slates, size)
        found = [row for partition in (0, 1) for row in examples(target, partition, how)]
        written = [row for file in build_examples(target, Path(out), how) for row in pl.read_parquet(file).to_dicts()]
        newest = newest_examples(target, how, ["f1"], NOW + 5, most).to_dicts()
        everything = newest_examples(target, how, ["f1"], 0, 1_000).to_dicts()
    assert found == expected
    assert written == found
    timed = [row for row in expected if row["as_of"] and row["feature_spec"] == "f1"]

    def order(row: Mapping[str, Any]) -> tuple[int, str, str]:
        return row["event_time"], row["user_id"], row["request_id"]

    assert everything == sorted(timed, key=order)
    names = sorted({order(row) for row in timed if row["event_time"] > NOW + 5})[-most:] if most else []
    assert newest == sorted((row for row in timed if order(row) in names), key=order)


@settings(max_examples=25, deadline=None)
@given(STEPS, st.integers(0, 100), st.integers(0, 8), st.sampled_from([WINDOWS, LIKED_LONGER]), st.integers(0, 3))
@example([("act", 0, 0, "view", 1, None), ("show", 0, [0])], 100, 8, WINDOWS, 0)
@example(SHOWN_AROUND_AN_ERASURE, 100, 8, WINDOWS, 0)
def test_the_newest_slates_are_the_same_in_files_that_were_joined_before(
    steps: list[tuple[Any, ...]], after: int, most: int, how: ImpressionSettings, erased: int
) -> None:
    """This also holds after the erasure of a user whose slates are in the files."""
    cut = replace(how, until_ms=NOW + after)
    with tempfile.TemporaryDirectory() as before, tempfile.TemporaryDirectory() as since, tempfile.TemporaryDirectory() as out:
        files = build_examples(archived(before, *muddled(*history(steps), NOBODY, 0)[:2]), Path(out), how)
        assert [made_with(file) for file in files] == [how] * len(files)
        target = archived(since, *muddled(*history(steps), erased, 0)[:2])
        found = newest_of(files, cut, ["f1"], 0, most, erasures(target))
        assert found.equals(newest_examples(target, cut, ["f1"], 0, most))


def test_slates_of_a_partition_that_a_person_has_left_are_gone_with_its_erasure(tmp_path: Path) -> None:
    target = archived(str(tmp_path), *history([("act", 0, 0, "view", 1, None), ("show", 0, [0]), ("show", 2, [0])]))
    files = build_examples(target, tmp_path / "out", WINDOWS)
    elsewhere = erasures(target).clear().collect()
    gone = pl.DataFrame([("u0", 5, 0, NOW)], schema=elsewhere.schema, orient="row").lazy()
    assert newest_of(files, WINDOWS, ["f1"], 0, 9, elsewhere.lazy())["user_id"].unique().sort().to_list() == ["u0", "u2"]
    assert newest_of(files, WINDOWS, ["f1"], 0, 9, gone)["user_id"].to_list() == ["u2"]


class Counted(LocalFolder):
    """A folder that counts how often each file is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: Counter[str] = Counter()

    def scan(self, paths: Sequence[str], kinds: Mapping[str, Any]) -> pl.LazyFrame:
        self.reads.update(paths)
        return super().scan(paths, kinds)


def test_a_job_looks_once_for_who_was_erased(tmp_path: Path) -> None:
    steps = [("act", n % 4, n % 3, "view", 1, None) for n in range(8)] + [("show", n, [0, 1]) for n in range(4)]
    target = Counted(archived(str(tmp_path), *history(steps)).root)
    events = target.names("topic=interactions/")
    assert len(events) == 2
    for job in (
        lambda: build_examples(target, tmp_path / "out", WINDOWS),
        lambda: newest_examples(target, WINDOWS, ["f1"], 0, 10),
    ):
        target.reads.clear()
        job()
        # once for erasures, once for the actions that followed
        assert {path: target.reads[path] for path in events} == dict.fromkeys(events, 2)


def test_slates_of_earlier_features_are_learned_from_with_zeros_for_what_they_lack(tmp_path: Path) -> None:
    specs = [*GENERATIONS, "f1"]
    events, slates = history([("act", 0, 0, "view", 1, None), *(("show", 0, [0, 1]) for _ in specs)])
    rng = np.random.default_rng(1)
    given_: dict[str, Any] = {}
    for spec, slate in zip(specs, slates, strict=True):
        slate["feature_spec"] = spec
        given_[spec] = rng.random((2, len(GENERATIONS[spec]) if spec in GENERATIONS else len(FEATURES)), np.float32) + 1
        for row, item in enumerate(slate["items"]):
            item["features"] = given_[spec][row].tolist()
    target = archived(str(tmp_path), events, slates)
    rows = logged_of(target, "action == 'like'", erasures(target))(0, NOW + 10**9, 100, {})
    found = slates_of(rows, EventFrame.of([]), (("positive", 1.0),))
    assert len(GENERATIONS) > 1
    assert len(found) == len(GENERATIONS)
    for (spec, columns), learned in zip(GENERATIONS.items(), found, strict=True):
        assert learned.features is not None
        assert learned.features.shape == (2, len(FEATURES))
        assert np.array_equal(learned.features[:, columns], given_[spec])
        assert not np.delete(learned.features, columns, axis=1).any()
    short = rows.with_columns(pl.col("features").list.head(5))
    assert slates_of(short, EventFrame.of([]), (("positive", 1.0),)) == []
