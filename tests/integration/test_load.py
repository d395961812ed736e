"""`riffle load` and `riffle replay` on a real broker: the reported numbers match the topics."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from click.testing import CliRunner

from agents.cli.loading import load, replay
from schemas.codec import decode
from schemas.settings import Settings

pytestmark = pytest.mark.integration
DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "shop"
    made.mkdir()
    (made / "items.csv").write_text("item_id,title,image\na,A,\nb,B,gone.png\n,C,\nc,C,\na,again,\nd,D,\n,E,\n")
    far = NOW_MS * 10
    rows = [f"u{n},a,{NOW_MS + n}" for n in range(5)] + [f"u9,a,{far}", ",a,3", f"u1,a,{NOW_MS}", f"u1,a,{NOW_MS}"]
    (made / "events.csv").write_text("user_id,item_id,event_time\n" + "\n".join(rows) + "\n")
    return made


def run(command: Any, settings: Settings, *arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(command, arguments, env=settings.environment(), catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


async def on_topic(settings: Settings, name: str) -> list[dict[str, Any]]:
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        topic = settings.topic(name)
        partitions = [TopicPartition(topic, n) for n in range(1 if name == "items" else settings.partitions)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found: list[Any] = []
        for partition, end in ends.items():
            while await consumer.position(partition) < end:
                found += (await consumer.getmany(partition, timeout_ms=200)).get(partition, ())
        schema = "item" if name == "items" else "interaction"
        return [decode(schema, record.value)[0] for record in found]
    finally:
        await consumer.stop()


def test_what_is_told_is_what_is_there(fresh: Settings, folder: Path) -> None:
    out, err = run(load, fresh, str(folder), "--json")
    facts = json.loads(out.splitlines()[-1])
    assert (facts["items"], facts["events"], facts["bad_rows"], facts["warnings"]) == (4, 6, 5, 2)
    assert facts["repeated_events"] == 1
    places = [(example["file"], example["row"]) for example in facts["examples"]]
    assert places == [("items.csv", 4), ("items.csv", 6), ("items.csv", 8), ("events.csv", 7), ("events.csv", 8)]
    assert "warning: items.csv line 3: there is no image 'gone.png'" in err
    items = asyncio.run(on_topic(fresh, "items"))
    assert [(item["item_id"], item["image"]) for item in items] == [("a", None), ("b", None), ("c", None), ("d", None)]
    events = asyncio.run(on_topic(fresh, "interactions"))
    assert len(events) == sum(offset + 1 for offset in facts["last_offsets"].values()) == 6
    text, _ = run(replay, fresh, str(folder), "--limit", "2")
    assert "events 2" in text
    assert "{" not in text
    run(load, fresh, str(folder), "--strict", code=1)
    assert len(asyncio.run(on_topic(fresh, "items"))) == 4


def test_items_alone(fresh: Settings, folder: Path) -> None:
    (folder / "events.csv").unlink()
    out, _ = run(load, fresh, str(folder), "--items-only", "--json")
    facts = json.loads(out.splitlines()[-1])
    assert (facts["items"], facts["events"]) == (4, 0)


async def test_a_load_that_added_nothing_new_says_so(worker: Settings, folder: Path) -> None:
    first, said = await asyncio.to_thread(run, load, worker, str(folder), "--json")
    facts = json.loads(first.splitlines()[-1])
    assert (facts["events"], facts["repeated_events"], facts["applied"], facts["duplicates"]) == (6, 1, 6, 0)
    assert "nothing new" not in said
    second, said = await asyncio.to_thread(run, load, worker, str(folder), "--json")
    facts = json.loads(second.splitlines()[-1])
    assert (facts["events"], facts["applied"], facts["duplicates"]) == (6, 0, 6)
    assert "nothing new" in said


def test_a_quote_that_is_not_closed_ends_with_1_and_the_other_rows_are_loaded(fresh: Settings, folder: Path) -> None:
    (folder / "items.csv").write_text('item_id,title,price\na,A,1\nb,"never closed,2\nc,C,3\n')
    out, err = run(load, fresh, str(folder), "--items-only", "--json", code=1)
    assert json.loads(out.splitlines()[-1])["items"] == 2
    assert "items.csv line 3: a quote opened in line 3 is never closed" in err
    assert [item["item_id"] for item in asyncio.run(on_topic(fresh, "items"))] == ["a", "c"]


def test_events_on_items_that_the_catalogue_lacks_are_named(fresh: Settings, tmp_path: Path) -> None:
    """Misspelt ids would otherwise go unnoticed until a release is trained."""
    made = tmp_path / "other"
    made.mkdir()
    (made / "items.csv").write_text("item_id\na\nb\n")
    (made / "events.csv").write_text(
        f"user_id,item_id,event_time\nu,a,{NOW_MS}\nu,item-a,{NOW_MS + 1}\nu,item-b,{NOW_MS + 2}\n"
    )
    _, err = run(load, fresh, str(made))
    assert "warning: 2 of 3 events are on items that the dataset's catalogue lacks" in err
