"""Types of command-line options: numbers are read by the strict parsers, as numbers from anywhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from schemas.parsing import finite_number, whole_number

__all__ = ["Number", "Whole"]

N = TypeVar("N", int, float)


def _read(parse: Callable[[str], N], value: object, least: N | None, most: N | None) -> N:
    """Raises ValueError with a message that completes "NAME …"."""
    found = parse(value if isinstance(value, str) else str(value))
    if (least is not None and found < least) or (most is not None and found > most):
        within = (
            f"be at least {least}" if most is None else f"be at most {most}" if least is None else f"lie in {least}..{most}"
        )
        raise ValueError(f"must {within}, is {found}")
    return found


class Whole(click.ParamType):
    """A whole number, optionally of a range with both ends included."""

    name = "integer"

    def __init__(self, least: int | None = None, most: int | None = None) -> None:
        self._least, self._most = least, most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read an argument; fails as a usage error that shows the value."""
        try:
            return _read(whole_number, value, self._least, self._most)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


class Number(click.ParamType):
    """A finite number, optionally of a range with both ends included."""

    name = "number"

    def __init__(self, least: float | None = None, most: float | None = None) -> None:
        self._least, self._most = least, most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read an argument; fails as a usage error that shows the value."""
        try:
            return _read(finite_number, value, self._least, self._most)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)
