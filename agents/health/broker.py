"""Check whether Kafka accepts connections."""

from __future__ import annotations

import asyncio

from schemas.settings import Settings
from streams.kafka import connect

__all__ = ["BrokerProbe"]

PROBE_INTERVAL_S = 2.0


class BrokerProbe:
    """Probes the bootstrap servers for readiness, because serving fails while none of them answers."""

    def __init__(self, settings: Settings) -> None:
        self._kafka = settings.kafka
        self.found = True
        "Whether any bootstrap server accepted a connection at the last probe."

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            self.found = await connect.any_answers(self._kafka, PROBE_INTERVAL_S)
            await asyncio.sleep(PROBE_INTERVAL_S)
