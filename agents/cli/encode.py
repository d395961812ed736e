"""`riffle encode`: encodes new and changed items as they arrive. It is a separate process, so that serving needs no torch."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import logging
import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import click
from aiokafka.errors import KafkaError

from agents.cli.own import own_settings
from schemas.errors import NotReady
from schemas.settings import Settings
from streams.encoding import ItemEncoders, ItemEncoding
from streams.kafka import connect
from streams.kafka.topics import ensure_topics
from streams.logs import log_to_stderr

__all__ = ["NO_TORCH", "can_encode", "encode"]

log = logging.getLogger(__name__)

RETRY_S = 5.0
NO_TORCH = "encoding needs torch and transformers: install riffle with its extra `train`"
NICENESS = 10
"Lowers the priority, so that serving comes first on shared cores."


def can_encode() -> bool:
    """Return whether the encoders' dependencies are installed, without importing them."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers", "training"))


def _encoders(settings: Settings) -> ItemEncoders:
    # imported by name, as the commands of training are, because serving code must not import it
    make: Callable[..., ItemEncoders] = importlib.import_module("training.encoders.live").LiveEncoders
    return make(settings.cache / "vectors", settings.text_model, settings.image_hosts)


async def _follow(settings: Settings, encoders: ItemEncoders, registry: Any, *, once: bool) -> Counter[str]:
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    running: list[ItemEncoding] = []

    def stop() -> None:
        stopping.set()
        for encoding in running:
            encoding.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    counters: Counter[str] = Counter()
    while not stopping.is_set():
        encoding = ItemEncoding(settings, encoders, registry)
        running[:] = [encoding]
        try:
            await ensure_topics(settings)
            await encoding.run(once=once)
        except (KafkaError, OSError) as exc:
            if once:
                raise
            log.warning("the broker does not answer, trying again in %.0f s: %r", RETRY_S, exc)
            try:
                async with asyncio.timeout(RETRY_S):
                    await stopping.wait()
            except TimeoutError:
                continue
        finally:
            counters.update(encoding.counters)
        if once:
            break
    return counters


@click.command()
@click.option("--once", is_flag=True, help="End when all items that are on the topic now are encoded.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def encode(once: bool, as_json: bool) -> None:
    """Encode texts and images of new and changed items, and publish their vectors, until SIGTERM or Ctrl-C.

    Workers project the vectors with the release that serves, so that a new item is found by its text and image at once instead
    of with the next release. `riffle up` starts this if torch is installed (RIFFLE_ENCODER).

    Example: RIFFLE_BOOTSTRAP=kafka://broker:9092 riffle encode
    """
    settings = own_settings()
    if not can_encode():
        raise NotReady("no_torch", NO_TORCH)
    log_to_stderr(settings.log_level)
    if once:
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the command reports the reason when it ends
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    registry = connect.registry(settings)
    encoders = _encoders(settings)
    counters = asyncio.run(_follow(settings, encoders, registry, once=once))
    counters.update({f"images_{what}": n for what, n in encoders.counters.items()})
    click.echo(json.dumps(counters) if as_json else ", ".join(f"{name} {n}" for name, n in counters.items()) or "nothing to do")
