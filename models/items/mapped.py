"""Folders of arrays that the processes of a machine map together. They share one copy; a page that one changes is its own.

    manifest.json   format, what the arrays are, and sha256 of every file
    NAME.npy        an array; one by item row ends in room for more rows

A folder is written once, under a name that follows from its content, and never changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import StoreCorrupt

__all__ = ["Column", "Mapped", "open_folder", "remove_parts", "write_folder"]

FORMAT = 1
MANIFEST = "manifest.json"
PART = ".part-"
"Prefix of folders that are being written."
MAX_MANIFEST_BYTES = 1 << 20
LEAST_MAPPED = 4_096
"Size in bytes of the smallest file that is mapped."
PIECE = 16_384
"Rows written at once."


@dataclass(frozen=True, slots=True)
class Column:
    """An array to be written."""

    values: NDArray[Any]
    room: int = 0
    "Number of rows of `fill` after the values."
    fill: float = 0


@dataclass(frozen=True, slots=True)
class Mapped:
    """A verified folder."""

    folder: Path
    facts: Mapping[str, Any]
    "What `write_folder` was given."
    arrays: Mapping[str, NDArray[Any]]
    "By name, mapped copy-on-write: what a process writes, it alone sees."

    @property
    def name(self) -> str:
        """Name of the folder, which follows from its content."""
        return self.folder.name


def write_folder(
    root: Path,
    prefix: str,
    facts: Mapping[str, Any],
    columns: Mapping[str, Column],
    before: Callable[[], None] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Path:
    """Write arrays to a new folder `prefix`-HASH below `root`; returns it. `before` is called before the last array is read.

    Raises:
        OSError: it cannot be written, for example for want of space.
        InterruptedError: `stopped`, which is asked between pieces, has returned True.
    """
    root.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=PART, dir=root))
    try:
        files, last = {}, list(columns)[-1]
        for name, column in columns.items():
            if name == last:
                before()
            files[f"{name}.npy"] = _write(part / f"{name}.npy", column, stopped)
        manifest = json.dumps({"format": FORMAT, "facts": dict(facts), "files": files}, indent=1, sort_keys=True).encode()
        (part / MANIFEST).write_bytes(manifest)
        folder = root / f"{prefix}-{hashlib.sha256(manifest).hexdigest()[:16]}"
        part.chmod(0o755)
        if not folder.exists():
            part.rename(folder)
        return folder
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_parts(root: Path) -> None:
    """Remove what writes that were killed left below `root`. Nobody may be writing."""
    for part in root.glob(f"{PART}*"):
        shutil.rmtree(part, ignore_errors=True)


def _write(path: Path, column: Column, stopped: Callable[[], bool]) -> str:
    """Write an array with its room; returns the sha256 of the file."""
    values, digest = column.values, hashlib.sha256()
    with path.open("wb") as file:
        shape = (len(values) + column.room, *values.shape[1:])
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False, "shape": shape}
        )
        file.flush()
        digest.update(path.read_bytes())
        for start in range(0, shape[0], PIECE):
            if stopped():
                raise InterruptedError(f"writing {path} was stopped")
            piece = np.full((min(PIECE, shape[0] - start), *shape[1:]), column.fill, values.dtype)
            mine = values[start : start + PIECE]
            piece[: len(mine)] = mine
            file.write(piece.data)
            digest.update(piece.data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def open_folder(folder: Path) -> Mapped:
    """Verify a folder's files against its manifest, and map them.

    Raises:
        StoreCorrupt: the folder, or one of its files, is missing, truncated, changed or of another format.
    """
    try:
        with (folder / MANIFEST).open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
        manifest = json.loads(data)
        facts, files = dict(manifest["facts"]), dict(manifest["files"])
        if manifest["format"] != FORMAT or len(data) > MAX_MANIFEST_BYTES:
            raise ValueError(f"format {manifest['format']!r}, this Riffle reads {FORMAT}")
        if not folder.name.endswith(hashlib.sha256(data).hexdigest()[:16]):
            raise ValueError("its manifest has changed")
        arrays = {name.removesuffix(".npy"): _mapped(folder / Path(name).name, digest) for name, digest in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, SyntaxError) as exc:
        raise StoreCorrupt("mapped_arrays", f"the arrays in {folder} cannot be used: {exc}") from exc
    return Mapped(folder, facts, arrays)


def _mapped(path: Path, digest: str) -> NDArray[Any]:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise ValueError(f"{path.name} does not match its checksum")
    # a plain array, because compiled loops would treat a subclass as another type
    if path.stat().st_size < LEAST_MAPPED:  # an empty array cannot be mapped
        return np.asarray(np.load(path, allow_pickle=False))
    array: NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False).view(np.ndarray)
    return array
