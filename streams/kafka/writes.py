"""Encoded records of events and of the catalogue, the same for every client."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from schemas.codec import Framing, Registry, encode
from schemas.columns import ERASE
from schemas.records import Interaction, Item
from schemas.settings import Settings
from streams.kafka.healing_producer import Outgoing

__all__ = ["JSON_HEADERS", "USERS", "Writes"]

JSON_HEADERS = [("content-type", b"application/json")]
USERS = ("riffle-op", b"users")
"Header of a request for the ids of a partition's users."
NAMES = {kind: tuple(field.name for field in fields(kind)) for kind in (Interaction, Item)}


class Writes:
    """Encodes the records. The sender chooses the partition by the key, as the default partitioner does."""

    def __init__(self, settings: Settings, framing: Framing = Framing.SINGLE_OBJECT, registry: Registry | None = None) -> None:
        self._events, self._items = settings.topic("interactions"), settings.topic("items")
        self._framing = framing
        self._registry = registry
        self._headers = JSON_HEADERS if framing is Framing.JSON else []

    def event(self, event: Interaction) -> Outgoing:
        """An event, under its user's key, so that one user's events keep their order.

        Raises:
            BadEvent: it does not fit the schema.
        """
        return Outgoing(self._events, event.user_id.encode(), self._encoded("interaction", _datum(event)), self._headers)

    def erasure(self, user_id: str) -> Outgoing:
        """An event that asks for the erasure of a user."""
        return Outgoing(self._events, user_id.encode(), None, [ERASE])

    def item(self, item: Item) -> Outgoing:
        """A catalogue entry."""
        datum = {**_datum(item), "categories": list(item.categories), "attributes": dict(item.attributes)}
        return Outgoing(self._items, item.item_id.encode(), self._encoded("item", datum), self._headers)

    def deletion(self, item_id: str) -> Outgoing:
        """An empty value under an item's key, which deletes its entry."""
        return Outgoing(self._items, item_id.encode(), None, self._headers)

    def _encoded(self, schema: str, datum: dict[str, Any]) -> bytes:
        return encode(schema, datum, self._framing, self._registry)


def _datum(record: Interaction | Item) -> dict[str, Any]:
    return {name: getattr(record, name) for name in NAMES[type(record)]}
