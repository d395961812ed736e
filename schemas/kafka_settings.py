"""Connection and authentication settings of Kafka: frozen data, validated where it is declared."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from schemas.parsing import demand, shown_without_login
from schemas.watched import secret_in

__all__ = ["MECHANISMS", "PROTOCOLS", "KafkaSettings"]

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
REGION = re.compile(r"[a-z0-9-]{1,40}", re.ASCII)
LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])[:/]", re.ASCII)
SOURCES = ("token_provider", "token_file", "token_url", "msk_region")
"Settings of which OAUTHBEARER needs exactly one."
ENDPOINT = ("client_id", "client_secret", "client_secret_file", "token_scope", "token_ca_file")
"Settings that belong to `token_url`."
PREFIX = "kafka_"
"Prefix of each field's name in `schemas.settings.Settings`, and of its environment variable."


def _demand(holds: bool, name: str, rule: str) -> None:
    demand(holds, f"{PREFIX}{name}", rule)


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """All connection settings of a client. Each field but the first is read from `RIFFLE_KAFKA_<FIELD>`.

    Raises:
        ConfigError: the values contradict each other; the message names the variables.
    """

    bootstrap_servers: str
    "`host:port,…`, without a scheme."
    security: str = "PLAINTEXT"
    "One of `PROTOCOLS`: whether connections are encrypted (SSL) and whether this client authenticates (SASL)."
    sasl_mechanism: str = ""
    "One of `MECHANISMS`. Required with SASL, and not allowed without."
    username: str = ""
    "User name for PLAIN and SCRAM."
    password: str = field(default="", repr=False)
    "Password for PLAIN and SCRAM, unless `password_file` is given."
    password_file: str = ""
    "File that holds the password. It is read whenever a client is created; trailing line breaks are ignored."
    ca_file: str = ""
    "PEM file of the authorities that sign the brokers' certificates. Empty: the authorities that the system trusts."
    cert_file: str = ""
    "PEM file of this client's certificate, for brokers that require one."
    key_file: str = ""
    "PEM file of the certificate's key. Empty: the key is in `cert_file`."
    token_provider: str = ""
    """`module:function` for OAUTHBEARER. It is called without arguments for each connection and returns the token, an awaitable
    of it, or a tuple whose first entry is the token. It runs in a thread, so it may block."""
    token_file: str = ""
    "File that holds the OAUTHBEARER token. It is read for each connection."
    token_url: str = ""
    "Token endpoint of an authorization server, for OAUTHBEARER by client credentials (RFC 6749)."
    client_id: str = ""
    "This client's id at the token endpoint."
    client_secret: str = field(default="", repr=False)
    "The client's secret, unless `client_secret_file` is given."
    client_secret_file: str = ""
    "File that holds the client's secret. It is read for each token."
    token_scope: str = ""
    "Scope that is requested from the token endpoint, if any."
    token_ca_file: str = ""
    "PEM file of the authorities that sign the token endpoint's certificate. Empty: those that the system trusts."
    msk_region: str = ""
    "Region of an Amazon MSK cluster whose tokens are signed with the AWS credentials of this process (IAM)."

    def __post_init__(self) -> None:
        known = self.security in PROTOCOLS
        _demand(known, "security", f"must be one of {', '.join(PROTOCOLS)}, is {shown_without_login(self.security)}")
        self._check_files()
        if self.logs_in:
            self._check_login()
        else:
            for name in ("sasl_mechanism", "username", "password", "password_file", *SOURCES, *ENDPOINT):
                rule = "is used only with RIFFLE_KAFKA_SECURITY SASL_SSL or SASL_PLAINTEXT"
                _demand(not getattr(self, name), name, f"{rule}, not with {self.security}")

    def _check_files(self) -> None:
        for name in ("ca_file", "cert_file", "key_file"):
            rule = f"is used only with RIFFLE_KAFKA_SECURITY SSL or SASL_SSL, not with {self.security}"
            _demand(self.encrypts or not getattr(self, name), name, rule)
        _demand(not self.key_file or bool(self.cert_file), "key_file", "needs RIFFLE_KAFKA_CERT_FILE beside it")

    def _check_login(self) -> None:
        needed = f"which RIFFLE_KAFKA_SECURITY {self.security} needs"
        rule = f"must be one of {', '.join(MECHANISMS)}, {needed}"
        given = f"; it is {shown_without_login(self.sasl_mechanism)}" if self.sasl_mechanism else ""
        _demand(self.sasl_mechanism in MECHANISMS, "sasl_mechanism", rule + given)
        because = f"with RIFFLE_KAFKA_SASL_MECHANISM {self.sasl_mechanism}"
        if self.sasl_mechanism == "OAUTHBEARER":
            for name in ("username", "password", "password_file"):
                _demand(not getattr(self, name), name, f"is not used {because}")
            self._check_tokens(because)
            return
        for name in (*SOURCES, *ENDPOINT):
            _demand(not getattr(self, name), name, f"is not used {because}")
        _demand(bool(self.username), "username", f"must be given {because}")
        _demand(not (self.password and self.password_file), "password", "must not be given with RIFFLE_KAFKA_PASSWORD_FILE")
        either = f"or RIFFLE_KAFKA_PASSWORD_FILE must be given {because}"
        _demand(bool(self.password or self.password_file), "password", either)

    def _check_tokens(self, because: str) -> None:
        given = [name for name in SOURCES if getattr(self, name)]
        others = ", ".join(f"RIFFLE_KAFKA_{name.upper()}" for name in SOURCES[1:])
        _demand(len(given) == 1, "token_provider", f"must be module:function, or one of {others} must be given, {because}")
        named = FUNCTION.fullmatch(self.token_provider or "m:f") is not None
        _demand(named, "token_provider", f"must be module:function {because}")
        _demand(REGION.fullmatch(self.msk_region or "r") is not None, "msk_region", "must be a region, such as eu-west-1")
        if self.token_url:
            safe = self.token_url.startswith("https://") or LOOPBACK.match(self.token_url) is not None
            _demand(safe, "token_url", "must begin with https://, because the client's secret is sent to it")
            _demand("@" not in self.token_url, "token_url", "must hold no login: set RIFFLE_KAFKA_CLIENT_ID")
            _demand(bool(self.client_id), "client_id", "must be given with RIFFLE_KAFKA_TOKEN_URL")
            one = bool(self.client_secret) != bool(self.client_secret_file)
            _demand(one, "client_secret", "or RIFFLE_KAFKA_CLIENT_SECRET_FILE must be given with RIFFLE_KAFKA_TOKEN_URL")
        for name in () if self.token_url else ENDPOINT:
            _demand(not getattr(self, name), name, "needs RIFFLE_KAFKA_TOKEN_URL")

    @property
    def uses_tokens(self) -> bool:
        """Whether this client logs in with tokens."""
        return self.sasl_mechanism == "OAUTHBEARER"

    @property
    def encrypts(self) -> bool:
        """Whether connections use TLS."""
        return self.security in {"SSL", "SASL_SSL"}

    @property
    def logs_in(self) -> bool:
        """Whether this client authenticates by SASL."""
        return self.security in {"SASL_PLAINTEXT", "SASL_SSL"}

    def described(self) -> str:
        """Describe the security in use for operators, without secrets: `SASL_SSL, SCRAM-SHA-512 as riffle`."""
        parts = [self.security]
        if self.logs_in:
            parts.append(f"{self.sasl_mechanism} as {self.username}" if self.username else self.sasl_mechanism)
        if self.cert_file:
            parts.append(f"certificate {self.cert_file}")
        return ", ".join(parts)

    def secret(self) -> str:
        """Return the password, from the file if one is given.

        Raises:
            ConfigError: the file cannot be read, or is empty.
        """
        if not self.password_file:
            return self.password
        return secret_in(self.password_file, f"{PREFIX}password_file")

    def client_secret_now(self) -> str:
        """Return the client's secret for the token endpoint, from the file if one is given. Errors: as `secret`."""
        if not self.client_secret_file:
            return self.client_secret
        return secret_in(self.client_secret_file, f"{PREFIX}client_secret_file")
