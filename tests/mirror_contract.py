"""Contract of a mirror's store. Every store passes it: `await keeps(store)` on a store of its own, then `await lacks(store)` on
one that cannot be reached."""

from __future__ import annotations

import pytest

from schemas.errors import TransientError
from streams.mirror.contract import MirrorStore

__all__ = ["keeps", "lacks"]

IDS = ["ann", "a/../b", "*", "ä 人\n", "x" * 256]
"User ids, which hold any characters."
VALUES = [b"{}", '{"title": "ä 人"}'.encode(), b"y" * 100_000]


async def keeps(store: MirrorStore) -> None:
    """A store that answers holds the last value of each user until it is removed."""
    for user in IDS:
        assert await store.read(user) is None
    await store.write({})
    await store.write({user: VALUES[n % len(VALUES)] for n, user in enumerate(IDS)})
    for n, user in enumerate(IDS):
        assert await store.read(user) == VALUES[n % len(VALUES)]
    await store.write({IDS[0]: b"newer", IDS[1]: None, "absent": None})
    assert [await store.read(user) for user in (*IDS[:3], "absent")] == [b"newer", None, VALUES[2], None]
    await store.write(dict.fromkeys(IDS, None))
    for user in IDS:
        assert await store.read(user) is None
    await store.close()


async def lacks(store: MirrorStore) -> None:
    """A store that does not answer raises `TransientError`, and still closes."""
    with pytest.raises(TransientError):
        await store.read("ann")
    with pytest.raises(TransientError):
        await store.write({"ann": b"{}", "bob": None})
    await store.close()
