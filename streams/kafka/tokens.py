"""Tokens for OAUTHBEARER, from a function, a file, a token endpoint or Amazon's signer, renewed before they expire."""

from __future__ import annotations

import asyncio
import base64
import importlib
import inspect
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any
from urllib.parse import quote_plus

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from schemas.errors import ConfigError
from schemas.kafka_settings import KafkaSettings
from schemas.watched import secret_in

__all__ = ["FreshTokens", "FunctionTokens", "Token", "TokenSource", "tokens_of"]

log = logging.getLogger(__name__)

Token = tuple[str, float]
"A token, and the time at which it expires, in seconds of the epoch; 0 if that is not known."
Given = str | tuple[str, object]

MILLISECONDS = 1e11
"Times above this are in milliseconds, those below in seconds of the epoch."
UNKNOWN_S = 300.0
"Seconds for which librdkafka uses a token whose expiry is not known."
RENEW_SHARE = 0.8
"Share of a token's life after which another one is fetched, so that each new connection has at least the rest of it."
AGAIN_S = 5.0
"Seconds from a failed fetch to the next one while the last token is valid, so that connections do not wait for each."
FETCH_S = 10.0
"Seconds that a token endpoint has to answer."
MOST_BYTES = 1 << 20


class TokenSource(AbstractTokenProvider):  # type: ignore[misc]
    """Gives tokens to both kinds of clients: `token` to aiokafka's for each connection, `with_expiry` to librdkafka's."""

    def with_expiry(self) -> Token:
        """Return the current token and when another one is needed, in seconds of the epoch. It blocks.

        Raises:
            KafkaConnectionError: there is none.
        """
        raise NotImplementedError


class FunctionTokens(TokenSource):
    """Calls a function of the operator for the token of each connection."""

    def __init__(self, name: str) -> None:
        module, _, function = name.partition(":")
        try:
            self._function: Callable[[], Given | Awaitable[Given]] = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as exc:
            rule = f"RIFFLE_KAFKA_TOKEN_PROVIDER names {name}, which cannot be imported: {exc}"
            raise ConfigError("invalid_setting", rule, "kafka_token_provider") from exc

    async def token(self) -> str:
        """The current token.

        Raises:
            KafkaConnectionError: the function failed; it is retried, as with a broker that cannot be reached.
        """
        try:
            found = await asyncio.to_thread(self._function)
            if inspect.isawaitable(found):
                found = await found
        except Exception as exc:  # aiokafka would end on any other error
            raise self._failed(exc) from exc
        return found[0] if isinstance(found, tuple) else found

    def with_expiry(self) -> Token:
        """Call the function. The expiry is the second entry of its tuple, in seconds or milliseconds, or that of a JWT."""
        try:
            found = self._function()
            if inspect.isawaitable(found):
                found = asyncio.run(_awaited(found))
        except Exception as exc:
            raise self._failed(exc) from exc
        token, *more = found if isinstance(found, tuple) else (found,)
        named = more[0] if more else None
        if isinstance(named, int | float) and named > 0:
            return token, named / 1e3 if named > MILLISECONDS else float(named)
        return token, _expiry_of(token) or time.time() + UNKNOWN_S

    @staticmethod
    def _failed(exc: Exception) -> KafkaConnectionError:
        return KafkaConnectionError(f"RIFFLE_KAFKA_TOKEN_PROVIDER failed: {type(exc).__name__}")


async def _awaited(found: Awaitable[Given]) -> Given:
    return await found


