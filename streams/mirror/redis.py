"""Summaries of users in Redis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError

from schemas.backend_login import BackendLogin
from schemas.errors import ConfigError, TransientError
from streams.mirror.contract import MirrorStore

__all__ = ["Store"]

TIMEOUT_S = 2.0
NO_LOGIN = BackendLogin("redis")
TTL_S = 7 * 86_400
"Seconds that a summary is kept after its last write."


class _FileLogin(CredentialProvider):
    """Reads the password anew for each connection."""

    def __init__(self, login: BackendLogin) -> None:
        self._login = login

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return the arguments of AUTH. Errors: as `BackendLogin.password`."""
        password = self._login.password()
        return (self._login.username, password) if self._login.username else (password,)


class Store(MirrorStore):
    """A `MirrorStore`: `<prefix>user:<user_id>` holds a summary, with a time to live."""

    def __init__(self, url: str, prefix: str, *, ttl_s: int = TTL_S, login: BackendLogin = NO_LOGIN) -> None:
        self._url, self._login = url, login
        self._prefix = prefix
        self._ttl_s = ttl_s
        self._stamps = login.stamps
        self._redis = self._connected()
        self._former: Redis | None = None
        "The client of before the last change of a file."

    def _connected(self) -> Redis:
        own: dict[str, Any] = {"credential_provider": _FileLogin(self._login)} if self._login.password_file else {}
        if self._login.ca_file:
            own["ssl_ca_certs"] = self._login.ca_file
        return Redis.from_url(self._url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, **own)

    async def _client(self) -> Redis:
        """Return the client, which is a new one after a file has changed, so that no connection of before is used."""
        if (stamps := self._login.stamps) != self._stamps:
            ended, self._former = self._former, self._redis
            self._stamps, self._redis = stamps, self._connected()
            # commands that are under way end on their connections; those of the change before have long ended
            await self._former.connection_pool.disconnect(inuse_connections=False)
            if ended is not None:
                await ended.aclose()
        return self._redis

    def _key(self, user_id: str) -> str:
        return f"{self._prefix}user:{user_id}"

    async def write(self, values: Mapping[str, bytes | None]) -> None:
        """Set and delete in one pipeline, which is not a transaction."""
        with _answering():
            async with (await self._client()).pipeline(transaction=False) as pipe:
                for user_id, value in values.items():
                    if value is None:
                        pipe.delete(self._key(user_id))
                    else:
                        pipe.set(self._key(user_id), value, ex=self._ttl_s)
                await pipe.execute()

    async def read(self, user_id: str) -> bytes | None:
        """The value of one key."""
        with _answering():
            found = await (await self._client()).get(self._key(user_id))
        return found.encode() if isinstance(found, str) else found  # it is text with `?decode_responses=True` in the URL

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
        if self._former is not None:
            await self._former.aclose()


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except ConfigError as exc:
        raise TransientError("mirror_unavailable", exc.message) from exc
    except (RedisError, OSError, TimeoutError) as exc:
        raise TransientError("mirror_unavailable", f"Redis does not answer: {type(exc).__name__}") from exc
