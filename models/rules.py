"""The positive rule: an expression over event columns, evaluated without executing code."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadDataset

__all__ = ["SHOWN", "PositiveRule"]

SHOWN = "impression"
"""Action of an impression: the item was shown. It is not an interaction, so it enters neither the seen-set nor the history.
Training learns from it."""
NAMES = frozenset({"action", "value"})
EXACT = 2**53
"Magnitude up to which every whole number is a float64."
COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
WORDS: Mapping[type[ast.AST], str] = {
    ast.Call: "calls",
    ast.Attribute: "attributes",
    ast.BinOp: "arithmetic",
    ast.UnaryOp: "signs",
    ast.Subscript: "subscripts",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.IfExp: "if",
    ast.Lambda: "functions",
    ast.List: "lists",
    ast.Tuple: "tuples",
    ast.Set: "sets",
    ast.Dict: "dictionaries",
    ast.JoinedStr: "formatted strings",
    ast.NamedExpr: "assignments",
}
"Readable names, for error messages, of syntax that a rule may not use."


class PositiveRule:
    """A rule such as `action == 'rate' and value >= 4.0`: names, constants, comparisons, `and`, `or`, `not`.

    The result equals Python's own evaluation with two exceptions. Comparing an absent value with a number is false, not an
    error. Numbers are compared as float32, the precision in which values are stored, so that `value >= 0.7` holds for 0.7.
    """

    def __init__(self, text: str, name: str = "positive") -> None:
        """Parse a rule; error messages refer to it by `name`.

        Raises:
            BadDataset: the rule does not parse, or uses any other syntax.
        """
        rule = f"{name} rule {text[:200]!r}"
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as exc:
            raise BadDataset("bad_rule", f"{rule} cannot be read: {exc.msg}, at character {exc.offset}", name) from exc
        except (ValueError, RecursionError, MemoryError) as exc:
            raise BadDataset("bad_rule", f"{rule} cannot be read: {exc}", name) from exc
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Name) and node.id not in NAMES:
                known = " and ".join(sorted(NAMES))
                raise BadDataset("bad_rule", f"{rule}: there is no column {node.id}; a rule may use {known}", name)
            if not _allowed(node):
                what = WORDS.get(type(node), f"“{ast.unparse(node)[:40]}”")
                raise BadDataset(
                    "bad_rule",
                    f"{rule} may not use {what}: only comparisons with constants, and, or, not",
                    name,
                )

    def __call__(self, action: str, value: float | None) -> bool:
        """Return whether an event with these columns is positive."""
        exact = None if value is None else float(np.float32(value))
        return bool(_evaluate(self._tree, {"action": action, "value": exact}))

    def many(self, action: str, values: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return whether each of n events of one action is positive: bool `(n,)`. `values`: `(n,)`, NaN for an absent value."""
        absent = np.isnan(values)
        exact = np.where(absent, np.float32(0), values).astype(np.float64)
        out = np.empty(len(values), np.bool_)
        out[:] = _truth(_evaluate_many(self._tree, {"action": action, "value": exact}))
        out[absent] = self(action, None)
        return out


def _allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in NAMES
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    shapes = (ast.Constant, ast.BoolOp, ast.And, ast.Or, ast.Not, ast.Compare, ast.Load)
    return isinstance(node, shapes) or type(node) in COMPARISONS


def _evaluate(node: ast.expr, columns: Mapping[str, Any]) -> Any:  # noqa: PLR0911
    if isinstance(node, ast.Constant):
        return float(np.float32(node.value)) if isinstance(node.value, float) else node.value
    if isinstance(node, ast.Name):
        return columns[node.id]
    if isinstance(node, ast.UnaryOp):
        return not _evaluate(node.operand, columns)
    if isinstance(node, ast.BoolOp):
        parts = (bool(_evaluate(part, columns)) for part in node.values)
        return all(parts) if isinstance(node.op, ast.And) else any(parts)
    assert isinstance(node, ast.Compare)
    left = _evaluate(node.left, columns)
    for compare, other in zip(node.ops, node.comparators, strict=True):
        right = _evaluate(other, columns)
        try:
            if not COMPARISONS[type(compare)](left, right):
                return False
        except TypeError:
            return False
        left = right
    return True


def _evaluate_many(node: ast.expr, columns: Mapping[str, Any]) -> Any:
    """Evaluate as `_evaluate` does, but for all elements of columns that are arrays; the result may be one value for all."""
    if isinstance(node, ast.Constant | ast.Name):
        return _evaluate(node, columns)
    if isinstance(node, ast.UnaryOp):
        return _truth(np.logical_not(_truth(_evaluate_many(node.operand, columns))))
    if isinstance(node, ast.BoolOp):
        decides, join = (False, np.logical_and) if isinstance(node.op, ast.And) else (True, np.logical_or)
        found: Any = not decides
        for part in node.values:
            more = _truth(_evaluate_many(part, columns))
            if more is decides:
                return more
            found = join(found, more)
        return _truth(found)
    assert isinstance(node, ast.Compare)
    operands = [_evaluate_many(operand, columns) for operand in (node.left, *node.comparators)]
    links = [_compared(COMPARISONS[type(op)], *pair) for op, pair in zip(node.ops, pairwise(operands), strict=True)]
    return _truth(functools.reduce(np.logical_and, links))


def _truth(value: Any) -> Any:
    return value.astype(np.bool_) if isinstance(value, np.ndarray) else bool(value)


def _compared(compare: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """Compare two operands, each a value for all or an array of float64 or bool; values that have no order give false."""
    arrays = [operand for operand in (left, right) if isinstance(operand, np.ndarray)]
    if not arrays:
        try:
            return bool(compare(left, right))
        except TypeError:
            return False
    constant = right if arrays[0] is left else left
    if len(arrays) == 2 or isinstance(constant, float) or (isinstance(constant, int) and abs(constant) <= EXACT):
        return compare(left, right)
    if isinstance(constant, int | complex):
        # NumPy rounds large whole numbers and orders complex ones; Python does neither
        pairs = ((element, right) if arrays[0] is left else (left, element) for element in arrays[0].tolist())
        return np.asarray([_compared(compare, *pair) for pair in pairs], np.bool_)
    # a number compares alike with texts and None, whatever the number is
    return _compared(compare, *((0.0, right) if arrays[0] is left else (left, 0.0)))