class FreshTokens(TokenSource):
    """Keeps a token for the connections of all clients, and fetches another one before it expires.

    If that fails, the token is used until it expires, and another one is fetched again after `AGAIN_S`. `clock`: seconds of the
    epoch. `each_time`: fetch for each connection, because the source may replace a token long before it expires.
    """

    def __init__(
        self, what: str, fetch: Callable[[], Token], clock: Callable[[], float] = time.time, *, each_time: bool = False
    ) -> None:
        self._what, self._fetch, self._clock, self._each_time = what, fetch, clock, each_time
        self._lock = threading.Lock()
        self._token, self._expires, self._renew_at = "", 0.0, 0.0

    async def token(self) -> str:
        """The current token.

        Raises:
            KafkaConnectionError: there is none; it is retried, as with a broker that cannot be reached.
        """
        return await asyncio.to_thread(self.current)

    def current(self) -> str:
        """Return the token, after it was fetched if it is due. Blocks. Errors: as `token`."""
        return self.with_expiry()[0]

    def with_expiry(self) -> Token:
        """Return the token and its expiry. Blocks. Errors: as `token`."""
        with self._lock:
            now = self._clock()
            if not self._token or now >= self._renew_at:
                self._renew(now)
            return self._token, self._expires or _expiry_of(self._token) or now + UNKNOWN_S

    def _renew(self, now: float) -> None:
        try:
            token, expires = self._fetch()
        except Exception as exc:  # aiokafka would end on any error that is not Kafka's
            why = exc.message if isinstance(exc, ConfigError) else type(exc).__name__
            if self._token and now < self._expires:
                log.warning("%s gives no new token (%s); the last one is used until it expires", self._what, why)
                self._renew_at = now if self._each_time else now + AGAIN_S
                return
            # not chained, because errors of HTTP clients hold what was sent
            raise KafkaConnectionError(f"{self._what} gives no token: {why}") from None
        self._token, self._expires = token, expires
        self._renew_at = now + (expires - now) * RENEW_SHARE if expires > now and not self._each_time else now


@lru_cache(maxsize=4)
def tokens_of(kafka: KafkaSettings) -> TokenSource:
    """Return the source of tokens that the settings name. All clients share it.

    Raises:
        ConfigError: there is no such function.
    """
    if kafka.token_provider:
        return FunctionTokens(kafka.token_provider)
    if kafka.token_file:
        return FreshTokens("RIFFLE_KAFKA_TOKEN_FILE", lambda: _of_file(kafka.token_file), each_time=True)
    if kafka.msk_region:
        return FreshTokens("the signer of RIFFLE_KAFKA_MSK_REGION", lambda: _of_msk(kafka.msk_region))
    return FreshTokens("RIFFLE_KAFKA_TOKEN_URL", lambda: _of_endpoint(kafka))


def _of_file(file: str) -> Token:
    token = secret_in(file, "kafka_token_file")
    return token, _expiry_of(token)


def _of_msk(region: str) -> Token:
    from aws_msk_iam_sasl_signer import MSKAuthTokenProvider

    token, expires_ms = MSKAuthTokenProvider.generate_auth_token(region)
    return token, expires_ms / 1e3


def _of_endpoint(kafka: KafkaSettings) -> Token:
    """Fetch a token by the client credentials grant (RFC 6749, 4.4).

    Raises:
        ConfigError: the endpoint refuses, or its answer is no token; the message names the status only.
    """
    import httpx

    login = f"{quote_plus(kafka.client_id)}:{quote_plus(kafka.client_secret_now())}"
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}", "Accept": "application/json"}
    form = {"grant_type": "client_credentials", **({"scope": kafka.token_scope} if kafka.token_scope else {})}
    verify: Any = True
    if kafka.token_ca_file:
        import ssl

        verify = ssl.create_default_context(cafile=kafka.token_ca_file)
    with httpx.Client(verify=verify, trust_env=False, timeout=FETCH_S) as client:
        answer = client.post(kafka.token_url, data=form, headers=headers)
    if answer.status_code != 200 or len(answer.content) > MOST_BYTES:
        raise _refused(f"the endpoint answers with status {answer.status_code}")
    try:
        found = json.loads(answer.content)
        token = found["access_token"]
        expires = time.time() + float(found["expires_in"]) if "expires_in" in found else _expiry_of(token)
    except (ValueError, KeyError, TypeError):
        token = None
    if not isinstance(token, str) or not token:
        raise _refused("the endpoint's answer holds no access_token")
    return token, expires


def _refused(why: str) -> ConfigError:
    return ConfigError("token_refused", why, "kafka_token_url")


def _expiry_of(token: str) -> float:
    """Return the claim `exp` of a JWT, which only the broker verifies; 0 if it is no JWT."""
    try:
        body = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["exp"])
    except (ValueError, KeyError, TypeError, IndexError):
        return 0.0
