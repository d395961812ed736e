"""Releases: folders of learned parts. A release that does not match its manifest exactly is refused.

    manifest.json       format, feature spec, heads, sizes, sha256 of every file
    item_ids.json       ids of the n trained items
    item_vectors.npy    float32 (n, d): retrieval vectors, the last column is the item's bias
    text_projection.npy image_projection.npy   float32 (raw + 1, kept): from an encoder's vectors to `text` and `image` of the
                        item tower; the last row is the offset. For items that training did not see (format 2)
    text.npy image.npy  float32 (n, ·): content vectors for features, 0 where missing
    present.npy         bool (n, 2): has text, has image
    met.npy             bool (n,): training had interactions with it; the vectors of others come from their content (format 3)
    ease_index.npy      int32 (n, m), ease_weight.npy float32 (n, m): heaviest item-to-item weights, -1 where none
    transition_index.npy int32 (n, m), transition_weight.npy float32 (n, m): items that follow an item in sessions, heaviest
                        first, -1 after the last; transition_lags.npy float32 (l,): weights of the newest events, newest first
                        (format 4, of releases with transitions)
    user_tower.onnx     recent history → user vector
    item_tower.onnx     content alone → item vector, for items that training did not see
    ranker.onnx         features → calibrated probability per head
    weights.safetensors optional: weights for a warm start of training; serving checks the file and does not load it

Format 4 is format 3 with transitions; a release without them is written as format 3. Format 1 has no projections, so that new
items have vectors from words and categories only. In releases before format 3 all items count as trained with interactions.

A release holds no code that Python would run: only JSON, NumPy arrays without pickle and ONNX graphs without external data.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.items.texts import Ids, Packed
from models.items.vectors import MODALITIES
from models.release.transitions import LAGS, TRANSITIONS, Transitions
from models.rules import PositiveRule
from models.units import DAY_MS
from schemas.errors import ReleaseRejected, RiffleError

__all__ = [
    "FILES",
    "FILES_OF",
    "FORMAT",
    "MAX_FILE_BYTES",
    "MAX_MANIFEST_BYTES",
    "OPTIONAL",
    "WEIGHTS",
    "WITH_TRANSITIONS",
    "Head",
    "Manifest",
    "Release",
    "list_releases",
    "manifest_sha256",
    "plain_file",
    "read_manifest",
    "write_release",
]

FORMAT = 3
"Format of a release without transitions."
WITH_TRANSITIONS = 4
"Format of a release with transitions."
ARRAYS: Mapping[str, tuple[str, int]] = {
    "item_vectors.npy": ("<f4", 2),
    "text.npy": ("<f4", 2),
    "image.npy": ("<f4", 2),
    "present.npy": ("|b1", 2),
    "ease_index.npy": ("<i4", 2),
    "ease_weight.npy": ("<f4", 2),
}
MET = "met.npy"
SHAPED = ("present.npy", "ease_index.npy", "ease_weight.npy")
PROJECTIONS = ("text_projection.npy", "image_projection.npy")
GRAPHS = ("user_tower.onnx", "item_tower.onnx", "ranker.onnx")
WEIGHTS = "weights.safetensors"
FILES_OF: Mapping[int, frozenset[str]] = {
    1: frozenset((*ARRAYS, *GRAPHS, "item_ids.json")),
    2: frozenset((*ARRAYS, *PROJECTIONS, *GRAPHS, "item_ids.json")),
    3: frozenset((*ARRAYS, MET, *PROJECTIONS, *GRAPHS, "item_ids.json")),
    4: frozenset((*ARRAYS, MET, *TRANSITIONS, *PROJECTIONS, *GRAPHS, "item_ids.json")),
}
"Files of a release, by format."
FILES = FILES_OF[FORMAT]
OPTIONAL = frozenset((WEIGHTS,))
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILE_BYTES = 8 << 30


CONTENT_PARTS = frozenset({"words", *MODALITIES})
LEAST_CONTENT = 1e-3
"Minimum weight of a content part, because the square root of a smaller weight could round to 0."


@dataclass(frozen=True, slots=True)
class Head:
    """A prediction of the ranker. `action` is an action's name, or `positive` for the dataset's positive rule."""

    action: str
    weight: float
    "Weight of the head in the ranking score."
    window_ms: int = DAY_MS
    "Window after a user's first interaction with an item in which the action counts."


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of a release: `manifest.json`."""

    name: str
    feature_spec: str
    heads: Sequence[Head]
    positive: str
    "Positive rule: the expression over event columns that defines liked events."
    actions: Sequence[str]
    "Actions with a feature slot of their own, most frequent first; all others share the last slot."
    value_mean: float
    value_deviation: float
    light: Mapping[str, float]
    "Weight of each source's normalised score in the light score."
    trained_until_ms: int
    "Newest event time that training saw."
    trained_events: int
    metrics: Mapping[str, Any] = field(default_factory=dict)
    "Metrics of the gate and of training."
    parent: str = "none"
    "Name of the release that the gate compared it with."
    format: int = FORMAT
    files: Mapping[str, str] = field(default_factory=dict)
    "sha256 of every file, hexadecimal."
    encoders: Mapping[str, str] = field(default_factory=dict)
    "Encoder whose vectors the projection takes, by modality that training saw."
    content: Mapping[str, float] = field(default_factory=dict)
    "Weight of each of CONTENT_PARTS in the content similarity of items; 1 for a part without an entry."

    def to_bytes(self) -> bytes:
        """Encode as JSON; equal manifests give equal bytes."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Decode the bytes of `to_bytes`.

        Raises:
            ReleaseRejected: the bytes are not a manifest of a supported format.
        """
        try:
            fields = json.loads(data)
            if not isinstance(fields, dict):
                raise TypeError("not an object")
            if fields.get("format") not in FILES_OF:
                raise ReleaseRejected(
                    "unknown_format",
                    f"its format is {fields.get('format')!r}, this Riffle reads up to {max(FILES_OF)}",
                )
            fields["heads"] = tuple(
                Head(str(h["action"]), float(h["weight"]), int(h.get("window_ms", DAY_MS))) for h in fields["heads"]
            )
            made = cls(**fields)
            PositiveRule(made.positive)
            numbers = (
                made.value_mean,
                made.value_deviation,
                *made.light.values(),
                *made.content.values(),
                *(h.weight for h in made.heads),
            )
            if not set(made.content) <= CONTENT_PARTS or not all(LEAST_CONTENT <= w <= 1 for w in made.content.values()):
                raise ValueError(
                    f"content weights must be for {', '.join(sorted(CONTENT_PARTS))}, each between {LEAST_CONTENT} and 1"
                )
            if not made.heads or not all(isinstance(n, int | float) and np.isfinite(n) for n in numbers):
                raise ValueError("heads, weights and value statistics must be finite numbers")
            texts = (*made.actions, *made.files, *made.files.values(), *made.encoders, *made.encoders.values(), made.name)
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("names must be text")
        except ReleaseRejected:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, RiffleError) as exc:
            raise ReleaseRejected("bad_manifest", f"the manifest cannot be read: {exc}") from exc
        if not NAME.fullmatch(made.name):
            raise ReleaseRejected("bad_manifest", f"the release's name {made.name[:80]!r} must match {NAME.pattern}", "name")
        wrong = (set(made.files) - OPTIONAL) ^ FILES_OF[made.format]
        if made.files and wrong:
            raise ReleaseRejected(
                "wrong_files",
                f"release {made.name} must list the files of its format: {sorted(wrong)[:5]} are missing or unknown",
            )
        return made


