"""Laws of `schemas.direct`: the bytes are those that fastavro writes for the same record."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import Framing, encode, encoding, header
from schemas.direct import impression_body, slate_body
from schemas.errors import BadEvent
from schemas.records import AsOf, Slate, SlateItem

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=90)
names = st.lists(texts, max_size=70).map(tuple)
longs = st.integers(-(1 << 63), (1 << 63) - 1)
numbers = st.floats(allow_nan=False)
features = st.lists(st.floats(allow_nan=False, width=32), max_size=70).map(lambda row: np.asarray(row, np.float32))
items = st.builds(
    SlateItem, texts, numbers, names, st.none() | st.dictionaries(texts, texts | st.integers(0, 9), max_size=3), features
)
slates = st.builds(
    Slate,
    texts,
    texts,
    st.lists(items, max_size=70).map(tuple),
    texts,
    texts,
    names,
    st.none() | st.builds(AsOf, st.integers(0, (1 << 31) - 1), longs, longs),
    st.dictionaries(texts, numbers, max_size=9),
)


def slate_datum(slate: Slate, correlation_id: str) -> dict[str, Any]:
    datum: dict[str, Any] = {**slate.to_json(), "correlation_id": correlation_id}
    for item in datum["items"]:
        if "explanation" in item:
            item["explanation"] = orjson.dumps(item["explanation"]).decode()
    return datum


def impression_datum(slate: Slate, spec: str) -> dict[str, Any]:
    return {
        "request_id": slate.request_id,
        "user_id": slate.user_id,
        "event_time": slate.as_of.event_time if slate.as_of else 0,
        "release": slate.release,
        "arm": slate.arm,
        "feature_spec": spec,
        "as_of": slate.to_json()["as_of"],
        "items": [
            {
                "item_id": item.item_id,
                "position": position,
                "score": item.score,
                "propensity": 1.0,
                "sources": list(item.sources),
                "features": np.asarray(item.features).tolist(),
            }
            for position, item in enumerate(slate.items)
        ],
    }


@given(slates, texts)
def test_a_slate_has_the_bytes_that_fastavro_writes(slate: Slate, correlation_id: str) -> None:
    assert header("slate") + slate_body(slate, correlation_id) == encode("slate", slate_datum(slate, correlation_id))


@given(slates, texts)
def test_an_impression_has_the_bytes_that_fastavro_writes(slate: Slate, spec: str) -> None:
    assert header("impression") + impression_body(slate, spec) == encode("impression", impression_datum(slate, spec))


@pytest.mark.parametrize(
    "slate",
    [
        Slate("r", "\ud800", (), "none", "default"),
        Slate("r", "u", (SlateItem("i", "high", ()),), "none", "default"),  # type: ignore[arg-type]
        Slate("r", "u", (), "none", "default", as_of=AsOf(0, 1 << 63, 0)),
        Slate(7, "u", (), "none", "default"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_the_schema_is_refused(slate: Slate) -> None:
    with pytest.raises(BadEvent, match="does not fit schema slate"), encoding("slate"):
        slate_body(slate, "")
    with pytest.raises(BadEvent, match="does not fit schema slate"):
        encode("slate", slate_datum(slate, ""), Framing.SINGLE_OBJECT)
