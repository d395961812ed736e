"""Summaries of users in Redis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from redis.asyncio import Redis
from redis.exceptions import RedisError

from schemas.errors import TransientError
from streams.mirror.contract import MirrorStore

__all__ = ["Store"]

TIMEOUT_S = 2.0
TTL_S = 7 * 86_400
"Seconds that a summary is kept after its last write."


class Store(MirrorStore):
    """A `MirrorStore`: `<prefix>user:<user_id>` holds a summary, with a time to live."""

    def __init__(self, url: str, prefix: str, *, ttl_s: int = TTL_S) -> None:
        self._redis = Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        self._prefix = prefix
        self._ttl_s = ttl_s

    def _key(self, user_id: str) -> str:
        return f"{self._prefix}user:{user_id}"

    async def write(self, values: Mapping[str, bytes | None]) -> None:
        """Set and delete in one pipeline, which is not a transaction."""
        with _answering():
            async with self._redis.pipeline(transaction=False) as pipe:
                for user_id, value in values.items():
                    if value is None:
                        pipe.delete(self._key(user_id))
                    else:
                        pipe.set(self._key(user_id), value, ex=self._ttl_s)
                await pipe.execute()

    async def read(self, user_id: str) -> bytes | None:
        """The value of one key."""
        with _answering():
            found = await self._redis.get(self._key(user_id))
        return found.encode() if isinstance(found, str) else found  # it is text with `?decode_responses=True` in the URL

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as exc:
        raise TransientError("mirror_unavailable", f"Redis does not answer: {type(exc).__name__}") from exc