def _digest(path: Path) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def plain_file(folder: Path, name: str, limit: int) -> Path:
    """Return the path of a regular file of at most `limit` bytes directly in `folder`; raises ReleaseRejected."""
    path = folder / name
    if not folder.is_dir():
        raise ReleaseRejected("not_found", f"there is no release {folder.name!r} in {folder.parent}")
    try:
        size = path.lstat().st_size
    except OSError as exc:
        raise ReleaseRejected("missing_file", f"release {folder.name} lacks {name}", name) from exc
    if path.is_symlink() or not path.is_file() or size > limit:
        raise ReleaseRejected("bad_file", f"{name} of release {folder.name} is not a plain file of at most {limit} bytes", name)
    return path


def read_manifest(folder: Path, sha256: str | None = None) -> Manifest:
    """Read a release's manifest; if `sha256` is given, from an announcement, the manifest's bytes must have that hash.

    Raises:
        ReleaseRejected: the manifest is missing or unreadable, or not the announced one.
    """
    data = plain_file(folder, "manifest.json", MAX_MANIFEST_BYTES).read_bytes()
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise ReleaseRejected(
            "manifest_changed", f"the manifest of {folder.name} is not the one that was announced", "manifest"
        )
    return Manifest.parse(data)


def manifest_sha256(folder: Path) -> str:
    """Return the hash of a release's manifest. It pins the release, because the manifest holds the hashes of all files."""
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


