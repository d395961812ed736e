"""Decodes records of the items topic: catalogue entries and deletions."""

from __future__ import annotations

from schemas.codec import Headers, Registry, decode
from schemas.errors import BadItem
from schemas.records import Item
from schemas.validation import MAX_ID_BYTES, item_from

__all__ = ["entry_of"]


def entry_of(value: bytes | None, key: bytes | None, headers: Headers = (), registry: Registry | None = None) -> Item | str:
    """Decode a record to its catalogue entry, or to the id of the item that it deletes: an empty value deletes the key's item.

    Raises:
        BadInput: the record cannot be used.
        NotReady: `registry_unavailable`.
    """
    if value:
        return item_from(decode("item", value, headers, registry)[0])
    if not key:
        raise BadItem("null_key", "a deletion needs the item_id as its key", "key")
    if len(key) > MAX_ID_BYTES:
        raise BadItem("invalid_key", f"the key must have 1 to {MAX_ID_BYTES} bytes, has {len(key)}", "key")
    try:
        return key.decode()
    except UnicodeDecodeError as exc:
        raise BadItem("invalid_key", "the key is not UTF-8", "key") from exc
