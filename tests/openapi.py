"""The OpenAPI document as tests use it: validators of its schemas, and its strict form, in which nothing may be undescribed."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from agents.web.contract.document import document
from agents.web.routes import described_routes

__all__ = ["closed", "described", "validator_of"]


@cache
def described() -> dict[str, Any]:
    """The document."""
    return document(described_routes())


def validator_of(name: str, source: dict[str, Any] | None = None) -> Draft202012Validator:
    """A validator of one of the document's schemas, or of those of another document; made once for each."""
    return _validator(name, _Source(described() if source is None else source))


class _Source:
    """A document as a key, by identity."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Source) and other.found is self.found

    def __hash__(self) -> int:
        return id(self.found)


@cache
def _validator(name: str, source: _Source) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": source.found["components"]})


def closed(source: dict[str, Any]) -> dict[str, Any]:
    """A copy of a document in which an object has no other properties than the described ones."""
    found = copy.deepcopy(source)
    _close(found)
    return found


def _close(value: Any) -> None:
    if isinstance(value, list):
        for entry in value:
            _close(entry)
    elif isinstance(value, dict):
        if "properties" in value and value.get("type") in ("object", ["object", "null"]):
            value.setdefault("additionalProperties", False)
        for entry in value.values():
            _close(entry)
