"""Readiness, as `/readyz` reports it."""

from __future__ import annotations

from collections.abc import Mapping

from agents.findings import Health, why
from agents.health.broker import BrokerProbe
from agents.partitions.users import UserPartition
from schemas.settings import Settings

__all__ = ["Readiness"]

BLOCKING = ("assignment", "reading")
"Findings that keep a worker from giving up-to-date answers."


class Readiness:
    """State of a worker's readiness to answer requests."""

    def __init__(self, settings: Settings, users: Mapping[int, UserPartition], probe: BrokerProbe, health: Health) -> None:
        self._servers = settings.bootstrap_servers
        self._users = users
        self._probe = probe
        self._health = health
        self._caught_up = self._leaving = self._was_ready = False

    def caught_up(self) -> None:
        """Record that the broadcast topics were read to their ends."""
        self._caught_up = True

    def leave(self) -> None:
        """Record that the worker is about to stop, so that it gets no new requests."""
        self._leaving = True

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Return whether this worker is ready, and the missing parts if not.

        Partitions that are being restored count only until the worker is ready for the first time. Later ones come from a
        worker that left, and requests for their users are answered meanwhile: if they counted, the loss of one worker would
        make load balancers take out the others.
        """
        waiting = sorted(n for n, p in self._users.items() if not p.state.ready.is_set())
        troubles = {
            str(n): text
            for n, p in self._users.items()
            if (text := why(p.state.trouble) if p.state.trouble is not None else p.state.probe_reason)
        }
        reasons: dict[str, object] = {"stopping": "the worker is about to stop"} if self._leaving else {}
        if not self._probe.found:
            reasons["broker"] = f"no Kafka accepts connections at {self._servers}"
        if not self._caught_up:
            reasons["catalogue"] = "the broadcast topics are still being read"
        if not self._users:
            reasons["partitions"] = "no partition is assigned yet"
        elif waiting and not self._was_ready:
            reasons["restoring"] = waiting
        if troubles:
            reasons["troubles"] = troubles
        reasons |= {name: text for name, text in self._health.current().items() if name in BLOCKING}
        self._was_ready = self._was_ready or not reasons
        return not reasons, reasons
