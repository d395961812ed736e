"""Silences messages of training libraries that users cannot act on. Riffle reports the libraries' errors itself."""

from __future__ import annotations

import logging
import os

__all__ = ["LIBRARIES", "quiet"]

LIBRARIES = ("PIL", "aiohttp", "filelock", "httpx", "huggingface_hub", "onnxscript", "torch", "transformers", "urllib3")
"Loggers that print warnings to stderr, through their own handlers or Python's handler of last resort."


def quiet() -> None:
    """Hide these libraries' log messages, unless logging is configured. Must be called before the libraries are used."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        if not logging.getLogger().handlers and not any(isinstance(one, logging.NullHandler) for one in logger.handlers):
            logger.addHandler(logging.NullHandler())
