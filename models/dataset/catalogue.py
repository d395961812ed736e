"""Conversion of rows of `items.*` to catalogue entries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from models.dataset.fields import as_list, nothing, plain_text, typed
from models.dataset.images import is_image
from schemas.errors import BadItem
from schemas.parsing import shown
from schemas.records import Item
from schemas.validation import ITEM_FIELDS, item_from

__all__ = ["MOST_BYTES", "image_problem", "item_of"]

MOST_BYTES = (1 << 20) - 8_192
"Maximum size in bytes of an item's texts, so that the item with its other fields fits into a record of 1 MiB."
NUMBERS = int | float


def item_of(source: Mapping[str, Any], folder: Path) -> tuple[Item, list[str]]:
    """Convert a row to a catalogue entry; returns also the names of attributes that are dropped, because they are nested.

    Unknown columns become attributes, and so does each entry of `attributes`. An image becomes an absolute path or a URL.

    Raises:
        BadItem: the row is not a valid item.
    """
    known = typed({name: source[name] for name in ITEM_FIELDS - {"attributes"} if name in source})
    further = _named(source.get("attributes")) | {n: v for n, v in source.items() if n not in ITEM_FIELDS}
    attributes = {name: plain_text(_list_or(value)) for name, value in further.items() if not nothing(value)}
    known["attributes"] = {name: text for name, text in attributes.items() if text}
    for name in ("title", "text"):
        if isinstance(known.get(name), NUMBERS) and not isinstance(known[name], bool):
            known[name] = str(known[name])
    if "categories" in known:
        known["categories"] = _categories(known["categories"])
    if "image" in known:
        known["image"] = _image(known["image"], folder)
    item = item_from(known)
    size = sum(len(text.encode()) for text in (item.title, item.text, *item.attributes, *item.attributes.values()))
    if size > MOST_BYTES:
        raise BadItem("too_large", f"title, text and attributes have {size:,} bytes, at most {MOST_BYTES:,} fit into a record")
    return item, [name for name, text in attributes.items() if text is None]


def _named(attributes: object) -> dict[str, Any]:
    """Read the field `attributes`: an object, a Parquet map, or JSON text of an object."""
    if isinstance(attributes, str) and attributes.startswith("{"):
        try:
            attributes = orjson.loads(attributes)
        except orjson.JSONDecodeError:
            return {"attributes": attributes}
    if isinstance(attributes, list) and all(isinstance(pair, dict) and set(pair) == {"key", "value"} for pair in attributes):
        attributes = {str(pair["key"]): pair["value"] for pair in attributes}
    return dict(attributes) if isinstance(attributes, dict) else {"attributes": attributes}


def _list_or(value: object) -> object:
    found = as_list(value) if isinstance(value, str) else None
    return value if found is None else found


def _categories(given: object) -> object:
    if isinstance(given, str):
        found = as_list(given)
        if found is None and given.startswith("[") and given.endswith("]"):
            raise BadItem(
                "invalid_field", f'categories are not a JSON array: {shown(given)}; write a|b, or ["a", "b"]', "categories"
            )
        if found is None:
            parts = (part.strip() for part in given.split("|" if "|" in given else ","))
            return [part for part in parts if part]
        given = found
    return [part for part in given if not nothing(part)] if isinstance(given, list) else given


def _image(image: object, folder: Path) -> str:
    if not isinstance(image, str):
        raise BadItem("invalid_field", f"image must be a path in the folder, or a URL, is {shown(image)}", "image")
    if image.startswith(("http://", "https://", "s3://")):
        return image
    try:
        path = (folder / image).resolve()
    except (OSError, ValueError, RuntimeError) as exc:  # a NUL byte, or a symbolic link to itself
        raise BadItem("invalid_field", f"image {shown(image)} is not a path: {exc}", "image") from exc
    if "://" in image or not path.is_relative_to(folder.resolve()):
        raise BadItem("image_outside", f"image {shown(image)} leads out of the folder", "image")
    return str(path)


def image_problem(path: Path) -> tuple[str, str] | None:
    """Return (code, reason) if there is no image at this path; None if the first bytes are those of an image."""
    try:
        if not path.is_file():
            return "image_missing", "there is no image"
        return None if is_image(path) else ("not_an_image", "no image is")
    except OSError as exc:
        return "not_an_image", f"{exc.strerror}:"
