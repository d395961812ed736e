"""Choice of a mirror's store by the scheme of its URL, here and nowhere else."""

from __future__ import annotations

import asyncio
import importlib

from schemas.backend_login import BackendLogin
from schemas.errors import TransientError
from schemas.settings import MIRRORS, Settings
from streams.mirror.contract import Mirror, MirrorStore
from streams.mirror.write_behind import WriteBehind

__all__ = ["answers", "mirror_at", "mirror_of", "store_at"]

ANSWER_S = 5.0
"Seconds that a store has to answer `riffle doctor`."
NO_LOGIN = BackendLogin("redis")
ABSENT = "riffle doctor"
"A user whose summary is read only to see whether a store answers."


def store_at(url: str, prefix: str, login: BackendLogin = NO_LOGIN) -> MirrorStore:
    """Create the store at a URL. It connects at the first call. `prefix` precedes all its names.

    Raises:
        KeyError: no store has this scheme; the settings allow no such scheme.
        ValueError: the store cannot use this URL.
    """
    store: MirrorStore = importlib.import_module(f"streams.mirror.{MIRRORS[url.partition('://')[0]]}").Store(
        url, prefix, login=login
    )
    return store


def mirror_at(url: str, prefix: str, login: BackendLogin = NO_LOGIN) -> WriteBehind:
    """Create the mirror at a URL; it writes once it is started. Errors: as `store_at`."""
    return WriteBehind(store_at(url, prefix, login))


def mirror_of(settings: Settings) -> Mirror:
    """Create the mirror of an instance."""
    return mirror_at(settings.redis, settings.topic_prefix, settings.redis_login)


async def answers(settings: Settings) -> None:
    """Read from an instance's store once.

    Raises:
        TransientError: it does not answer.
        ValueError: it cannot use the URL.
    """
    store = store_at(settings.redis, settings.topic_prefix, settings.redis_login)
    try:
        async with asyncio.timeout(ANSWER_S):
            try:
                await store.read(ABSENT)
            finally:
                await store.close()
    except TimeoutError as exc:
        raise TransientError("mirror_unavailable", f"the mirror gives no answer within {ANSWER_S:.0f} s") from exc
