"""Dataset folders in every supported format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from models.dataset import builtin, prints, scenes
from models.dataset.folder import Dataset
from schemas.errors import BadDataset
from schemas.validation import interaction_from

NOON = 1_700_000_000_000


def write(folder: Path, name: str, kind: str, rows: list[dict[str, object]]) -> None:
    frame = pl.DataFrame(rows)
    if kind == "parquet":
        frame.write_parquet(folder / f"{name}.parquet")
    elif kind == "csv":
        frame.write_csv(folder / f"{name}.csv")
    else:
        frame.write_ndjson(folder / f"{name}.jsonl")


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize(
    "times", [[30, 10, 20], ["1970-01-01T00:00:00.030Z", "1970-01-01T00:00:00.010Z", "1970-01-01T00:00:00.020Z"]]
)
def test_every_file_kind_and_time_form_reads_the_same(tmp_path: Path, kind: str, times: list[object]) -> None:
    write(tmp_path, "items", kind, [{"item_id": "a", "title": "A", "categories": "x|y", "colour": "red"}, {"item_id": "b"}])
    write(tmp_path, "events", kind, [{"user_id": f"u{n}", "item_id": "a", "event_time": t} for n, t in enumerate(times)])
    dataset = Dataset.open(tmp_path)
    items = list(dataset.items())
    assert items[0].categories == ("x", "y")
    assert items[0].attributes == {"colour": "red"}
    assert [(e.user_id, e.event_time) for e in dataset.events()] == [("u1", 10), ("u2", 20), ("u0", 30)]
    assert dataset.bad_count == 0


def test_the_same_event_counts_once_by_the_rule_that_http_has(tmp_path: Path) -> None:
    write(tmp_path, "items", "csv", [{"item_id": "a"}])
    row = {"user_id": "u", "item_id": "a", "event_time": NOON, "action": "like", "value": 1.0}
    write(
        tmp_path, "events", "csv", [row, row, {**row, "value": 2.0}, {**row, "action": "view"}, {**row, "event_time": NOON + 1}]
    )
    dataset = Dataset.open(tmp_path)
    found = list(dataset.events())
    assert [(event.event_time, event.action, event.value) for event in found] == [
        (NOON, "like", 1.0),
        (NOON, "view", 1.0),
        (NOON + 1, "like", 1.0),
    ]
    assert [event.event_id for event in found] == [event.event_id for event in Dataset.open(tmp_path).events()]
    assert found[0].event_id == interaction_from({**row, "event_time": NOON}).event_id
    assert dataset.warnings == {"repeated_event": 2}
    assert [warned.row for warned in dataset.warned] == [3, 4]
    assert "2 events repeat an earlier one" in dataset.report.warning_lines()[0]
    assert dataset.bad_count == 0


def test_bad_rows_are_reported_and_skipped(tmp_path: Path) -> None:
    write(tmp_path, "items", "jsonl", [{"item_id": "a", "price": 1.0}, {"item_id": "", "price": 2.0}])
    rows: list[dict[str, object]] = [
        {"user_id": "u", "item_id": "a", "event_time": 1, "position": 0},
        {"user_id": None, "item_id": "a", "event_time": 2, "position": 0},
        {"user_id": "u", "item_id": "a", "event_time": 3, "position": -4},
    ]
    write(tmp_path, "events", "jsonl", rows)
    dataset = Dataset.open(tmp_path)
    assert [item.item_id for item in dataset.items()] == ["a"]
    assert len(list(dataset.events())) == 1
    assert [(bad.file, bad.field) for bad in dataset.bad] == [
        ("items.jsonl", "item_id"),
        ("events.jsonl", "user_id"),
        ("events.jsonl", "position"),
    ]


def test_a_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="items"):
        Dataset.open(tmp_path)
    with pytest.raises(BadDataset, match="not a folder"):
        Dataset.open(tmp_path / "none")


def test_an_image_outside_the_folder_is_a_bad_row(tmp_path: Path) -> None:
    write(tmp_path, "items", "jsonl", [{"item_id": "a", "image": "../../etc/passwd"}, {"item_id": "b", "image": "x.png"}])
    write(tmp_path, "events", "jsonl", [{"user_id": "u", "item_id": "a", "event_time": 1}])
    dataset = Dataset.open(tmp_path)
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    assert [item.image for item in dataset.items()] == [str(tmp_path / "x.png")]
    assert dataset.bad[0].field == "image"


def test_each_motif_palette_and_mood_shows_in_the_picture_and_in_the_words() -> None:
    def drawn(motif: str, palette: str, mood: str) -> bytes:
        return scenes.draw(scenes.Print(motif, palette, mood), np.random.default_rng(1)).tobytes()

    first = scenes.MOTIFS[0], next(iter(scenes.PALETTES)), scenes.MOODS[0]
    pictures = {drawn(motif, *first[1:]) for motif in scenes.MOTIFS}
    pictures |= {drawn(first[0], palette, first[2]) for palette in scenes.PALETTES}
    pictures |= {drawn(*first[:2], mood) for mood in scenes.MOODS}
    assert len(pictures) == len(scenes.MOTIFS) + len(scenes.PALETTES) + len(scenes.MOODS) - 2, "the first is drawn three times"
    for seed in range(40):
        made = scenes.Print(scenes.MOTIFS[seed % 10], tuple(scenes.PALETTES)[seed % 6], scenes.MOODS[seed % 6])
        title, text = prints.words(made, np.random.default_rng(seed))
        subject = next(named for named in prints.SUBJECTS[made.motif] if title.startswith(named))
        assert title.removeprefix(subject).strip() in prints.SCENES[made.mood]
        assert made.palette in text
        assert made.mood in text or title.removeprefix(subject).strip() in text


def test_the_builtin_dataset_is_seeded_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "ITEMS", 120)
    monkeypatch.setattr(builtin, "PEOPLE", 40)
    monkeypatch.setattr(builtin, "EVENTS", 900)
    one, two = (Dataset.open(builtin.build_builtin(tmp_path / name, seed=3)) for name in ("one", "two"))
    events = list(one.events())
    assert events == list(two.events())
    items = {item.item_id: item for item in one.items()}
    assert len(items) == 120
    assert all(items[event.item_id].published_at <= event.event_time for event in events)  # type: ignore[operator]
    assert {event.action for event in events} == {"view", "like"}
    with Image.open(str(next(iter(items.values())).image)) as image:
        assert image.size == (scenes.WIDTH, scenes.HEIGHT)
    assert len({item.title for item in items.values()}) == len(items)
    assert (one.name, one.positive, one.bad_count) == ("prints", "action == 'like'", 0)
    assert json.dumps(one.counts())
