"""Reporting the progress of a training on its topic, from a thread beside the training."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

from aiokafka.errors import KafkaError

from schemas.settings import Settings
from schemas.trainings import RUNNING, TrainingProgress, encode_progress
from streams.kafka import connect
from streams.kafka.error_codes import advice_of

__all__ = ["REPORT_S", "Announcer"]

REPORT_S = 5.0
"Seconds between two reports, also of a training that does not get on, so that its end is noticed."
LOOK_S = 0.5
AGAIN_S = 30.0
"Seconds after which an unreachable Kafka is tried again."
SEND_S = 10.0
"Maximum seconds for connecting, and for one report."


class Announcer:
    """Sends what `newest` returns every `REPORT_S`, at once when the part changes, and once more at the end.

    Reports are lost while Kafka cannot be reached or refuses them: then `warn` is called once with the reason, and the training
    goes on. `newest` returns None while there is nothing to report; it is called from the thread.
    """

    def __init__(self, settings: Settings, newest: Callable[[], TrainingProgress | None], warn: Callable[[str], None]) -> None:
        self._settings = settings
        self._newest = newest
        self._warn: Callable[[str], None] | None = warn
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="training reports", daemon=True)

    def start(self) -> None:
        """Begin to report."""
        self._thread.start()

    def stop(self) -> None:
        """Report the end, and wait for it for at most twice `SEND_S`."""
        self._ended.set()
        self._thread.join(2 * SEND_S)

    def _run(self) -> None:
        asyncio.run(self._report())

    async def _report(self) -> None:
        sent: TrainingProgress | None = None
        while True:
            try:
                sent = await self._connected(sent)
            except (KafkaError, TimeoutError, OSError) as exc:
                self._say(advice_of(exc))
            if self._ended.is_set():
                return
            for _ in range(round(AGAIN_S / LOOK_S)):
                if self._ended.is_set():
                    break
                await asyncio.sleep(LOOK_S)

    def _say(self, reason: str) -> None:
        warn, self._warn = self._warn, None
        if warn is not None:
            warn(reason)

    async def _connected(self, sent: TrainingProgress | None) -> TrainingProgress | None:
        """Report over one connection until the training has ended; returns what was sent last."""
        producer = connect.producer(self._settings.kafka, connect.DURABLE)
        loop, topic = asyncio.get_running_loop(), self._settings.topic("trainings")
        try:
            await asyncio.wait_for(producer.start(), SEND_S)
            due = loop.time()
            while True:
                ended, found = self._ended.is_set(), self._newest()
                changed = found is not None and (sent is None or (found.part, found.state) != (sent.part, sent.state))
                if found is not None and (changed or ended or loop.time() >= due):
                    value, key = encode_progress(found), found.training.encode()
                    await asyncio.wait_for(producer.send_and_wait(topic, value, key=key, partition=0), SEND_S)
                    sent, due = found, loop.time() + REPORT_S
                if ended or (found is not None and found.state != RUNNING):
                    return sent
                await asyncio.sleep(LOOK_S)
        finally:
            with suppress(KafkaError, TimeoutError, OSError):
                await asyncio.wait_for(producer.stop(), SEND_S)
