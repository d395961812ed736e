"""What the HTTP interface asks of the worker behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from schemas.records import After, Interaction, Item, Request, Slate, SlateItem

__all__ = ["Service", "Token"]

Token = After
"Where an event was stored; a request that carries it as `after` reflects that event."


class Service(Protocol):
    """One worker, as seen from outside. Errors are `schemas.errors`; anything else is answered as an internal error."""

    async def recommend(self, request: Request, deadline_ms: int | None) -> Slate:
        """The slate for a request; `deadline_ms` None means the default of the settings.

        Raises:
            BadRequest: the request breaks a rule.
            DeadlineExceeded: there was no answer in time.
            NotReady: the user's partition is not here, or still being restored.
        """
        ...

    async def similar(self, item_id: str, k: int) -> Sequence[SlateItem]:
        """The `k` items most like one item, best first.

        Raises:
            BadInput: code `unknown_item` when there is no such item.
        """
        ...

    async def user(self, user_id: str) -> Mapping[str, object] | None:
        """What is known of a person, as JSON values; None for a person never seen or erased."""
        ...

    async def erase(self, user_id: str) -> None:
        """Forget a person; returns when the erasure is durable. An unknown person is no error."""
        ...

    async def send_events(self, events: Sequence[Interaction]) -> Sequence[Token]:
        """Store events; one token per event, in their order, when the broker has acknowledged all of them.

        Raises:
            TransientError: the broker did not take them all; sending them again is safe (`event_id` deduplicates).
        """
        ...

    async def put_item(self, item: Item) -> None:
        """Store or replace a catalogue entry; returns when the broker has acknowledged it."""
        ...

    async def delete_item(self, item_id: str) -> None:
        """Remove a catalogue entry; returns when the broker has acknowledged it. An unknown item is no error."""
        ...

    async def item(self, item_id: str) -> Item | None:
        """A catalogue entry as this worker knows it."""
        ...

    async def image(self, item_id: str) -> Path | None:
        """Local file recorded as the item's image, if there is one."""
        ...

    def ready(self) -> tuple[bool, Mapping[str, object]]:
        """Whether this worker answers requests now, with what each part says."""
        ...

    def metrics(self) -> str:
        """Prometheus text of the whole worker, including what the HTTP interface counted."""
        ...
