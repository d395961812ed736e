"""Choice of a mirror's store by the scheme of its URL, here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from schemas.settings import Settings
from streams.mirror.contract import Mirror, MirrorStore
from streams.mirror.redis import RedisStore
from streams.mirror.write_behind import WriteBehind

__all__ = ["STORES", "mirror_at", "mirror_of"]

STORES: Mapping[str, Callable[[str, str], MirrorStore]] = {"redis": RedisStore, "rediss": RedisStore, "unix": RedisStore}
"Factory of a store per URL scheme, called with the URL and a name prefix. `schemas.settings.MIRRORS` allows the same schemes."


def mirror_at(url: str, prefix: str) -> WriteBehind:
    """Create the mirror at a URL; it writes once it is started.

    Raises:
        KeyError: no store has this scheme; the settings allow no such scheme.
    """
    return WriteBehind(STORES[url.partition("://")[0]](url, prefix))


def mirror_of(settings: Settings) -> Mirror:
    """Create the mirror of an instance."""
    return mirror_at(settings.redis, settings.topic_prefix)
