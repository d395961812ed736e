"""Security settings of the HTTP interface, of servers and of clients: frozen data, validated where it is declared."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from schemas.errors import ConfigError
from schemas.parsing import demand, shown_without_login
from schemas.watched import secret_in

__all__ = ["HttpSettings", "is_loopback"]

PREFIX = "http_"
"Prefix of each field's name in `schemas.settings.Settings`, and of its environment variable."
NAME = re.compile(r"[A-Za-z0-9._-]{1,253}", re.ASCII)
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
"A bearer token (RFC 6750)."
YES = "yes"


def _demand(holds: bool, name: str, rule: str) -> None:
    demand(holds, f"{PREFIX}{name}", rule)


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """TLS and tokens of HTTP. Each field is read from `RIFFLE_HTTP_<FIELD>`.

    Raises:
        ConfigError: the values contradict each other; the message names the variables.
    """

    cert_file: str = ""
    "PEM file of the server's certificate with its chain. With it, HTTP is served over TLS only."
    key_file: str = ""
    "PEM file of the certificate's key, not encrypted. Empty: the key is in `cert_file`."
    ca_file: str = ""
    "PEM file of the authorities with which commands and other workers verify the certificate. Empty: the system's."
    server_name: str = ""
    """Name in the certificate that commands and other workers verify, whatever address they connect to. Empty: the address.
    With it, all workers may share one certificate."""
    tokens_file: str = ""
    "File of the tokens that are accepted (`agents.web.tokens`). With it, every request needs one."
    token_file: str = ""
    "File that holds the token that commands and workers send."
    token: str = field(default="", repr=False)
    "That token itself, if no file holds it."
    without_tokens: str = ""
    "`yes`: addresses other than loopback are served without tokens. It is not allowed with `tokens_file`."

    def __post_init__(self) -> None:
        _demand(bool(self.cert_file) or not self.key_file, "key_file", "needs RIFFLE_HTTP_CERT_FILE")
        named = not self.server_name or NAME.fullmatch(self.server_name) is not None
        _demand(named, "server_name", f"must be a host name, is {shown_without_login(self.server_name)}")
        _demand(not (self.token and self.token_file), "token", "must not be given with RIFFLE_HTTP_TOKEN_FILE")
        _demand(not self.token or TOKEN.fullmatch(self.token) is not None, "token", "must be a token of RFC 6750")
        known = self.without_tokens in {"", YES}
        _demand(known, "without_tokens", f"must be {YES}, or empty, is {shown_without_login(self.without_tokens)}")
        both = bool(self.tokens_file and self.without_tokens)
        _demand(not both, "without_tokens", "must not be given with RIFFLE_HTTP_TOKENS_FILE")

    @property
    def encrypts(self) -> bool:
        """Whether HTTP is served over TLS."""
        return bool(self.cert_file)

    @property
    def sends_token(self) -> bool:
        """Whether this instance's clients have a token."""
        return bool(self.token or self.token_file)

    def secret(self) -> str:
        """Return the token that clients send, from the file if one is given; empty without one.

        Raises:
            ConfigError: the file cannot be read, or holds no token.
        """
        if not self.token_file:
            return self.token
        found = secret_in(self.token_file, f"{PREFIX}token_file")
        _demand(TOKEN.fullmatch(found) is not None, "token_file", "must hold one token of RFC 6750")
        return found

    def require_tokens(self, host: str) -> None:
        """Check that a listener on `host` asks for tokens, unless `host` is loopback or the settings say otherwise.

        Raises:
            ConfigError: it would not.
        """
        if self.tokens_file or self.without_tokens or is_loopback(host):
            return
        message = (
            f"RIFFLE_WEB_HOST={host} is no loopback address, so that HTTP needs tokens: set RIFFLE_HTTP_TOKENS_FILE"
            " (`riffle token` makes them), or RIFFLE_HTTP_WITHOUT_TOKENS=yes if others cannot reach the address"
        )
        raise ConfigError("tokens_required", message, "http_tokens_file")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name or address alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
