"""Declaration of features: groups declare them as functions, and layout and specification derive from the declarations.

To add a feature, add a function to the file of its group, `since` the next generation: releases of earlier generations then
still serve, with the features that they know. To change the meaning of a feature, raise its `version`: releases that read it
are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["KNOWN", "Feature", "Group", "Values", "generations", "layout", "once", "specification"]

View = TypeVar("View")
T = TypeVar("T")
Values = float | NDArray[Any] | None
"One number for all rows, a column `(n,)` or a block `(n, names)`; None leaves zeros."

KNOWN = {"4cf6b4827145c6a5": "f7"}
"Names of layouts that were published before names followed from the digest. Entries are neither added nor changed."


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature's name, and the version of its meaning."""

    name: str
    version: int = 1
    since: int = 1
    "Generation of layouts that first held it. It is no part of the specification's name."


class Group(Generic[View]):
    """Features computed from one type of view, such as `OfItems`, in the order of their declaration."""

    def __init__(self) -> None:
        self.features: tuple[Feature, ...] = ()
        self._compute: list[tuple[int | slice, Callable[[View], Values]]] = []

    @property
    def names(self) -> tuple[str, ...]:
        """Names, in the order of the columns."""
        return tuple(feature.name for feature in self.features)

    def feature(
        self, *names: str, version: int = 1, since: int = 1
    ) -> Callable[[Callable[[View], Values]], Callable[[View], Values]]:
        """Declare a function as the next feature; with several names it returns a block with a column for each."""

        def declare(compute: Callable[[View], Values]) -> Callable[[View], Values]:
            first = len(self.features)
            self.features += tuple(Feature(name, version, since) for name in names)
            self._compute.append((first if len(names) == 1 else slice(first, first + len(names)), compute))
            return compute

        return declare

    def fill(self, out: NDArray[Any], view: View) -> None:
        """Write all features of a view to `out` `(n, len(self.names))`, which holds zeros."""
        for place, compute in self._compute:
            values = compute(view)
            if values is not None:
                out[:, place] = values


class once(Generic[T]):  # noqa: N801 - used as a decorator
    """A property that is computed when it is first read: `functools.cached_property` without Python 3.11's lock."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, view: Any, owner: type | None = None) -> T:
        value = view.__dict__[self._name] = self._compute(view)
        return value


def layout(groups: Iterable[Group[Any]]) -> tuple[tuple[Feature, ...], tuple[slice, ...]]:
    """Concatenate the features of the groups; returns them and the columns of each group.

    Raises:
        ValueError: two features have the same name.
    """
    features: tuple[Feature, ...] = ()
    columns = []
    for group in groups:
        columns.append(slice(len(features), len(features) + len(group.features)))
        features += group.features
    names = [feature.name for feature in features]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"features that are declared twice: {', '.join(twice)}")
    return features, tuple(columns)


def specification(features: Sequence[Feature]) -> str:
    """Name a layout by KNOWN, else by `f-` and a digest. The name depends on the features' names, order and versions."""
    text = "\n".join(f"{feature.name} {feature.version}" for feature in features)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return KNOWN.get(digest, f"f-{digest}")


def generations(features: Sequence[Feature]) -> dict[str, NDArray[np.intp]]:
    """Columns of each generation's layout within `features`, by the name of its specification, oldest first."""
    found = {}
    for generation in sorted({feature.since for feature in features}):
        columns = [n for n, feature in enumerate(features) if feature.since <= generation]
        found[specification([features[n] for n in columns])] = np.asarray(columns, np.intp)
    return found
