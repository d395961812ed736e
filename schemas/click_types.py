"""Parameter types of the command line and of environment variables, read by the strict parsers of `schemas.parsing`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import click

from schemas.errors import ConfigError
from schemas.parsing import finite_number, whole_number

__all__ = ["Number", "Whole", "whole_variable"]

N = TypeVar("N", int, float)


def _read(parse: Callable[[str], N], value: object, least: N | None, most: N | None) -> N:
    """Parse a number and check its range. Raises ValueError with a message that completes "NAME …"."""
    found = parse(value if isinstance(value, str) else str(value))
    if (least is not None and found < least) or (most is not None and found > most):
        within = (
            f"be at least {least}" if most is None else f"be at most {most}" if least is None else f"lie in {least}..{most}"
        )
        raise ValueError(f"must {within}, is {found}")
    return found


class Whole(click.ParamType):
    """A whole number, optionally within a range that includes both ends."""

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
    """A finite number, optionally within a range that includes both ends."""

    name = "number"

    def __init__(self, least: float | None = None, most: float | None = None) -> None:
        self._least, self._most = least, most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read an argument; fails as a usage error that shows the value."""
        try:
            return _read(finite_number, value, self._least, self._most)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


def whole_variable(environ: Mapping[str, str], name: str, default: int, least: int = 0) -> int:
    """Read a whole number from an environment variable other than the settings; `default` if it is unset or empty.

    Raises:
        ConfigError: the value is not a whole number, or less than `least`; the message names the variable.
    """
    text = environ.get(name, "")
    try:
        return _read(whole_number, text, least, None) if text else default
    except ValueError as exc:
        raise ConfigError("invalid_setting", f"{name} {exc}", name) from exc
