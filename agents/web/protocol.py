"""What the HTTP interface asks of the worker behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from agents.metrics import Metrics
from schemas.records import Interaction, Item, Request, Slate, SlateItem

__all__ = ["Service", "Token"]

Token = Mapping[str, int]
"`partition` and `offset` of a stored event; a request that carries it as `after` reflects that event."


class Service(Protocol):
    """One worker, as seen from outside. Errors are `schemas.errors`; anything else is answered as an internal error."""

    @property
    def metrics(self) -> Metrics:
        """Registry that the HTTP interface counts in."""

    async def recommend(self, request: Request, deadline_ms: int | None = None) -> Slate:
        """The slate for a request; `deadline_ms` None means the default of the settings.

        Raises:
            DeadlineExceeded: there was no answer in time.
            NotReady: the user's partition is not here, or still being restored.
        """

    def similar(self, item_id: str, k: int) -> Sequence[SlateItem]:
        """The `k` items most like one item, best first.

        Raises:
            BadItem: code `not_found`.
        """

    async def user(self, user_id: str) -> Mapping[str, object]:
        """What is known of a user, as JSON values.

        Raises:
            BadInput: code `not_found`, for a user who was never seen, or was erased.
            NotReady: the user's partition is not here.
        """

    async def erase(self, user_id: str) -> Token:
        """Have a user forgotten; a request `after` the token no longer uses their events. An unknown user is no error."""

    async def send_events(self, events: Sequence[Interaction]) -> Sequence[Token]:
        """Store events; one token per event, in their order, when the broker has acknowledged all of them.

        A failure may leave some of them stored; sending them again is safe, `event_id` deduplicates.
        """

    async def put_item(self, item: Item) -> None:
        """Store or replace a catalogue entry; returns when the broker has acknowledged it."""

    async def delete_item(self, item_id: str) -> None:
        """Remove a catalogue entry; returns when the broker has acknowledged it. An unknown item is no error."""

    def item(self, item_id: str) -> Item:
        """A catalogue entry as this worker knows it.

        Raises:
            BadItem: code `not_found`.
        """

    @property
    def release(self) -> str:
        """Name of the serving release, `none` without one."""

    @property
    def refused(self) -> Mapping[str, str]:
        """Releases that were announced but refused, and why."""

    @property
    def warnings(self) -> Mapping[str, str]:
        """Findings that do not keep requests from being answered, by name."""

    def stuck(self) -> Mapping[str, float]:
        """Partitions that have work waiting and do not progress, and for how many seconds."""

    async def tables(self, *, digests: bool = False) -> Sequence[Mapping[str, object]]:
        """The table partitions that this worker owns or stands by for; with `digests` hashed, which reads them whole."""

    def ready(self) -> tuple[bool, Mapping[str, object]]:
        """Whether this worker answers requests now, and what is missing if not."""

    def render_metrics(self) -> str:
        """Prometheus text of the whole worker, including what the HTTP interface counted."""
