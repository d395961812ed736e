"""Whether Kafka accepts connections."""

from __future__ import annotations

import asyncio

from schemas.settings import Settings
from streams.kafka import connect

__all__ = ["BrokerProbe"]

PROBE_INTERVAL_S = 2.0


class BrokerProbe:
    """Asks the bootstrap servers, for readiness: what needs the broker fails while none answers."""

    def __init__(self, settings: Settings) -> None:
        self._kafka = settings.kafka
        self.found = True
        "Whether any bootstrap server accepted a connection when it was asked last."

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            self.found = await connect.any_answers(self._kafka, PROBE_INTERVAL_S)
            await asyncio.sleep(PROBE_INTERVAL_S)
