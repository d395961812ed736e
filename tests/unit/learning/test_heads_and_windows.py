"""Settings determine predicted actions, their weights in the score and their windows, through to the release."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.release.release import Head, Manifest
from models.rules import PositiveRule
from models.units import DAY_MS
from schemas.errors import ConfigError
from schemas.records import Interaction, Item
from training.data.table import EventTable, heads_of, vocabulary_of, windows_of
from training.recipe import LearnSettings
from training.replay.outcomes import Outcomes
from training.settings_file import read_settings, write_settings

POSITIVE = "action == 'buy'"
HOUR_MS = 3_600_000


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 10), st.sampled_from(["view", "cart", "buy"])),
        min_size=1,
        max_size=30,
    ),
    st.dictionaries(st.sampled_from(["view", "cart", "positive"]), st.integers(1, 10), max_size=3),
)
def test_each_head_counts_within_its_own_window(drawn: list[tuple[int, int, int, str]], hours: dict[str, int]) -> None:
    events = [
        Interaction(f"e{n}", f"u{u}", f"i{i}", hour * HOUR_MS, action)
        for n, (u, i, hour, action) in enumerate(sorted(drawn, key=lambda d: d[2]))
    ]
    windows = {name: count * HOUR_MS for name, count in hours.items()}
    vocabulary = vocabulary_of(events, POSITIVE)
    heads = (("positive", 1.0), *((action, 0.1) for action in vocabulary.actions if action != "buy"))
    table = EventTable.of(events, [Item(f"i{n}") for n in range(4)], vocabulary, heads, windows)
    outcomes = Outcomes(events, PositiveRule(POSITIVE), [name for name, _ in heads], windows)
    for n, event in enumerate(events):
        if not table.first[n]:
            continue
        of_pair = [e for e in events[n:] if (e.user_id, e.item_id) == (event.user_id, event.item_id)]
        expected = [
            any(
                e.action == ("buy" if name == "positive" else name)
                and e.event_time - event.event_time <= windows.get(name, DAY_MS)
                for e in of_pair
            )
            for name, _ in heads
        ]
        assert table.labels[n].astype(bool).tolist() == expected
        assert outcomes.of(event.user_id, n, event.event_time)[event.item_id].tolist() == expected


def test_named_heads_weigh_what_they_are_given() -> None:
    events = [Interaction(f"e{n}", "u", "i", n, action) for n, action in enumerate(["view", "cart", "buy", "skip"] * 3)]
    vocabulary = vocabulary_of(events, POSITIVE)
    assert dict(heads_of(events, vocabulary, POSITIVE, {"cart": 0.4, "skip": -0.5})) == {
        "positive": 1.0,
        "cart": 0.4,
        "skip": -0.5,
    }
    assert dict(heads_of(events, vocabulary, POSITIVE, {"positive": 2.0})) == {"positive": 2.0}
    with pytest.raises(ConfigError, match="share"):
        heads_of(events, vocabulary, POSITIVE, {"share": 1.0})


def test_settings_name_them_in_a_file(tmp_path: Path) -> None:
    standard = LearnSettings()
    made = replace(standard, heads={"cart": 0.4}, windows_s={"positive": 7 * 86_400.0, "cart": 3_600})
    write_settings(tmp_path / "s.json", made, standard)
    assert read_settings(tmp_path / "s.json", standard) == made


@pytest.mark.parametrize(
    "text",
    [
        '{"windows_s": {"a": 0}}',
        '{"windows_s": {"a": "1"}}',
        '{"heads": {"a": true}}',
        '{"heads": [1]}',
        '{"heads": {"a": NaN}}',
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ConfigError):
        read_settings(tmp_path / "s.json", LearnSettings())


def test_the_manifest_says_the_window_and_one_that_does_not_means_a_day() -> None:
    manifest = Manifest("r", "f2", (Head("positive", 1.0), Head("cart", 0.1, HOUR_MS)), POSITIVE, (), 0.0, 1.0, {}, 0, 0)
    read = Manifest.parse(manifest.to_bytes())
    assert [head.window_ms for head in read.heads] == [DAY_MS, HOUR_MS]
    fields = asdict(manifest) | {"heads": [{"action": "positive", "weight": 1.0}]}
    assert Manifest.parse(json.dumps(fields).encode()).heads == (Head("positive", 1.0, DAY_MS),)


def test_a_window_of_an_action_that_there_is_not_is_refused() -> None:
    vocabulary = vocabulary_of([Interaction("e", "u", "i", 0, "buy")], POSITIVE)
    assert windows_of({"buy": 1.5, "positive": 60}, vocabulary) == {"buy": 1_500, "positive": 60_000}
    with pytest.raises(ConfigError, match="byu"):
        windows_of({"byu": 60}, vocabulary)
