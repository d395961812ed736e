"""Load generator that is faster than sending events one by one: records of equal length, built as columns."""

from __future__ import annotations

import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import murmur2
from numpy.typing import NDArray

from schemas.codec import encode
from schemas.settings import Settings

START_MS = 1_700_000_000_000
BATCH_BYTES = 256 << 10
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
EVENT, USER, ITEM, TIME = (11, 16), (28, 8), (37, 6), (43, 6)
"Offset and length in bytes of each field in a record of the template."


class Firehose:
    """Sends distinct events with uniform users and Zipf items. Keys are partitioned as by any producer."""

    def __init__(self, settings: Settings, users: int, items: int) -> None:
        self._settings, self._items = settings, items
        self._rng = np.random.default_rng(5)
        self._keys = [b"u%07d" % n for n in range(users)]
        self._partitions = np.asarray([(murmur2(key) & 0x7FFFFFFF) % settings.partitions for key in self._keys], np.int64)
        fields = {"event_id": "0" * 16, "user_id": "u0000000", "item_id": "i00000", "event_time": START_MS, "action": "click"}
        self._template = np.frombuffer(encode("interaction", fields), np.uint8)
        self.sent = 0

    def _records(self, who: NDArray[np.int64]) -> list[bytes]:
        n = len(who)
        rows = np.tile(self._template, (n, 1))
        number = np.arange(self.sent, self.sent + n)
        item = self._rng.zipf(1.1, n) % self._items
        for k in range(16):
            rows[:, EVENT[0] + k] = HEX[(number >> 4 * (15 - k)) & 15]
        for k in range(7):
            rows[:, USER[0] + 1 + k] = 48 + who // 10 ** (6 - k) % 10
        for k in range(5):
            rows[:, ITEM[0] + 1 + k] = 48 + item // 10 ** (4 - k) % 10
        zigzag = 2 * (START_MS + number)
        for k in range(6):
            rows[:, TIME[0] + k] = (zigzag >> 7 * k & 0x7F) | (0x80 if k < 5 else 0)
        data, width = rows.tobytes(), rows.shape[1]
        return [data[at : at + width] for at in range(0, n * width, width)]

    async def send(self, count: int) -> None:
        """Send that many events; returns when all are acknowledged."""
        who = self._rng.integers(0, len(self._keys), count)
        records, topic = self._records(who), self._settings.topic("interactions")
        producer = AIOKafkaProducer(bootstrap_servers=self._settings.bootstrap_servers, max_batch_size=BATCH_BYTES)
        await producer.start()
        try:
            waiting = []
            for partition in range(self._settings.partitions):
                batch = producer.create_batch()
                for n in np.flatnonzero(self._partitions[who] == partition).tolist():
                    key = self._keys[who[n]]
                    if batch.append(key=key, value=records[n], timestamp=None) is None:
                        waiting.append(await producer.send_batch(batch, topic, partition=partition))
                        batch = producer.create_batch()
                        batch.append(key=key, value=records[n], timestamp=None)
                waiting.append(await producer.send_batch(batch, topic, partition=partition))
            for sent in waiting:
                await sent
        finally:
            await producer.stop()
        self.sent += count
