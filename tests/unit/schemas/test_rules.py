"""Documents of merchandising rules: accepted ones are written back alike, and refusals name the field."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BadRules
from schemas.rules import FORMAT, MAX_BYTES, MAX_RULES, Kind, RuleSet, decode_rules, encode_rules, rules_from, rules_to_json

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
named = st.dictionaries(
    names, names | st.booleans() | st.integers(-9, 9) | st.lists(names, min_size=1, max_size=3), min_size=1, max_size=3
)
texts = st.lists(names, min_size=1, max_size=3)


@st.composite
def prices(draw: st.DrawFn) -> dict[str, float]:
    low, high = sorted(draw(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6))))
    return draw(st.sampled_from([{"price_from": low}, {"price_to": high}, {"price_from": low, "price_to": high}]))


wheres = st.builds(
    lambda parts, price: {**parts, **price},
    st.fixed_dictionaries(
        {"categories": texts},
        optional={"attributes": named, "items": texts, "published_within_days": st.floats(0.001, 36_500)},
    ),
    prices() | st.just({}),
)
whens = st.fixed_dictionaries({}, optional={"context": named, "categories": texts})
OWN: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "boost": st.fixed_dictionaries({"factor": st.floats(1.0001, 1_000), "where": wheres}),
    "bury": st.fixed_dictionaries({"factor": st.floats(0.0001, 0.9999), "where": wheres}),
    "pin": st.builds(
        lambda ids: {"pins": [{"item_id": name, "position": place} for place, name in enumerate(ids)]},
        st.lists(names, min_size=1, max_size=4, unique=True),
    ),
    "require": st.builds(
        lambda least, more, where: {"least": least, "first": least + more, "where": where},
        st.integers(1, 9),
        st.integers(0, 9),
        wheres,
    ),
    "cap": st.fixed_dictionaries({"most": st.integers(1, 9)}, optional={"where": wheres}).flatmap(
        lambda cap: st.just({**cap, "per": "category"})
    ),
    "fresh": st.fixed_dictionaries(
        {"share": st.floats(0.001, 0.2), "fewer_than": st.integers(1, 100)}, optional={"where": wheres}
    ),
}


@st.composite
def sets(draw: st.DrawFn) -> dict[str, Any]:
    """At most one pin and three fresh rules, so that none contradicts another."""
    kinds = draw(st.lists(st.sampled_from(list(OWN)), max_size=6))
    kinds = [kind for n, kind in enumerate(kinds) if kind != "pin" or kind not in kinds[:n]]
    rules = []
    for n, kind in enumerate(kinds):
        rule = {"name": f"rule {n}", "kind": kind, **draw(OWN[kind])}
        if draw(st.booleans()):
            rule["when"] = draw(whens)
        begins = draw(st.integers(0, 10**12))
        rule |= draw(st.sampled_from([{}, {"from": begins}, {"until": begins}, {"from": begins, "until": begins + 1}]))
        rules.append(rule)
    return {"version": draw(st.integers(0, 2**53)), "rules": rules}


@given(sets())
def test_every_accepted_document_is_written_back_alike(document: dict[str, Any]) -> None:
    found = rules_from(document)
    assert [rule.name for rule in found.rules] == [rule["name"] for rule in document["rules"]]
    assert decode_rules(encode_rules(found)) == found
    assert rules_from(rules_to_json(found)) == found
    assert encode_rules(decode_rules(encode_rules(found))) == encode_rules(found)


VALID: dict[str, dict[str, Any]] = {
    "boost": {"name": "a", "kind": "boost", "factor": 2, "where": {"items": ["x"]}},
    "bury": {"name": "a", "kind": "bury", "factor": 0.5, "where": {"items": ["x"]}},
    "pin": {"name": "a", "kind": "pin", "pins": [{"item_id": "x", "position": 0}]},
    "require": {"name": "a", "kind": "require", "least": 1, "first": 2, "where": {"items": ["x"]}},
    "cap": {"name": "a", "kind": "cap", "most": 2, "per": "category"},
    "fresh": {"name": "a", "kind": "fresh", "share": 0.1, "fewer_than": 5},
}
NUMBERS = {
    ("boost", "factor"): (1.0, 1_000.001),
    ("bury", "factor"): (0.0, 1.0),
    ("require", "least"): (0, 501),
    ("require", "first"): (0, 501),
    ("cap", "most"): (0, 501),
    ("fresh", "share"): (0.0, 1.001),
    ("fresh", "fewer_than"): (0, 1_000_001),
}
COMMON_BAD: dict[str, list[Any]] = {
    "name": ["", "x" * 101, 5, "\ud800"],
    "kind": ["demote", 5, ["boost"]],
    "from": [-1, "soon", 2**53 + 1],
    "until": [-1, "soon"],
    "when": [[], "x"],
}
WHERE_BAD: dict[str, list[Any]] = {
    "categories": [[], [""], "c", ["x" * 257], ["c"] * 101, [None]],
    "items": [[], [""], ["x"] * 1_001, ["é" * 200]],
    "price_from": [-1, "5", float("nan")],
    "price_to": [-0.1, True],
    "attributes": [{}, [], {"": "v"}, {"x": []}, {"x": None}, {"x": {}}, {"x": "v" * 4_097}, {f"n{n}": "v" for n in range(21)}],
    "published_within_days": [0, -1, 36_501],
}


def refused(document: Any) -> BadRules:
    with pytest.raises(BadRules) as caught:
        rules_from(document)
    assert caught.value.message
    return caught.value


def one(kind: str, /, **changes: Any) -> dict[str, Any]:
    return {"rules": [{**copy.deepcopy(VALID[kind]), **changes}]}


@pytest.mark.parametrize("kind", VALID)
def test_every_kind_has_a_valid_example(kind: str) -> None:
    assert set(VALID) == set(Kind)
    assert rules_from(one(kind)).rules[0].kind == kind


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_every_number_out_of_bounds_is_refused_by_its_name(kind: str, name: str) -> None:
    for value in (*NUMBERS[kind, name], "5", True, float("inf"), None):
        error = refused(one(kind, **{name: value}))
        assert error.field == f"rules[0].{name}", value
        assert error.code in {"invalid_field", "missing_field"}
        assert name in error.message


@given(st.sampled_from(list(VALID)), st.sampled_from([(name, bad) for name, every in COMMON_BAD.items() for bad in every]))
def test_every_common_field_out_of_bounds_is_refused_by_its_name(kind: str, case: tuple[str, Any]) -> None:
    name, bad = case
    assert refused(one(kind, **{name: bad})).field == f"rules[0].{name}"


@given(
    st.sampled_from(["boost", "bury", "require", "cap", "fresh"]),
    st.sampled_from([(name, bad) for name, every in WHERE_BAD.items() for bad in every]),
)
def test_every_condition_out_of_bounds_is_refused_by_its_name(kind: str, case: tuple[str, Any]) -> None:
    name, bad = case
    assert refused(one(kind, where={"categories": ["c"], name: bad})).field == f"rules[0].where.{name}"


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (None, "rules"),
        ([], "rules"),
        ({}, "rules"),
        ({"rules": {}}, "rules"),
        ({"rules": [5]}, "rules[0]"),
        ({"rules": [], "version": -1}, "version"),
        ({"rules": [], "version": "7"}, "version"),
        ({"rules": [], "format": 0}, "format"),
        ({"rules": [], "colour": 1}, "colour"),
        ({"rules": [{"name": "a"}]}, "rules[0].kind"),
        (one("boost", share=1), "rules[0].share"),
        (one("cap", per="brand"), "rules[0].per"),
        (one("boost", where={"colour": "red"}), "rules[0].where.colour"),
        (one("boost", when={"user": "u"}), "rules[0].when.user"),
        (one("boost", when={"context": {}}), "rules[0].when.context"),
        (one("boost", where={}), "rules[0].where"),
        (one("require", where=None), "rules[0].where"),
        (one("cap", per=None), "rules[0].where"),
        (one("pin", pins=[]), "rules[0].pins"),
        (one("pin", pins=[5]), "rules[0].pins[0]"),
        (one("pin", pins=[{"item_id": "x", "position": 500}]), "rules[0].pins[0].position"),
        (one("pin", pins=[{"item_id": "x", "position": -1}]), "rules[0].pins[0].position"),
        (one("pin", pins=[{"item_id": "", "position": 1}]), "rules[0].pins[0].item_id"),
        (one("pin", pins=[{"item_id": "x", "position": 1, "rank": 1}]), "rules[0].pins[0].rank"),
    ],
)
def test_what_a_document_must_not_be_is_refused_by_name(document: Any, field: str) -> None:
    assert refused(document).field == field


def two(kind: str, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {"rules": [{**VALID[kind], "name": "a", **first}, {**VALID[kind], "name": "b", **second}]}


PINS = [{"item_id": "y", "position": 0}]
CONTRADICTIONS = [
    (one("pin", pins=[{"item_id": "x", "position": 1}, {"item_id": "y", "position": 1}]), "rules[0].pins[1].position"),
    (one("pin", pins=[{"item_id": "x", "position": 1}, {"item_id": "x", "position": 2}]), "rules[0].pins[1].item_id"),
    (one("require", least=3, first=2), "rules[0].least"),
    (one("boost", where={"price_from": 3, "price_to": 2}), "rules[0].where.price_to"),
    (two("boost", {}, {"name": "a"}), "rules[1].name"),
    (two("pin", {}, {"pins": PINS}), "rules[1].pins"),
    (
        two("pin", {"when": {"context": {"d": "tv"}}}, {"pins": PINS, "when": {"context": {"d": ["tv", "web"]}}}),
        "rules[1].pins",
    ),
    (two("fresh", {"share": 0.6}, {"share": 0.6}), "rules[1].share"),
    ({"rules": [VALID["require"], {"name": "b", "kind": "cap", "most": 0, "where": {"items": ["x"]}}]}, "rules[1].most"),
]


@pytest.mark.parametrize(("document", "field"), CONTRADICTIONS)
def test_contradictory_rules_are_refused(document: dict[str, Any], field: str) -> None:
    error = refused(document)
    assert (error.code, error.field) == ("contradictory_rules", field)


@pytest.mark.parametrize(
    "changes",
    [
        ({"until": 5}, {"from": 5}),
        ({"when": {"context": {"device": "tv"}}}, {"when": {"context": {"device": ["web", "app"]}}}),
    ],
)
def test_rules_that_no_request_meets_together_do_not_contradict(changes: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert len(rules_from(two("pin", changes[0], {"pins": PINS, **changes[1]})).rules) == 2


def test_there_are_at_most_a_hundred_rules_and_a_mebibyte() -> None:
    many = [{**VALID["boost"], "name": str(n)} for n in range(MAX_RULES + 1)]
    assert len(rules_from({"rules": many[:-1]}).rules) == MAX_RULES
    assert refused({"rules": many}).field == "rules"
    with pytest.raises(BadRules, match="bytes") as caught:
        decode_rules(b" " * (MAX_BYTES + 1))
    assert caught.value.code == "too_large"


@given(st.binary(max_size=60) | sets().map(lambda found: json.dumps(found).encode()))
def test_any_bytes_are_decoded_or_refused(value: bytes) -> None:
    try:
        assert isinstance(decode_rules(value), RuleSet)
    except BadRules as error:
        assert error.code in {"not_json", "too_deep", "invalid_field", "missing_field", "newer_format", "contradictory_rules"}


def test_a_newer_format_is_refused_whatever_else_it_holds() -> None:
    error = refused({"format": FORMAT + 1, "rules": "of another form", "more": 1})
    assert (error.code, error.field) == ("newer_format", "format")


GOLDEN = (
    b'{"format":1,"rules":[{"factor":2.0,"from":1700000000000,"kind":"boost","name":"push","until":1700000000001,"when":{"categories":'
    b'["c"],"context":{"device":["tv"]}},"where":{"attributes":{"brand":["b1","true"]},"categories":["c1"],"items":["7"],"price_from":'
    b'1.0,"price_to":2.5,"published_within_days":30.0}},{"kind":"pin","name":"top","pins":[{"item_id":"p7","position":0}]},{"first":10,'
    b'"kind":"require","least":2,"name":"own","where":{"items":["x"]}},{"kind":"cap","most":3,"name":"wide","per":"category"},'
    b'{"fewer_than":5,"kind":"fresh","name":"new","share":0.1}],"version":7}'
)


def test_stored_documents_keep_their_bytes() -> None:
    where = {
        "categories": ["c1", "c1"],
        "price_from": 1,
        "price_to": 2.5,
        "attributes": {"brand": ["b1", True]},
        "items": [7],
        "published_within_days": 30,
    }
    push: dict[str, Any] = {
        "name": "push",
        "kind": "boost",
        "factor": 2,
        "where": where,
        "from": "2023-11-14T22:13:20Z",
        "until": 1_700_000_000_001,
    }
    push["when"] = {"context": {"device": "tv"}, "categories": ["c"]}
    rules = [
        push,
        {"name": "top", "kind": "pin", "pins": [{"item_id": "p7", "position": 0}]},
        {"name": "own", "kind": "require", "least": 2, "first": 10, "where": {"items": ["x"]}},
        {"name": "wide", "kind": "cap", "most": 3, "per": "category"},
        {"name": "new", "kind": "fresh", "share": 0.1, "fewer_than": 5},
    ]
    assert encode_rules(rules_from({"version": 7, "rules": rules})) == GOLDEN
    assert encode_rules(decode_rules(GOLDEN)) == GOLDEN