class Release:
    """A verified release in memory: arrays memory-mapped, graphs as bytes."""

    def __init__(
        self, manifest: Manifest, arrays: Mapping[str, NDArray[Any]], graphs: Mapping[str, bytes], ids: Sequence[str]
    ) -> None:
        self.manifest = manifest
        self.item_ids = ids
        self.item_vectors: NDArray[np.float32] = arrays["item_vectors.npy"]
        self.text: NDArray[np.float32] = arrays["text.npy"]
        self.image: NDArray[np.float32] = arrays["image.npy"]
        self.present: NDArray[np.bool_] = arrays["present.npy"]
        self.met: NDArray[np.bool_] = arrays[MET] if MET in arrays else np.ones(len(ids), np.bool_)
        self.ease_index: NDArray[np.int32] = arrays["ease_index.npy"]
        self.ease_weight: NDArray[np.float32] = arrays["ease_weight.npy"]
        self.transitions = Transitions.of(arrays) if LAGS in arrays else None
        "Transitions of items in sessions; None in a release without them."
        self.projections: Mapping[str, NDArray[np.float32]] = {
            name.removesuffix("_projection.npy"): arrays[name] for name in PROJECTIONS if name in arrays
        }
        "Projections by modality; empty in a release of format 1."
        self.graphs = graphs

    @property
    def name(self) -> str:
        """Name of the release."""
        return self.manifest.name

    @classmethod
    def open(cls, folder: Path, sha256: str | None = None) -> Release:
        """Verify every file against the manifest, then load the release.

        Raises:
            ReleaseRejected: a file is missing, changed, unknown or inconsistent.
        """
        manifest = read_manifest(folder, sha256)
        if not manifest.files:
            raise ReleaseRejected("wrong_files", f"release {manifest.name} lists no files")
        if manifest.name != folder.name:
            raise ReleaseRejected("wrong_name", f"release {manifest.name} lies in a folder named {folder.name}", "name")
        extra = {path.name for path in folder.iterdir()} - set(manifest.files) - {"manifest.json"}
        if extra:
            raise ReleaseRejected("wrong_files", f"release {manifest.name} holds files it does not list: {sorted(extra)[:5]}")
        for name, digest in manifest.files.items():
            if _digest(plain_file(folder, name, MAX_FILE_BYTES)) != digest:
                raise ReleaseRejected("checksum", f"{name} of release {manifest.name} does not match its checksum", name)
        arrays = {name: _array(folder / name, kind, rank) for name, (kind, rank) in ARRAYS.items()}
        if MET in manifest.files:
            arrays[MET] = _array(folder / MET, "|b1", 1)
        followers = {name: _array(folder / name, *kind) for name, kind in TRANSITIONS.items() if name in manifest.files}
        graphs = {name: (folder / name).read_bytes() for name in GRAPHS}
        projections = {name: _array(folder / name, "<f4", 2) for name in PROJECTIONS if name in manifest.files}
        try:
            ids = json.loads((folder / "item_ids.json").read_bytes())
        except ValueError as exc:
            raise ReleaseRejected("bad_file", f"item_ids.json: {exc}", "item_ids.json") from exc
        if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids) or len(set(ids)) != len(ids):
            raise ReleaseRejected("bad_file", "item_ids.json must list distinct ids", "item_ids.json")
        _check_arrays(manifest.name, arrays, projections, len(ids))
        if followers:
            Transitions.of(followers).check(manifest.name, len(ids))
        # packed, because a million strings would take 90 MB
        return cls(
            manifest, {**arrays, **followers, **projections}, graphs, Ids(Packed.of((i.encode() for i in ids), len(ids)))
        )


