"""Whether Kafka accepts connections."""

from __future__ import annotations

import asyncio

from schemas.settings import Settings
from streams.kafka.metadata import answers

__all__ = ["BrokerProbe"]

PROBE_INTERVAL_S = 2.0


class BrokerProbe:
    """Asks the bootstrap servers, for readiness: what needs the broker fails while none answers."""

    def __init__(self, settings: Settings) -> None:
        self._servers = settings.bootstrap_servers.split(",")
        self.found = True
        "Whether any bootstrap server accepted a connection when it was asked last."

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            self.found = await self._look()
            await asyncio.sleep(PROBE_INTERVAL_S)

    async def _look(self) -> bool:
        for server in self._servers:
            host, _, port = server.rpartition(":")
            if await answers(host.strip("[]"), int(port), PROBE_INTERVAL_S):
                return True
        return False
