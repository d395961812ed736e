"""State of a ranking process, and the page that shows it."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from agents.findings import Health
from agents.health.broker import BrokerProbe
from agents.metrics import Metrics
from agents.ranker.collecting import Collector
from agents.ranker.releases import RankerSlot
from agents.web.access import DETAILED, scoped
from agents.web.error_replies import json_response
from agents.web.tokens import Scope
from schemas.settings import Settings

__all__ = ["Status"]

NO_RELEASE = "none"
"Name of an empty slot."


class Status:
    """Readiness and health. A process is ready while no release is announced, because there are no tasks then, either."""

    def __init__(
        self,
        settings: Settings,
        slot: RankerSlot,
        collector: Collector,
        broker: BrokerProbe,
        health: Health,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._slot = slot
        self._collector = collector
        self._broker = broker
        self._health = health
        self._metrics = metrics
        self._clock = clock
        self.assigned: frozenset[int] | None = None
        "Partitions of tasks that this process reads; None until it has joined its group."
        self.caught_up = self.leaving = False
        "Whether the announcements were read to their end, and whether the process is about to stop."

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Return whether tasks are ranked, and what is missing if not."""
        reasons: dict[str, object] = {"stopping": "the process is about to stop"} if self.leaving else {}
        if not self._broker.found:
            reasons["broker"] = f"no Kafka accepts connections at {self._settings.bootstrap_servers}"
        if not self.caught_up:
            reasons["releases"] = "the announcements of releases are still being read"
        elif self._slot.refused and self._slot.name == NO_RELEASE:
            refused = "; ".join(f"{name}: {why}" for name, why in self._slot.refused.items())
            reasons["releases"] = f"the announced release is not usable here, so that every task is refused: {refused}"
        if self.assigned is None:
            reasons["group"] = "this process has not joined its consumer group yet"
        reasons |= {name: text for name, text in self._health.current().items() if name == "reading"}
        return not reasons, reasons

    def stuck_s(self) -> float:
        """Seconds for which the batch under way has been ranked, if that is longer than any should take; else 0."""
        since = self._collector.busy_since
        busy_s = 0.0 if since is None else self._clock() - since
        return busy_s if busy_s > self._settings.stuck_s else 0.0

    def routes(self) -> web.RouteTableDef:
        """Return the views of the status page."""
        table = web.RouteTableDef()

        @table.get("/healthz")
        @scoped(Scope.OPEN)
        async def healthz(_request: web.Request) -> web.Response:
            stuck_s = self.stuck_s()
            return json_response({"stuck": {"ranking": round(stuck_s)} if stuck_s else {}}, 503 if stuck_s else 200)

        @table.get("/readyz")
        @scoped(Scope.OPEN)
        async def readyz(request: web.Request) -> web.Response:
            ready, reasons = self.ready()
            if not request[DETAILED]:
                return json_response({"ready": ready, "role": "ranking"}, 200 if ready else 503)
            body = {
                "ready": ready,
                "role": "ranking",
                "reasons": reasons,
                "warnings": {name: text for name, text in self._health.current().items() if name not in reasons},
                "release": self._slot.name,
                "refused": dict(self._slot.refused),
                "provider": self._slot.provider,
                "partitions": sorted(self.assigned or ()),
            }
            return json_response(body, 200 if ready else 503)

        @table.get("/metrics")
        @scoped(Scope.METRICS)
        async def metrics(_request: web.Request) -> web.Response:
            self._metrics.ready.set(self.ready()[0])
            self._metrics.warnings.replace({(name,): 1.0 for name in self._health.current()})
            return web.Response(text=self._metrics.render(), content_type="text/plain")

        return table
