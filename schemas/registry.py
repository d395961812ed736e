"""Schema registry access through confluent-kafka's client."""

from __future__ import annotations

from typing import Any

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from schemas.codec import schema_text
from schemas.errors import NotReady

__all__ = ["ConfluentRegistry"]

NOT_FOUND = 404


class ConfluentRegistry:
    """Registers the current schemas under `riffle.<name>-value` and looks up writers' schemas.

    The client caches both directions, so the hot path asks the registry once per schema.
    """

    def __init__(self, client: SchemaRegistryClient) -> None:
        self._client = client
        self._ids: dict[str, int] = {}

    @classmethod
    def at(cls, url: str) -> ConfluentRegistry:
        """The registry at `url`."""
        return cls(SchemaRegistryClient({"url": url}))

    def id_of(self, name: str) -> int:
        """Id of the current version of schema `name`; registers it when it is new."""
        if name not in self._ids:
            schema = Schema(schema_text(name), "AVRO")
            self._ids[name] = int(self._client.register_schema(f"riffle.{name}-value", schema))
        return self._ids[name]

    def schema_of(self, schema_id: int) -> str:
        """Text of a registered schema.

        Raises:
            KeyError: the registry does not know the id.
            NotReady: the registry failed; the record may be good, so it must be retried, not dead-lettered.
        """
        try:
            found: Any = self._client.get_schema(schema_id)
        except Exception as exc:  # also those of whatever HTTP client is below: nobody listens, no such host, too slow
            if isinstance(exc, SchemaRegistryError) and exc.http_status_code == NOT_FOUND:
                raise KeyError(schema_id) from exc
            raise NotReady("registry_unavailable", f"the schema registry failed: {exc!r}") from exc
        return str(found.schema_str)
