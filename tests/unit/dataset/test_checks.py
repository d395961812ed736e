"""The checks of a dataset folder find what they are named after, with a remedy, and count as training does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from agents.cli.loading import load
from models.dataset.checks import facts as gathering
from models.dataset.checks.check import State
from models.dataset.checks.folder import ADVICE, MOST_ROWS, Checked, checked
from models.dataset.needs import HELD_OUT, QUERIES, QUERY_USERS, to_judge
from models.rules import PositiveRule
from schemas.errors import BadDataset
from schemas.records import Interaction
from training.evaluation.bounds import PREQUENTIAL
from training.evaluation.holdout import held_out

NOW_MS = 1_760_000_000_000
START_MS = 1_700_000_000_000
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
RULE = "positive = \"action == 'like'\"\n"
NAMES = ["files", "columns", "rows", "sizes", "duplicates", "content", "images", "times", "likes", "users", "training", "gate"]


def shop(folder: Path, users: int = 20, events: int = 8) -> Path:
    """A folder in which every check passes."""
    folder.mkdir(exist_ok=True)
    items = [f"i{n},Title {n},lamps" for n in range(10)]
    (folder / "items.csv").write_text("\n".join(["item_id,title,categories", *items]) + "\n")
    rows = [
        f"u{user},i{n},{START_MS + 1000 * (user + users * n)},{'like' if n % 2 else 'view'}"
        for n in range(events)
        for user in range(users)
    ]
    (folder / "events.csv").write_text("\n".join(["user_id,item_id,event_time,action", *rows]) + "\n")
    (folder / "dataset.toml").write_text(RULE)
    return folder


def states(found: Checked) -> dict[str, str]:
    return {check.name: str(check.state) for check in found.checks}


def test_every_check_passes_for_sound_data(tmp_path: Path) -> None:
    found = checked(shop(tmp_path / "d"), NOW_MS)
    assert states(found) == dict.fromkeys([*NAMES, "unknown items"], "pass")
    assert found.passes
    assert (found.items, found.events, found.cut) == (10, 160, frozenset())
    assert all(check.found and not check.advice for check in found.checks)


def appended(name: str, *rows: str) -> Any:
    def change(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write("\n".join(rows) + "\n")

    return change


def written(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


def with_images(folder: Path) -> None:
    (folder / "a.png").write_bytes(PNG)
    (folder / "b.png").write_text("no image")
    (folder / "items.csv").write_text("item_id,title,image\ni1,T,a.png\ni2,T,b.png\ni3,T,gone.png\n")


def with_a_large_image(folder: Path) -> None:
    with (folder / "a.png").open("wb") as file:
        file.write(PNG)
        file.truncate(gathering.LARGEST_IMAGE + 1)
    (folder / "items.csv").write_text("item_id,title,image\ni1,T,a.png\n")


@pytest.mark.parametrize(
    ("change", "name", "state", "said"),
    [
        (lambda folder: (folder / "events.csv").unlink(), "files", "fail", "no events"),
        (lambda folder: (folder / "items.jsonl").write_text("{}"), "files", "fail", "both"),
        (written("dataset.toml", "positive = 5 5"), "files", "fail", "dataset.toml"),
        (written("dataset.toml", RULE + "colour = 'red'\n"), "files", "warn", "colour"),
        (written("items.csv", "item_id,title\n"), "files", "fail", "no rows"),
        (lambda folder: (folder / "items.csv").write_bytes(b"PK\x03\x04zip"), "files", "fail", "spreadsheet"),
        (written("events.csv", "user,item_id,event_time\nu,i1,5\n"), "columns", "fail", "user_id"),
        (written("events.csv", "user_id,item_id,event_time,price\nu,i1,1700000000000,5\n"), "columns", "warn", "price"),
        (appended("items.csv", "x1,T"), "rows", "warn", "line 12"),
        (written("items.csv", 'item_id,title\ni1,T\ni2,"T\n'), "rows", "fail", "quote"),
        (written("items.csv", "item_id,title\n,T\n"), "rows", "fail", "no item"),
        (appended("items.csv", f"{'x' * 300},T,c"), "sizes", "warn", "256 bytes"),
        (appended("items.csv", f"x,{'T' * 70_000},c"), "sizes", "warn", "65536"),
        (with_a_large_image, "sizes", "warn", "20 MiB"),
        (appended("items.csv", "i1,again,c"), "duplicates", "warn", "i1"),
        (appended("events.csv", f"u0,i0,{START_MS},view"), "duplicates", "warn", "1 events"),
        (written("items.csv", "item_id\ni1\ni2\n"), "content", "warn", "0 of 2"),
        (with_images, "images", "warn", "gone.png"),
        (written("events.csv", "user_id,item_id,event_time\nu,i1,1700000000\n"), "times", "fail", "seconds"),
        (written("events.csv", "user_id,item_id,event_time\nu,i1,soon\n"), "times", "fail", "soon"),
        (appended("events.csv", f"u1,i1,{NOW_MS + 10**9},like"), "times", "warn", "day after"),
        (
            written("events.csv", f"user_id,item_id,event_time\nu,i1,{START_MS}\nu,i2,{START_MS}\n"),
            "times",
            "warn",
            "same time",
        ),
        (
            written("events.csv", f"user_id,item_id,event_time,action\nu,i1,{START_MS},impression\n"),
            "times",
            "warn",
            "impressions",
        ),
        (appended("events.csv", f"u1,nothing,{START_MS},like"), "unknown items", "warn", "'nothing'"),
        (written("items.csv", "item_id,title\nother,T\n"), "unknown items", "fail", "160 of 160"),
        (lambda folder: (folder / "dataset.toml").unlink(), "likes", "warn", "every event"),
        (written("dataset.toml", "positive = \"action == 'buy'\"\n"), "likes", "fail", "0 of 160"),
        (written("dataset.toml", "positive = 'value > 0 or action != 1'\n"), "likes", "warn", "distinguish"),
        (written("dataset.toml", "positive = 'colour > 0'\n"), "likes", "fail", "colour"),
        (lambda folder: shop(folder, 200, 1), "users", "warn", "200 have a single event"),
        (lambda folder: shop(folder, 20, 3), "training", "warn", "60 events"),
        (lambda folder: shop(folder, 9, 20), "gate", "warn", "9 users who liked"),
    ],
)
def test_a_check_finds_what_it_is_named_after(tmp_path: Path, change: Any, name: str, state: str, said: str) -> None:
    folder = shop(tmp_path / "d")
    change(folder)
    found = checked(folder, NOW_MS)
    (check,) = [check for check in found.checks if check.name == name]
    assert (check.state, state) == (State(state), state), check
    assert said in check.found
    assert check.advice
    assert found.passes == ("fail" not in states(found).values())


def test_a_folder_that_is_none_is_refused_with_a_remedy(tmp_path: Path) -> None:
    found = checked(tmp_path / "gone", NOW_MS)
    assert states(found) == {"files": "fail"}
    assert found.checks[0].advice == ADVICE["no_folder"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_of_large_files_the_first_rows_are_read_and_that_is_said(tmp_path: Path, kind: str) -> None:
    folder = shop(tmp_path / "d")
    for name in ("items", "events"):
        frame = pl.read_csv(folder / f"{name}.csv")
        (folder / f"{name}.csv").unlink()
        file = folder / f"{name}.{kind}"
        if kind == "csv":
            frame.write_csv(file)
        elif kind == "jsonl":
            frame.write_ndjson(file)
        else:
            frame.write_parquet(file)
    whole = checked(folder, NOW_MS, most_rows=160)
    assert (whole.items, whole.events, whole.cut) == (10, 160, frozenset())
    part = checked(folder, NOW_MS, most_rows=9)
    assert (part.items, part.events) == (9, 9)
    assert part.cut == {f"items.{kind}", f"events.{kind}"}
    assert states(part)["gate"] == "warn"
    assert "in the rows that were read" in next(check.found for check in part.checks if check.name == "gate")


@pytest.mark.parametrize("seed", range(30))
def test_the_gate_finds_enough_if_and_only_if_the_check_says_so(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, users, items = int(rng.integers(50, 900)), int(rng.integers(3, 80)), int(rng.integers(2, 60))
    times = np.sort(rng.integers(START_MS, START_MS + 40 * 86_400_000, n)).tolist()
    events = [
        Interaction(
            str(k), f"u{rng.integers(users)}", f"i{rng.integers(items)}", time, str(rng.choice(["view", "like"], p=[0.7, 0.3]))
        )
        for k, time in enumerate(times)
    ]
    rule = "action == 'like'"
    plain = [(event.user_id, event.item_id, event.event_time, event.action, event.value) for event in events]
    found = to_judge(plain, PositiveRule(rule))
    try:
        held = held_out(events, rule, 1.0 - HELD_OUT, 2_000)
    except BadDataset as exc:
        assert exc.code == "too_little_to_judge"
        assert not found.suffices
        return
    assert found.suffices
    if held.protocol == PREQUENTIAL:
        assert (found.queries, found.users) >= (QUERIES, QUERY_USERS)
    else:
        assert found.liked_users == held.people


def test_the_command_reports_and_sends_nothing(tmp_path: Path) -> None:
    folder = shop(tmp_path / "d")
    nowhere = {"RIFFLE_BOOTSTRAP": "127.0.0.1:1", "RIFFLE_HOME": str(tmp_path / "home")}
    done = CliRunner().invoke(load, [str(folder), "--check"], env=nowhere)
    assert done.exit_code == 0, done.output
    assert "ok   gate: " in done.stdout
    assert "13 checks: 0 failed, 0 with a warning" in done.stdout
    appended("items.csv", "i1,again,c")(folder)
    (folder / "dataset.toml").write_text("positive = \"action == 'buy'\"\n")
    done = CliRunner().invoke(load, [str(folder), "--check"], env=nowhere)
    assert done.exit_code == 1
    assert "WARN duplicates: " in done.stdout
    assert "FAIL likes: 0 of 160" in done.stdout
    assert "\n     set positive in dataset.toml" in done.stdout
    done = CliRunner().invoke(load, [str(folder), "--check", "--json"], env=nowhere)
    facts = json.loads(done.stdout)
    assert (done.exit_code, facts["passes"], facts["items"], facts["events"], facts["cut"]) == (1, False, 10, 160, [])
    assert {check["check"]: check["state"] for check in facts["checks"]}["likes"] == "fail"
    assert all(("advice" in check) == (check["state"] != "pass") for check in facts["checks"])
    assert not (tmp_path / "home").exists()
    (folder / "events.csv").unlink()
    assert CliRunner().invoke(load, [str(folder), "--check", "--items-only"], env=nowhere).exit_code == 0


def test_every_check_is_in_the_interface() -> None:
    page = (Path(__file__).parents[3] / "docs" / "interface.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z ]+)` \|", page[page.index("### Checks of a folder") :].split("\n#", 1)[0], re.MULTILINE)
    assert set(rows) == {*NAMES, "unknown items"}
    assert f"first {MOST_ROWS:,} rows" in page
