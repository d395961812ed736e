"""Reporting the progress of a training on its topic, from a thread beside the training."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

from aiokafka.errors import KafkaError

from schemas.errors import RiffleError
from schemas.settings import Settings
from schemas.trainings import TrainingProgress, encode_progress
from streams.kafka import connect
from streams.kafka.error_codes import advice_of

__all__ = ["REPORT_S", "Announcer"]

REPORT_S = 5.0
"Seconds between two reports, also of a training that does not get on, so that its end is noticed."
LOOK_S = 0.5
"Seconds between two looks at the progress."
AGAIN_S = 30.0
"Seconds after which an unreachable Kafka is tried again."
SEND_S = 5.0
"Maximum seconds for connecting, for one report, and for closing the connection."
AWAY = (KafkaError, RiffleError, TimeoutError, OSError)
"Errors that lose reports and nothing else."


class Announcer:
    """Sends what `newest` returns every `REPORT_S`, at once when the part or the state changes, and once more at the end.

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
        """Report what `newest` returns now, and wait for that for at most thrice `SEND_S`."""
        self._ended.set()
        self._thread.join(3 * SEND_S)

    def _run(self) -> None:
        asyncio.run(self._report())

    async def _report(self) -> None:
        while True:
            ended = self._ended.is_set()
            try:
                await self._connected()
                return
            except AWAY as exc:
                self._lost(exc)
            if ended:
                return
            await asyncio.to_thread(self._ended.wait, AGAIN_S)

    def _lost(self, error: Exception) -> None:
        warn, self._warn = self._warn, None
        if warn is not None:
            warn("Kafka does not answer in time" if isinstance(error, TimeoutError) else advice_of(error))

    async def _connected(self) -> None:
        """Report over one connection until the training has ended."""
        producer = connect.producer(self._settings.kafka, connect.DURABLE)
        loop, topic = asyncio.get_running_loop(), self._settings.topic("trainings")
        sent, due = ("", ""), 0.0
        try:
            async with asyncio.timeout(SEND_S):
                await producer.start()
            while True:
                ended, found = self._ended.is_set(), self._newest()
                if found is not None and (ended or (found.part, found.state) != sent or loop.time() >= due):
                    value, key = encode_progress(found), found.training.encode()
                    async with asyncio.timeout(SEND_S):
                        await producer.send_and_wait(topic, value, key=key, partition=0)
                    sent, due = (found.part, found.state), loop.time() + REPORT_S
                if ended:
                    return
                await asyncio.sleep(LOOK_S)
        finally:
            with suppress(*AWAY):
                async with asyncio.timeout(SEND_S):
                    await producer.stop()