def _check_arrays(name: str, arrays: Mapping[str, NDArray[Any]], projections: Mapping[str, NDArray[Any]], n_items: int) -> None:
    """Check that the arrays fit each other and are finite; raises ReleaseRejected."""
    wrong = [file for file, array in arrays.items() if len(array) != n_items]
    if wrong or arrays["present.npy"].shape[1] != 2 or arrays["ease_index.npy"].shape != arrays["ease_weight.npy"].shape:
        raise ReleaseRejected("shapes", f"arrays of release {name} differ in length or shape: {', '.join(wrong or SHAPED)}")
    index = arrays["ease_index.npy"]
    if index.size and (int(index.max()) >= n_items or int(index.min()) < -1):
        raise ReleaseRejected("shapes", "ease_index.npy points beyond the items", "ease_index.npy")
    for file, projection in projections.items():
        kept = arrays[file.replace("_projection", "")].shape[1]
        if not len(projection) or projection.shape[1] != kept:
            raise ReleaseRejected("shapes", f"{file} gives {projection.shape[1]} dimensions, the release has {kept}", file)
    for file, array in (*arrays.items(), *projections.items()):
        if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
            raise ReleaseRejected("not_finite", f"{file} of release {name} holds values that are not finite", file)


def _array(path: Path, kind: str, rank: int) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as exc:
        raise ReleaseRejected("bad_file", f"{path.name} is not a NumPy array: {exc}", path.name) from exc
    if array.dtype.str != kind or array.ndim != rank:
        raise ReleaseRejected("shapes", f"{path.name} is {array.dtype.str} of rank {array.ndim}, not {kind} of rank {rank}")
    return array


def write_release(
    root: Path,
    manifest: Manifest,
    arrays: Mapping[str, NDArray[Any]],
    graphs: Mapping[str, bytes],
    ids: Sequence[str],
    weights: bytes = b"",
) -> Path:
    """Write a release below `root` atomically; returns its folder. `weights`, if given, are stored for a warm start.

    The release's name is `manifest.name` followed by a hash of its content, so that equal content has an equal name.
    """
    contents: dict[str, bytes] = {"item_ids.json": json.dumps(list(ids), ensure_ascii=False).encode(), **graphs}
    for name, array in arrays.items():
        out = io.BytesIO()
        np.save(out, np.ascontiguousarray(array), allow_pickle=False)
        contents[name] = out.getvalue()
    if weights:
        contents[WEIGHTS] = weights
    files = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(contents.items())}
    unnamed = {**asdict(manifest), "heads": tuple(manifest.heads), "files": files}
    content_hash = hashlib.sha256(Manifest(**unnamed).to_bytes()).hexdigest()[:10]
    final = Manifest(**{**unnamed, "name": f"{manifest.name}-{content_hash}"})
    root.mkdir(parents=True, exist_ok=True)
    folder = root / final.name
    if folder.exists():
        return folder
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=root))
    try:
        for name, data in contents.items():
            with (part / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        (part / "manifest.json").write_bytes(final.to_bytes())
        part.chmod(0o755)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder


def list_releases(root: Path) -> list[Manifest]:
    """Return the manifests of the releases below `root`, oldest training data first; other folders are skipped."""
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder.is_dir() and not folder.name.startswith("."):
            try:
                found.append(read_manifest(folder))
            except ReleaseRejected:
                continue
    return sorted(found, key=lambda manifest: (manifest.trained_until_ms, manifest.name))
