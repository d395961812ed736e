"""Numbers of the command line, read as everywhere else: by `schemas.parsing`, within bounds."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import click

from schemas.parsing import finite_number, whole_number

__all__ = ["Number", "Whole"]

N = TypeVar("N", int, float)


class _Bounded(click.ParamType, Generic[N]):
    def __init__(self, low: N | None = None, high: N | None = None) -> None:
        """`low` and `high`: the smallest and the largest value, None where there is none."""
        self._low: N | None = low
        self._high: N | None = high

    def _read(self, text: str) -> N:
        raise NotImplementedError

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> N:
        """The number of a text; a default is taken as it is."""
        try:
            number: N = self._read(value) if isinstance(value, str) else value
        except ValueError as exc:
            self.fail(str(exc), param, ctx)
        low, high = self._low, self._high
        if (low is not None and number < low) or (high is not None and number > high):
            if high is None:
                bounds = f"at least {low:g}"
            else:
                bounds = f"at most {high:g}" if low is None else f"from {low:g} to {high:g}"
            self.fail(f"must be {bounds}, is {value}", param, ctx)
        return number


class Whole(_Bounded[int]):
    """A whole number, by `whole_number`."""

    name = "integer"

    def _read(self, text: str) -> int:
        return whole_number(text)


class Number(_Bounded[float]):
    """A finite number, by `finite_number`."""

    name = "number"

    def _read(self, text: str) -> float:
        return finite_number(text)
