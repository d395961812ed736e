"""Checks that current schemas can read records of earlier versions, by the Apache Avro implementation's rules."""

from __future__ import annotations

import json
from pathlib import Path

import avro.schema
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

from schemas.codec import FOLDER, NAMES, schema_text

__all__ = ["check_all", "incompatibilities"]


def incompatibilities(reader: str, writer: str) -> list[str]:
    """Return the reasons why schema text `reader` cannot read records written with `writer`; empty if it can."""
    result = ReaderWriterCompatibilityChecker().get_compatibility(avro.schema.parse(reader), avro.schema.parse(writer))
    if result.compatibility is SchemaCompatibilityType.compatible:
        return []
    return sorted(str(message) for message in result.messages) or ["incompatible"]


def check_all(folder: Path = FOLDER) -> dict[str, list[str]]:
    """Return the incompatibilities of every current schema with its previous versions, by `name/version`."""
    found: dict[str, list[str]] = {}
    for name in NAMES:
        for path in sorted((folder / "previous" / name).glob("*.avsc")):
            problems = incompatibilities(schema_text(name), json.dumps(json.loads(path.read_text(encoding="utf-8"))))
            if problems:
                found[f"{name}/{path.stem}"] = problems
    return found
