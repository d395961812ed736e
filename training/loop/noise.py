"""What libraries of training print of themselves and nobody can act on: silenced. Their errors are reported as Riffle's."""

from __future__ import annotations

import logging
import os

__all__ = ["LIBRARIES", "quiet"]

LIBRARIES = ("PIL", "aiohttp", "filelock", "httpx", "huggingface_hub", "onnxscript", "torch", "transformers", "urllib3")
"Loggers that print warnings to stderr, each with a handler of its own or by Python's last resort."


def quiet() -> None:
    """Keep what these libraries log from the screen, unless somebody has set up logging. Called before they are used."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        if not logging.getLogger().handlers and not any(isinstance(one, logging.NullHandler) for one in logger.handlers):
            logger.addHandler(logging.NullHandler())
