"""Bearer tokens of the HTTP interface: what each may do, and how often.

A file holds one line for each token, `NAME SCOPES RATE sha256:DIGEST`, for example
`shop recommend,events 200/400 sha256:9f86d0…`. It holds no token: a digest suffices to recognise one. The rate is the number of
requests a second, optionally with the number that may come at once, or `-` for no limit. Empty lines and lines that begin with
`#` are skipped.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from schemas.errors import ConfigError
from schemas.parsing import finite_number

__all__ = ["GRANTED", "NAME", "Grant", "Scope", "digest_of", "find", "line_of", "new_token", "rate_of", "read_grants"]

PREFIX = "riffle_"
"Begin of each token, so that scanners of secrets recognise one."
TOKEN_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
NO_LIMIT = "-"
MOST_TOKENS = 1_000
"Maximum number of tokens, because each request is compared with all of them."


class Scope(StrEnum):
    """What a route is for. A token has some of `GRANTED`; each route has exactly one scope."""

    RECOMMEND = "recommend"
    EVENTS = "events"
    ITEMS = "items"
    USERS = "users"
    OPERATE = "operate"
    METRICS = "metrics"
    "Only the metrics, for a scraper, which must not act. A token with `OPERATE` has it, too."
    OPEN = "open"
    "No token is needed: probes cannot send one."


GRANTED = tuple(scope for scope in Scope if scope is not Scope.OPEN)


@dataclass(frozen=True, slots=True)
class Grant:
    """One line of the file."""

    name: str
    scopes: frozenset[Scope]
    per_s: float
    "Requests a second; 0: no limit."
    burst: float
    "Requests that may come at once, at least 1."
    digest: bytes
    "SHA-256 of the token."

    def admits(self, scope: Scope) -> bool:
        """Whether the token may use routes of this scope."""
        return scope in self.scopes or (scope is Scope.METRICS and Scope.OPERATE in self.scopes)


def new_token() -> str:
    """Return a new random token of 256 bits."""
    return PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def digest_of(token: str) -> bytes:
    """Return the SHA-256 of a token. A slow hash would protect nothing more, because a token has 256 random bits."""
    return hashlib.sha256(token.encode()).digest()


def line_of(name: str, scopes: Iterable[Scope], rate: str, token: str) -> str:
    """Return the line of a token for the file."""
    wanted = set(scopes)
    granted = [scope for scope in GRANTED if scope in wanted]
    return f"{name} {','.join(granted)} {rate} sha256:{digest_of(token).hex()}"


def rate_of(text: str) -> tuple[float, float]:
    """Parse a rate: requests a second, and those that may come at once; both 0 without a limit.

    Raises:
        ValueError: it is none.
    """
    if text == NO_LIMIT:
        return 0.0, 0.0
    rate, slash, burst = text.partition("/")
    per_s = finite_number(rate)
    most = finite_number(burst) if slash else max(per_s, 1.0)
    if per_s <= 0 or most < 1:
        raise ValueError("must be more than 0 requests a second, and at least 1 at once")
    return per_s, most


def find(grants: Iterable[Grant], token: str) -> Grant | None:
    """Return the grant of a token. The time that this takes does not depend on how much of a digest agrees."""
    wanted, found = digest_of(token), None
    for grant in grants:
        if hmac.compare_digest(grant.digest, wanted):
            found = grant
    return found


def read_grants(file: str) -> tuple[Grant, ...]:
    """Read the file `RIFFLE_HTTP_TOKENS_FILE`. An empty file accepts no token.

    Raises:
        ConfigError: it cannot be read, or a line cannot; the message names the line and does not quote it.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as exc:
        raise _wrong(f"cannot be read: {exc}") from exc
    except ValueError:
        text = None
    if text is None:
        raise _wrong("must hold UTF-8 text")
    found: dict[str, Grant] = {}
    digests: set[bytes] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            grant = _grant(line, number)
            if grant.name in found or grant.digest in digests:
                raise _wrong(f"line {number} repeats a name or a token")
            found[grant.name] = grant
            digests.add(grant.digest)
    if len(found) > MOST_TOKENS:
        raise _wrong(f"must hold at most {MOST_TOKENS} tokens")
    return tuple(found.values())


def _grant(line: str, number: int) -> Grant:
    parts = line.split()
    if len(parts) != 4:
        raise _wrong(f"line {number} must be NAME SCOPES RATE sha256:DIGEST: `riffle token` prints one")
    name, scopes, rate, digest = parts
    if NAME.fullmatch(name) is None:
        raise _wrong(f"line {number}: a name must be at most 64 letters, digits, dots, dashes and underscores")
    given = scopes.split(",")
    if not set(given) <= set(GRANTED):
        raise _wrong(f"line {number}: scopes must be of {', '.join(GRANTED)}, separated by commas")
    try:
        per_s, burst = rate_of(rate)
    except ValueError as exc:
        raise _wrong(f"line {number}: a rate must be a number, NUMBER/NUMBER or {NO_LIMIT}: {exc}") from exc
    match = DIGEST.fullmatch(digest)
    if match is None:
        raise _wrong(f"line {number} must end with sha256: and 64 hexadecimal digits, not with the token itself")
    return Grant(name, frozenset(map(Scope, given)), per_s, burst, bytes.fromhex(match[1]))


def _wrong(rule: str) -> ConfigError:
    return ConfigError("invalid_setting", f"RIFFLE_HTTP_TOKENS_FILE {rule}", "http_tokens_file")
