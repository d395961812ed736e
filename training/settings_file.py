"""Training settings as a JSON file: the fields of `LearnSettings` that differ from the standard ones."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from schemas.errors import ConfigError
from schemas.parsing import shown
from training.recipe import LearnSettings

__all__ = ["read_settings", "write_settings"]

T = TypeVar("T")

MOST_BYTES = 1 << 20
BOUNDS: Mapping[str, tuple[float, float]] = {
    "towers.dimensions": (4, 1_024),
    "towers.blocks": (1, 24),
    "towers.attention_heads": (1, 64),
    "towers.epochs": (1, 1_000),
    "towers.batch": (1, 100_000),
    "towers.rate": (1e-7, 1.0),
    "towers.dropout": (0.0, 0.95),
    "towers.weight_decay": (0.0, 10.0),
    "towers.hidden_ids": (0.0, 1.0),
    "towers.hidden_content": (0.0, 0.95),
    "towers.unmet": (0.0, 1.0),
    "towers.resemblance": (0.0, 100.0),
    "towers.other": (0.0, 1.0),
    "ranker.experts": (1, 64),
    "ranker.width": (2, 8_192),
    "ranker.embedding": (1, 256),
    "ranker.buckets": (2, 1_024),
    "ranker.epochs": (1, 1_000),
    "ranker.batch": (1, 100_000),
    "ranker.rate": (1e-7, 1.0),
    "ranker.dropout": (0.0, 0.95),
    "ranker.weight_decay": (0.0, 10.0),
    "ranker.pointwise": (0.0, 100.0),
    "ease_l2": (1e-3, 1e9),
    "neighbours": (1, 4_096),
    "followers": (0, 4_096),
    "replayed_share": (0.01, 0.9),
    "unlearned_share": (0.0, 0.9),
    "queries": (1, 10_000_000),
    "least_steps": (1, 1_000_000),
    "seed": (0, 2**31),
    "towers.seed": (0, 2**31),
    "ranker.seed": (0, 2**31),
    "logged_share": (0.0, 1.0),
    "shown_slates": (0, 10_000_000),
    "heads": (-1_000.0, 1_000.0),
    "windows_s": (1e-3, 1e9),
}
"Smallest and largest value of each numeric setting; for a table, of all its values. Settings not listed are unbounded."
MOST_NAMES = 64


def read_settings(path: Path, standard: LearnSettings) -> LearnSettings:
    """`standard` with the values in the file.

    Raises:
        ConfigError: the file cannot be read, or holds an unknown name or invalid value; the message names file and field.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError("settings_file", f"{path} is not a settings file: it is larger than {MOST_BYTES:,} bytes")
        given = json.loads(path.read_bytes(), object_pairs_hook=_once, parse_constant=_refused)
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError("settings_file", f"{path} cannot be read as JSON: {exc}") from exc
    try:
        made = _merged(standard, given, "")
        if made.towers.dimensions % made.towers.attention_heads:
            dimensions, heads = made.towers.dimensions, made.towers.attention_heads
            message = f"must divide towers.dimensions, which is {dimensions}, and is {heads}"
            raise ConfigError("settings_file", f"towers.attention_heads {message}", "towers.attention_heads")
    except ConfigError as exc:
        raise ConfigError(exc.code, f"{path}: {exc.message}", exc.field) from exc
    return made


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for n, (name, _) in enumerate(pairs) if name in dict(pairs[:n]))
        raise ValueError(f"{shown(twice)} appears twice")
    return found


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not a number in JSON")


def write_settings(path: Path, settings: LearnSettings, standard: LearnSettings) -> None:
    """Write the values that differ from `standard`. The file is written whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps(_differing(settings, standard), indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _differing(settings: Any, standard: Any) -> dict[str, Any]:
    found = {}
    for name in (field.name for field in fields(settings)):
        mine, theirs = getattr(settings, name), getattr(standard, name)
        if is_dataclass(mine):
            if inner := _differing(mine, theirs):
                found[name] = inner
        elif mine != theirs:
            found[name] = mine
    return found


def _merged(standard: T, given: Any, where: str) -> T:
    if not isinstance(given, dict):
        name = where.rstrip(".")
        raise ConfigError("settings_file", f"{name or 'the whole'} must be an object, is {shown(given)}", name or None)
    known = {field.name for field in fields(standard)}  # type: ignore[arg-type]
    changes = {}
    for name, value in given.items():
        if name not in known:
            message = f"there is no setting {shown(where + name)}; known: {', '.join(where + each for each in sorted(known))}"
            raise ConfigError("settings_file", message, f"{where}{name[:80]}")
        before = getattr(standard, name)
        inner = f"{where}{name}"
        changes[name] = _merged(before, value, f"{inner}.") if is_dataclass(before) else _value(inner, before, value)
    return replace(standard, **changes)  # type: ignore[type-var]


def _value(name: str, before: Any, value: Any) -> Any:
    if isinstance(before, dict):
        if not isinstance(value, dict):
            raise ConfigError("settings_file", f"{name} must be an object of numbers by action, is {shown(value)}", name)
        if len(value) > MOST_NAMES:
            raise ConfigError("settings_file", f"{name} has {len(value)} names, at most {MOST_NAMES} can be", name)
        return {inner: _number(f"{name}.{inner[:80]}", BOUNDS[name], inner_value) for inner, inner_value in value.items()}
    if isinstance(before, bool | str):
        if type(value) is not type(before):
            kind = "true or false" if isinstance(before, bool) else "text"
            raise ConfigError("settings_file", f"{name} must be {kind}, is {shown(value)}", name)
        return value
    return _number(name, BOUNDS.get(name, (-math.inf, math.inf)), value, whole=isinstance(before, int))


def _number(name: str, bounds: tuple[float, float], value: Any, *, whole: bool = False) -> Any:
    low, high = bounds
    fits = type(value) is int or (type(value) is float and not whole and math.isfinite(value))
    if not fits or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        within = "" if math.isinf(low) else f" from {low:g} to {high:g}"
        raise ConfigError("settings_file", f"{name} must be {kind}{within}, is {shown(value)}", name)
    return value if whole else float(value)
