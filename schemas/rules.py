"""Merchandising rules: one JSON document, validated as a whole.

A document is `{"format": 1, "version": 7, "rules": [...]}`. `format` is the version of this form; `version` is the author's
number of the rule set. Every accepted document is written back in one canonical form, so that equal sets have equal bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import orjson

from schemas.errors import BadRules
from schemas.parsing import MAX_TIME_MS, json_fault, shown
from schemas.validation import MAX_CATEGORIES, MAX_ENTRY_CHARS, MAX_ID_BYTES, MAX_K, MAX_VALUE_CHARS, Fields

__all__ = [
    "FORMAT",
    "MAX_RULES",
    "Kind",
    "Pin",
    "Rule",
    "RuleSet",
    "When",
    "Where",
    "decode_rules",
    "encode_rules",
    "rule_to_json",
    "rules_from",
    "rules_to_json",
]

FORMAT = 1
"Version of the document's form. A document of a later form is refused, because its rules may mean something else."
MAX_RULES = 100
MAX_BYTES = 1 << 20
"Maximum size of a document in bytes."
MAX_NAME_CHARS = 100
MAX_ITEMS = 1_000
"Maximum number of item ids in one condition."
MAX_NAMED = 20
"Maximum number of names, and of values of a name, in a condition on attributes or context."
MAX_FACTOR = 1_000.0
MAX_PRICE = 3e38
MAX_DAYS = 36_500.0
MAX_EVENTS = 1_000_000
PER_CATEGORY = "category"


class Kind(enum.StrEnum):
    """What a rule does."""

    BOOST = "boost"
    BURY = "bury"
    PIN = "pin"
    REQUIRE = "require"
    CAP = "cap"
    FRESH = "fresh"


Named = Mapping[str, tuple[str, ...]]
"Accepted values by name."


@dataclass(frozen=True, slots=True)
class Where:
    """Conditions on an item. It matches if all given ones hold; without any it matches every item."""

    categories: tuple[str, ...] = ()
    "The item has one of these."
    price_from: float | None = None
    price_to: float | None = None
    "Inclusive bounds of the price, compared as float32. An item without a price does not match."
    attributes: Named = field(default_factory=dict)
    "Each named attribute has one of its values."
    items: tuple[str, ...] = ()
    "The item is one of these ids."
    published_within_days: float | None = None
    "The item was published at most so many days ago. An item without a time of publication does not match."


@dataclass(frozen=True, slots=True)
class When:
    """Conditions on a request. The rule applies if all given ones hold; without any it applies to every request."""

    context: Named = field(default_factory=dict)
    "Each named value of the context is one of these."
    categories: tuple[str, ...] = ()
    "The request asks for one of these."


@dataclass(frozen=True, slots=True)
class Pin:
    """An item and its place."""

    item_id: str
    position: int
    "Place in the slate, counted from 0 as in events."


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Fields that its kind does not have keep their defaults."""

    name: str
    kind: Kind
    where: Where = field(default_factory=Where)
    when: When = field(default_factory=When)
    from_ms: int | None = None
    until_ms: int | None = None
    "The rule applies from `from_ms` to before `until_ms` (epoch ms)."
    factor: float = 1.0
    "Factor of the score: above 1 for a boost, below 1 for a bury."
    pins: tuple[Pin, ...] = ()
    least: int = 0
    first: int = 0
    "At least `least` of the slate's first `first` places hold a matching item."
    most: int = 0
    per: str | None = None
    "At most `most` places hold a matching item, or a matching item of the same first category where `per` is `category`."
    share: float = 0.0
    fewer_than: int = 0
    "Share of the slate's places that hold an item with fewer than `fewer_than` events."

    def live(self, now_ms: int) -> bool:
        """Return whether the rule has begun and has not expired."""
        return (self.from_ms is None or self.from_ms <= now_ms) and not self.expired(now_ms)

    def expired(self, now_ms: int) -> bool:
        """Return whether the rule will never apply again."""
        return self.until_ms is not None and self.until_ms <= now_ms


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules that serve together. Their order decides among rules of a kind: an earlier one goes first."""

    version: int
    "The author's number of this set, or the time of publication in epoch ms where the author gives none."
    rules: tuple[Rule, ...] = ()


def decode_rules(value: bytes) -> RuleSet:
    """Parse and validate a document.

    Raises:
        BadRules: `too_large`, `not_json`, `too_deep`, or as `rules_from`.
    """
    if len(value) > MAX_BYTES:
        raise BadRules("too_large", f"the rules have {len(value)} bytes, at most {MAX_BYTES} are possible")
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError as exc:
        code, what = json_fault(exc)
        raise BadRules(code, f"the document of rules is {what}") from exc
    return rules_from(document)


def encode_rules(rules: RuleSet) -> bytes:
    """Write a rule set in its canonical form, which is what the topic holds."""
    return orjson.dumps(rules_to_json(rules), option=orjson.OPT_SORT_KEYS)


def rules_from(document: object) -> RuleSet:
    """Build a rule set from an untrusted document.

    Raises:
        BadRules: `newer_format`; `missing_field` or `invalid_field`, the field is named (`rules[2].factor`);
            `contradictory_rules`, both rules are named.
    """
    if not isinstance(document, Mapping):
        raise BadRules("invalid_field", 'rules must be an object {"version", "rules": [...]}', "rules")
    version = document.get("format", FORMAT)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise BadRules("invalid_field", f"format must be a whole number from 1, is {shown(version)}", "format")
    if version > FORMAT:
        raise BadRules(
            "newer_format", f"the rules have format {version}, this Riffle reads {FORMAT}: update it first", "format"
        )
    get = Fields(document, frozenset(("format", "version", "rules")), BadRules)
    listed = document.get("rules")
    if listed is None:
        get.fail("rules", "rules is missing", "missing_field")
    if not isinstance(listed, list | tuple) or len(listed) > MAX_RULES:
        get.fail("rules", f"rules must be a list of at most {MAX_RULES} rules")
    found = tuple(_rule(entry, f"rules[{n}]") for n, entry in enumerate(listed))
    _check_together(found)
    return RuleSet(get.integer("version", 0, MAX_TIME_MS) or 0, found)


def rules_to_json(rules: RuleSet) -> dict[str, object]:
    """Return the canonical document: conditions and fields that are not given are left out."""
    return {"format": FORMAT, "version": rules.version, "rules": [rule_to_json(rule) for rule in rules.rules]}


COMMON = ("name", "kind", "when", "from", "until")
OWN: Mapping[Kind, tuple[str, ...]] = {
    Kind.BOOST: ("where", "factor"),
    Kind.BURY: ("where", "factor"),
    Kind.PIN: ("pins",),
    Kind.REQUIRE: ("where", "least", "first"),
    Kind.CAP: ("where", "most", "per"),
    Kind.FRESH: ("where", "share", "fewer_than"),
}
"Fields of each kind beside the common ones."


def _rule(source: object, at: str) -> Rule:
    if not isinstance(source, Mapping):
        raise BadRules("invalid_field", f"{at} must be an object", at)
    kinds = ", ".join(Kind)
    kind = source.get("kind")
    if kind is None:
        raise BadRules("missing_field", f"{at}.kind is missing; it is one of {kinds}", f"{at}.kind")
    if not isinstance(kind, str) or kind not in set(Kind):
        raise BadRules("invalid_field", f"{at}.kind must be one of {kinds}, is {shown(kind)}", f"{at}.kind")
    of = Kind(kind)
    get = Fields(source, frozenset((*COMMON, *OWN[of])), BadRules, f"{at}.")
    name = _text(get, "name")
    where, when = _where(source.get("where"), f"{at}.where"), _when(source.get("when"), f"{at}.when")
    if where == Where() and (of in {Kind.BOOST, Kind.BURY, Kind.REQUIRE} or (of is Kind.CAP and source.get("per") is None)):
        get.fail("where", f"where is missing: a {kind} without a condition would match every item", "missing_field")
    begins, ends = get.time_ms("from"), get.time_ms("until")
    if begins is not None and ends is not None and begins >= ends:
        get.fail("until", f"until must be later than from, is {ends}")
    return Rule(name, of, where, when, begins, ends, **PARTS[of](get))


def _factor(get: Fields, low: float, high: float) -> dict[str, Any]:
    factor = get.number("factor")
    if factor is None:
        get.fail("factor", "factor is missing", "missing_field")
    if not (low < factor <= high if low >= 1 else low < factor < high):
        get.fail("factor", f"factor must lie between {low:g} and {high:g}, is {factor:g}")
    return {"factor": factor}


def _pins(get: Fields) -> dict[str, Any]:
    listed = get.source.get("pins")
    if listed is None:
        get.fail("pins", "pins is missing", "missing_field")
    if not isinstance(listed, list | tuple) or not 0 < len(listed) <= MAX_K:
        get.fail("pins", f'pins must be a list of 1 to {MAX_K} entries {{"item_id", "position"}}')
    pins = []
    for n, entry in enumerate(listed):
        at = f"{get.within}pins[{n}]"
        if not isinstance(entry, Mapping):
            raise BadRules("invalid_field", f'{at} must be {{"item_id", "position"}}', at)
        inner = Fields(entry, frozenset(("item_id", "position")), BadRules, f"{at}.")
        pins.append(Pin(inner.identifier("item_id"), _whole(inner, "position", 0, MAX_K - 1)))
    for name in ("position", "item_id"):
        values = [getattr(pin, name) for pin in pins]
        for n, value in enumerate(values):
            if value in values[:n]:
                at = f"{get.within}pins[{n}].{name}"
                raise BadRules("contradictory_rules", f"{at}: {name} {shown(value)} is pinned twice", at)
    return {"pins": tuple(pins)}


def _required(get: Fields) -> dict[str, Any]:
    least, first = _whole(get, "least", 1, MAX_K), _whole(get, "first", 1, MAX_K)
    if least > first:
        get.fail("least", f"least must be at most first, is {least} of {first}", "contradictory_rules")
    return {"least": least, "first": first}


def _cap(get: Fields) -> dict[str, Any]:
    per = get.source.get("per")
    if per not in (None, PER_CATEGORY):
        get.fail("per", f"per must be {PER_CATEGORY}, is {shown(per)}")
    return {"most": _whole(get, "most", 0 if per is None else 1, MAX_K), "per": per}


def _fresh(get: Fields) -> dict[str, Any]:
    share = get.number("share")
    if share is None:
        get.fail("share", "share is missing", "missing_field")
    if not 0 < share <= 1:
        get.fail("share", f"share must be above 0 and at most 1, is {share:g}")
    return {"share": share, "fewer_than": _whole(get, "fewer_than", 1, MAX_EVENTS)}


PARTS: Mapping[Kind, Callable[[Fields], dict[str, Any]]] = {
    Kind.BOOST: lambda get: _factor(get, 1.0, MAX_FACTOR),
    Kind.BURY: lambda get: _factor(get, 0.0, 1.0),
    Kind.PIN: _pins,
    Kind.REQUIRE: _required,
    Kind.CAP: _cap,
    Kind.FRESH: _fresh,
}


def _whole(get: Fields, name: str, low: int, high: int) -> int:
    value = get.integer(name, low, high)
    if value is None:
        get.fail(name, f"{name} is missing", "missing_field")
    return value


def _text(get: Fields, name: str) -> str:
    value = get.source.get(name)
    if value is None:
        get.fail(name, f"{name} is missing", "missing_field")
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARS or not _is_unicode(value):
        get.fail(name, f"{name} must be text of 1 to {MAX_NAME_CHARS} characters, is {shown(value)}")
    return value


def _is_unicode(*texts: str) -> bool:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _strings(get: Fields, name: str, most: int) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(get.strings(name, most)))
    if get.source.get(name) is not None and not found:
        get.fail(name, f"{name} must not be empty")
    if not _is_unicode(*found):
        get.fail(name, f"an entry of {name} is not valid Unicode")
    return found


def _named(get: Fields, name: str) -> Named:
    """Read accepted values by name: one value, or a list of them."""
    source = get.source.get(name)
    if source is None:
        return {}
    if not isinstance(source, Mapping) or not 0 < len(source) <= MAX_NAMED:
        get.fail(name, f"{name} must be an object of 1 to {MAX_NAMED} names")
    found = {}
    for key, given in source.items():
        values = given if isinstance(given, list | tuple) else (given,)
        if not isinstance(key, str) or not 0 < len(key) <= MAX_ENTRY_CHARS or not _is_unicode(key):
            get.fail(name, f"{name} must have names of 1 to {MAX_ENTRY_CHARS} characters")
        if not 0 < len(values) <= MAX_NAMED or not all(isinstance(value, str | int | float | bool) for value in values):
            get.fail(name, f"{name}.{shown(key)} must be a plain value, or a list of 1 to {MAX_NAMED}")
        texts = tuple(dict.fromkeys(str(v).lower() if isinstance(v, bool) else str(v) for v in values))
        if any(len(text) > MAX_VALUE_CHARS for text in texts) or not _is_unicode(*texts):
            get.fail(name, f"{name}.{shown(key)} must be Unicode of at most {MAX_VALUE_CHARS} characters")
        found[key] = texts
    return found


def _where(source: object, at: str) -> Where:
    if source is None:
        return Where()
    if not isinstance(source, Mapping):
        raise BadRules("invalid_field", f"{at} must be an object", at)
    get = Fields(source, frozenset(Where.__dataclass_fields__), BadRules, f"{at}.")
    low, high = (_price(get, name) for name in ("price_from", "price_to"))
    if low is not None and high is not None and low > high:
        get.fail("price_to", f"price_to must be at least price_from, is {high:g}", "contradictory_rules")
    days = get.number("published_within_days")
    if days is not None and not 0 < days <= MAX_DAYS:
        get.fail("published_within_days", f"published_within_days must be above 0 and at most {MAX_DAYS:g}, is {days:g}")
    categories, items = _strings(get, "categories", MAX_CATEGORIES), _strings(get, "items", MAX_ITEMS)
    if any(len(item_id.encode()) > MAX_ID_BYTES for item_id in items):
        get.fail("items", f"items must be ids of 1 to {MAX_ID_BYTES} bytes")
    return Where(categories, low, high, _named(get, "attributes"), items, days)


def _price(get: Fields, name: str) -> float | None:
    return get.number(name, 0.0)


def _when(source: object, at: str) -> When:
    if source is None:
        return When()
    if not isinstance(source, Mapping):
        raise BadRules("invalid_field", f"{at} must be an object", at)
    get = Fields(source, frozenset(When.__dataclass_fields__), BadRules, f"{at}.")
    return When(_named(get, "context"), _strings(get, "categories", MAX_CATEGORIES))


def _check_together(rules: Sequence[Rule]) -> None:
    """Refuse rules that cannot all be followed; raises BadRules."""
    names: dict[str, int] = {}
    for n, rule in enumerate(rules):
        if rule.name in names:
            message = f"rules[{n}].name: {shown(rule.name)} is the name of rules[{names[rule.name]}], too"
            raise BadRules("contradictory_rules", message, f"rules[{n}].name")
        names[rule.name] = n
    for (_, one), (n, other) in combinations(enumerate(rules), 2):
        if one.kind in CONFLICTS and (field_ := CONFLICTS[one.kind](one, other)) and _may_meet(one, other):
            at = f"rules[{n}].{field_}"
            message = (
                f"{at}: rules {shown(one.name)} and {shown(other.name)} cannot both be followed, and one request may meet both"
            )
            raise BadRules("contradictory_rules", message, at)


def _pin_conflict(one: Rule, other: Rule) -> str:
    if other.kind is not Kind.PIN:
        return ""
    places, items = {pin.position for pin in one.pins}, {pin.item_id for pin in one.pins}
    return "pins" if any(pin.position in places or pin.item_id in items for pin in other.pins) else ""


def _amount_conflict(one: Rule, other: Rule) -> str:
    """Find a cap that is lower than what a requirement of the same items demands."""
    if {one.kind, other.kind} != {Kind.REQUIRE, Kind.CAP} or one.where != other.where:
        return ""
    cap, required = (one, other) if one.kind is Kind.CAP else (other, one)
    if cap.per is not None or cap.most >= required.least:
        return ""
    return "most" if other is cap else "least"


def _share_conflict(one: Rule, other: Rule) -> str:
    return "share" if other.kind is Kind.FRESH and one.share + other.share > 1 else ""


CONFLICTS: Mapping[Kind, Callable[[Rule, Rule], str]] = {
    Kind.PIN: _pin_conflict,
    Kind.REQUIRE: _amount_conflict,
    Kind.CAP: _amount_conflict,
    Kind.FRESH: _share_conflict,
}
"By the earlier rule's kind: the later rule's field that contradicts it, empty if none does."


def _may_meet(one: Rule, other: Rule) -> bool:
    """Return whether one request may meet both rules: their times overlap, and no context value excludes it."""
    for a, b in ((one, other), (other, one)):
        if a.until_ms is not None and b.from_ms is not None and a.until_ms <= b.from_ms:
            return False
    shared = one.when.context.keys() & other.when.context.keys()
    return all(set(one.when.context[name]) & set(other.when.context[name]) for name in shared)


def rule_to_json(rule: Rule) -> dict[str, object]:
    """Return the canonical form of one rule."""
    out: dict[str, object] = {"name": rule.name, "kind": str(rule.kind)}
    if where := _given(rule.where):
        out["where"] = where
    if when := _given(rule.when):
        out["when"] = when
    times = {"from": rule.from_ms, "until": rule.until_ms}
    out |= {name: time for name, time in times.items() if time is not None}
    for name in OWN[rule.kind]:
        if name == "pins":
            out[name] = [{"item_id": pin.item_id, "position": pin.position} for pin in rule.pins]
        elif name != "where" and (value := getattr(rule, name)) is not None:
            out[name] = value
    return out


def _given(conditions: Where | When) -> dict[str, object]:
    out: dict[str, object] = {}
    for name in conditions.__dataclass_fields__:
        value = getattr(conditions, name)
        if isinstance(value, Mapping):
            value = {key: list(values) for key, values in value.items()}
        elif isinstance(value, tuple):
            value = list(value)
        if value not in (None, [], {}):
            out[name] = value
    return out
