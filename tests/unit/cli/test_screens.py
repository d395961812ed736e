"""Output fits a screen of 80 columns, is complete, and contains no Python representations."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fakes import registry_server
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agents.cli import dlq as dlq_module
from agents.cli import doctor as doctor_module
from agents.cli import operate, release, states, topics
from agents.cli.ask import ask, print_slate
from agents.cli.demo import promising
from schemas.settings import Settings
from streams.kafka.topics import TOPICS, partitions_of

WIDTH = 80
REASON = "NDCG@10 0.0512 is not beyond noise above 0.0498 of 20260131-0123456789; 1,204 queries are too few"


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def shown(command: Any, *arguments: str) -> str:
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert all(len(line) <= WIDTH for line in done.output.splitlines())
    assert "{" not in done.output
    assert "…" not in done.output, "nothing is cut"
    return done.output


def test_topics_are_named_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async def counts(settings: Settings) -> dict[str, int]:
        return dict.fromkeys(TOPICS, 4)

    monkeypatch.setattr(topics, "partition_counts", counts)
    text = shown(topics.topics)
    assert all(Settings().topic(name) in text for name in TOPICS)


def test_releases_are_named_whole_and_the_gate_has_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gates = [{"passed": True}, {"passed": False, "reasons": [REASON]}, {}]
    rows = [
        {
            "release": f"20260131-012345678{n}",
            "serving": n == 0,
            "aliases": ["champion"] if n == 0 else [],
            "trained_until": 1_700_000_000_000,
            "events": 12_345_678,
            "ndcg@10": 0.0512,
            "recall@50": 0.2,
            "gate": "passed" if gate.get("passed") else "; ".join(gate.get("reasons", [])) or "not judged",  # type: ignore[attr-defined]
            "parent": "none",
        }
        for n, gate in enumerate(gates)
    ]
    monkeypatch.setattr(release, "list_releases", lambda folder: [0, 1, 2])
    monkeypatch.setattr(release, "_row", lambda manifest, *_: rows[manifest])
    text = shown(release.release, "list")
    assert all(row["release"] in text for row in rows)  # type: ignore[operator]
    assert "* serves now" in text
    assert REASON in " ".join(text.split())


def test_dead_letters_are_told_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = {"topic": "riffle.interactions", "partition": 3, "offset": 1_234_567_890}
    letters: list[dict[str, Any]] = [
        {
            "letter": 17,
            "timestamp": 1_700_000_000_000,
            "code": "future_event_time",
            "key": b"k" * 24,
            "reason": REASON,
            **origin,
        },
        {"letter": 18, "code": "truncated", "reason": "not a dead letter: [/x]"},
    ]
    monkeypatch.setattr(dlq_module, "_letters", lambda code: letters)
    text = " ".join(shown(dlq_module.dlq, "list").split())
    assert REASON in text
    assert "riffle.interactions-3@1234567890" in text
    assert "[/x]" in text


def test_an_explained_slate_shows_sources_scores_heads_and_drops() -> None:
    explanation = {
        "sources": {"covisitation": 0.25, "popular": 12.5},
        "light": 0.5,
        "dropped": {"seen": 41, "unavailable": 0},
        "heads": {"like": 0.125, "view": 0.75},
    }
    item = {"item_id": "p1", "score": 0.3, "sources": ["covisitation", "popular"], "explanation": explanation}
    slate = {
        "user_id": "u",
        "items": [item],
        "release": "r",
        "arm": "default",
        "degraded": [],
        "as_of": None,
        "timings_ms": {"rank": 1.0},
    }
    out = io.StringIO()
    print_slate(Settings(web_port=1), slate, Console(file=out, width=WIDTH))
    text = " ".join(out.getvalue().replace("│", " ").split())
    for part in ("covisitation 0.25", "popular 12.5", "like 0.125", "view 0.75", "filters dropped: seen 41, unavailable 0"):
        assert part in text
    plain = io.StringIO()
    print_slate(Settings(web_port=1), {**slate, "items": [{**item, "explanation": None}]}, Console(file=plain, width=WIDTH))
    nothing = io.StringIO()
    print_slate(Settings(web_port=1), {**slate, "items": []}, Console(file=nothing, width=WIDTH))
    assert "no items are left" in nothing.getvalue()
    assert "no items are left" not in plain.getvalue()
    assert "dropped" not in plain.getvalue()


@given(st.lists(st.integers(0, 99), unique=True, max_size=60), st.dictionaries(st.integers(0, 99), st.sets(st.integers(0, 99))))
def test_the_demo_picks_what_pushes_most_items_into_the_slate(ranked: list[int], near: dict[int, set[int]]) -> None:
    names = [str(n) for n in ranked]

    def similar(item_id: str) -> list[str]:
        return [str(n) for n in sorted(near.get(int(item_id), ()))]

    found = promising(names, similar)
    assert found == promising(names, similar), "the same every time"
    if len(names) <= 5:
        assert found == names[-1:]
        return
    assert sorted(found) == sorted(names[5:25])
    gains = {name: len(set(similar(name)) & set(names[5:]) - {name}) for name in found}
    for one, other in itertools.pairwise(found):
        assert gains[one] > gains[other] or (gains[one] == gains[other] and names.index(one) < names.index(other))


def test_a_status_is_rows_of_words(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, web_port=1).resolved()
    done = CliRunner().invoke(operate.status, env=settings.environment(), catch_exceptions=False)
    assert "{" not in done.output
    assert json.loads(CliRunner().invoke(operate.status, ["--json"], env=settings.environment()).output)["ready"] is False


def test_reasons_are_spelled_as_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path, web_port=1).resolved()
    state = {"ready": False, "release": None, "reasons": {"restoring": [1], "troubles": {"1": "the disk's"}}}
    monkeypatch.setattr(states, "readiness", lambda _: state)
    told = CliRunner().invoke(operate.status, env=settings.environment(), catch_exceptions=False).output
    for text in (told, doctor_module._workers(settings)[0].line()):
        assert "[1]" in text
        assert '{"1": "the disk\'s"}' in text


def test_what_is_said_of_the_moment_goes_into_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[dict[str, Any]] = []

    def answered(settings: Settings, body: dict[str, Any], deadline_ms: int) -> dict[str, Any]:
        bodies.append(body)
        return {"user_id": "ann", "items": []}

    monkeypatch.setattr("agents.cli.ask.request_slate", answered)
    said = CliRunner().invoke(ask, ["ann", "--json", "--context", "device=tv", "--context", "query=a=b"])
    assert said.exit_code == 0
    assert bodies[0]["context"] == {"device": "tv", "query": "a=b"}
    for unnamed in ("tv", "=tv"):
        refused = CliRunner().invoke(ask, ["ann", "--context", unnamed])
        assert refused.exit_code == 2
        assert f"'{unnamed}' is not NAME=VALUE" in refused.output
    assert len(bodies) == 1


@pytest.mark.parametrize(("raised", "ok"), [({}, True), ({"interactions": 8}, False), ({"items": 2}, False)])
def test_doctor_names_both_numbers_of_partitions(monkeypatch: pytest.MonkeyPatch, raised: dict[str, int], ok: bool) -> None:
    async def counts(settings: Settings) -> dict[str, int]:
        return {name: partitions_of(name, settings) for name in TOPICS} | raised

    monkeypatch.setattr(doctor_module, "partition_counts", counts)
    line = doctor_module._topics(Settings()).line()
    assert line.startswith("ok") == ok
    for name, count in raised.items():
        wanted = partitions_of(name, Settings())
        assert f"{Settings().topic(name)} has {count} partitions, these settings require {wanted}" in line
        assert "riffle topics copy" in line


@pytest.mark.parametrize(
    ("mood", "ok"), [("sound", True), ("500 {}", False), ("html", False), ("401 {}", False), ("silent", False)]
)
def test_doctor_asks_the_schema_registry(mood: str, ok: bool) -> None:
    with registry_server(mood=mood) as server:
        address = server.url.replace("http://", "http://reader:p%40ss@") + "/"
        settings = Settings(registry_url=f"http://127.0.0.1:1,{address}")
        if mood == "sound":
            server.mood = "200 []"
        line = doctor_module._registry(settings)[0].line()
    assert line.startswith("ok") == ok
    assert "p%40ss" not in line
    assert "p@ss" not in line
    assert doctor_module._registry(Settings()) == []
