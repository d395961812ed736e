"""Building blocks of JSON schemas, as OpenAPI 3.1 has them (JSON Schema 2020-12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "COUNT",
    "NULLABLE_NUMBER",
    "NULLABLE_TEXT",
    "NUMBER",
    "TEXT",
    "TIME_MS",
    "Schema",
    "known",
    "listed",
    "mapped",
    "nullable",
    "ref",
    "structure",
]

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
TIME_MS: Schema = {"type": "integer", "description": "Epoch milliseconds."}
NULLABLE_TEXT: Schema = {"type": ["string", "null"]}
NULLABLE_NUMBER: Schema = {"type": ["number", "null"]}


def ref(name: str) -> Schema:
    """Refer to a schema of the document's components."""
    return {"$ref": f"#/components/schemas/{name}"}


def structure(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None, text: str = "") -> Schema:
    """Return an object with these properties. Others may be added later, so that clients must ignore unknown ones."""
    found: Schema = {"type": "object", "properties": {**required, **(optional or {})}}
    if required:
        found["required"] = list(required)
    return {**found, "description": text} if text else found


def listed(items: Schema, least: int | None = None, most: int | None = None, text: str = "") -> Schema:
    """Return an array."""
    bounds = {name: n for name, n in (("minItems", least), ("maxItems", most)) if n is not None}
    return {"type": "array", "items": items, **bounds, **({"description": text} if text else {})}


def mapped(values: Schema, text: str = "") -> Schema:
    """Return an object with any names."""
    return {"type": "object", "additionalProperties": values, **({"description": text} if text else {})}


def nullable(schema: Schema) -> Schema:
    """Return a schema that also accepts null."""
    return {"anyOf": [schema, {"type": "null"}]}


def known(values: Sequence[str], text: str = "") -> Schema:
    """Return a text with known values. Later versions may add values, so they are listed without being demanded."""
    return {"type": "string", "x-extensible-enum": list(values), **({"description": text} if text else {})}
