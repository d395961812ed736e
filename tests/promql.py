"""Names and labels in PromQL, by a parser of the language."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser as promql

__all__ = ["Uses", "uses_of"]

TARGET_LABELS = {"job", "instance"}
"Labels that Prometheus adds to every series."


@dataclass(frozen=True)
class Uses:
    """A metric in an expression, with the labels that its selector or an aggregation above it names."""

    name: str
    labels: frozenset[str]


def uses_of(expression: str) -> list[Uses]:
    """Every metric that an expression reads. Grafana's variables may occur; raises ValueError for what is no PromQL."""
    plain = expression.replace("$__rate_interval", "5m")
    return list(_walk(promql.parse(re.sub(r"\$\w+", "x", plain)), frozenset()))


def _walk(node: Any, above: frozenset[str]) -> Iterator[Uses]:
    kind = type(node).__name__
    if kind == "VectorSelector":
        labels = {matcher.name for matcher in node.matchers.matchers} | above
        yield Uses(str(node.name), frozenset(labels - TARGET_LABELS - {"le", "__name__"}))
    elif kind == "MatrixSelector":
        yield from _walk(node.vector_selector, above)
    elif kind == "AggregateExpr":
        named = frozenset(node.modifier.labels) if node.modifier is not None else frozenset()
        yield from _walk(node.expr, named or above)
    elif kind == "BinaryExpr":
        yield from _walk(node.lhs, above)
        yield from _walk(node.rhs, above)
    elif kind == "Call":
        for argument in node.args:
            yield from _walk(argument, above)
    elif kind in {"ParenExpr", "SubqueryExpr", "UnaryExpr"}:
        yield from _walk(node.expr, above)
    elif kind not in {"NumberLiteral", "StringLiteral"}:
        raise ValueError(f"{kind} is not known here")
