"""A release bound to the rows of a shelf: its vectors by item row and its indexes, which the workers of a machine map."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.items.mapped import MANIFEST, Column, Mapped, open_folder, write_folder
from models.release.nearest import InvertedLists
from models.release.release import Release
from schemas.errors import StoreCorrupt

__all__ = ["BY_ROW", "Bound", "find_bound", "open_bound", "write_bound"]

PREFIX = "model"
BY_ROW: Mapping[str, float] = {"vectors": 0, "content": 0, "met": 0, "number_of_row": -1}
"Columns by item row, and what their room is filled with."
INDEXES = ("learned", "alike")


@dataclass(frozen=True, slots=True)
class Bound:
    """What a serving release knows of the rows of a shelf."""

    columns: Mapping[str, NDArray[Any]]
    "BY_ROW, with room, and `row_of_number`."
    size: int
    "Number of rows."
    stale: NDArray[np.int64]
    "Rows whose columns are not those of the shelf's entry."
    indexes: Mapping[str, tuple[InvertedLists, int, float]]
    "Of `vectors`, by number in the release, and of `content`, by row: inverted file, lists per search, recall. May be empty."


def write_bound(
    root: Path, release: str, shelf: str, room: int, bound: Bound, stopped: Callable[[], bool] = lambda: False
) -> Path:
    """Write below `root` what `release` knows of the rows of `shelf`, in any thread; returns the folder.

    Raises:
        OSError: it cannot be written, or `stopped` has returned True.
    """
    size = bound.size
    columns = {name: Column(bound.columns[name][:size], room, fill) for name, fill in BY_ROW.items()}
    columns |= {"row_of_number": Column(bound.columns["row_of_number"]), "stale": Column(bound.stale)}
    facts: dict[str, Any] = {"release": release, "shelf": shelf, "items": size, "indexes": {}}
    for name, (lists, probes, recall) in bound.indexes.items():
        facts["indexes"][name] = {"probes": probes, "recall": recall}
        columns |= {f"{name}_{part}": Column(array) for part, array in lists.arrays().items()}
    return write_folder(root, PREFIX, facts, columns, stopped=stopped)


def find_bound(root: Path, release: str, shelf: str, without: Collection[Path] = ()) -> Path | None:
    """Return the folder, except `without`, of what `release` knows of the rows of `shelf`; None if nobody wrote it."""
    for folder in sorted(set(root.glob(f"{PREFIX}-*")).difference(without)):
        try:
            facts = json.loads((folder / MANIFEST).read_bytes())["facts"]
            if (facts["release"], facts["shelf"]) == (release, shelf):
                return folder
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return None


def open_bound(folder: Path, release: Release, content: int) -> Bound:
    """Verify and map a folder. `content`: width of the content vectors.

    Raises:
        StoreCorrupt: it does not match its checksums, or does not fit the release.
    """
    mapped = open_folder(folder)
    try:
        made = _bound(mapped)
        _check(made, release, content)
    except (KeyError, TypeError, ValueError, IndexError) as exc:
        raise StoreCorrupt("mapped_arrays", f"{folder} does not fit the release {release.name}: {exc}") from exc
    return made


def _bound(mapped: Mapped) -> Bound:
    arrays = mapped.arrays
    columns = {name: arrays[name] for name in (*BY_ROW, "row_of_number")}
    indexes = {}
    for name, found in mapped.facts["indexes"].items():
        parts = {part: arrays[f"{name}_{part}"] for part in InvertedLists.__slots__}
        indexes[name] = InvertedLists.of(parts), int(found["probes"]), float(found["recall"])
    return Bound(columns, int(mapped.facts["items"]), arrays["stale"], indexes)


def _check(bound: Bound, release: Release, content: int) -> None:
    """Check shapes and what rows and numbers point to; raises ValueError."""
    columns, n, size = bound.columns, len(release.item_ids), bound.size
    kinds = {
        "vectors": ("<f4", (release.item_vectors.shape[1],)),
        "content": ("<f4", (content,)),
        "met": ("|b1", ()),
        "number_of_row": ("<i4", ()),
        "row_of_number": ("<i4", ()),
    }
    for name, (kind, shape) in kinds.items():
        if columns[name].dtype.str != kind or columns[name].shape[1:] != shape:
            raise ValueError(f"{name} has another shape")
    numbers, rows = columns["number_of_row"], columns["row_of_number"]
    if min(len(columns[name]) for name in BY_ROW) < size or len(rows) != n:
        raise ValueError("the number of items differs")
    if numbers.max(initial=-1) >= n or rows.max(initial=-1) >= size or not ((bound.stale >= 0) & (bound.stale < size)).all():
        raise ValueError("a row or number is out of range")
    for name, (lists, _, _) in bound.indexes.items():
        width, most = (release.item_vectors.shape[1], n) if name == "learned" else (content, size)
        starts, centres, held = lists.starts, lists.centres, len(lists.numbers)
        sound = lists.codes.shape == (held, width) and 0 < held <= most and lists.scale.shape == (width,)
        sound = sound and len(starts) == len(centres) + 1 and starts[0] == 0 and starts[-1] == held
        sound = sound and bool((np.diff(starts) >= 0).all()) and lists.numbers.min() >= 0 and lists.numbers.max() < held
        if name not in INDEXES or not sound or (lists.projection.shape[1] or width) != centres.shape[1]:
            raise ValueError(f"the index of {name} is not one")
