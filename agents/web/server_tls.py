"""TLS of the HTTP interface. A certificate that was renewed serves the next connection."""

from __future__ import annotations

import logging
import ssl

from agents.metrics import Metrics
from agents.web.tokens import read_grants
from schemas.errors import ConfigError
from schemas.http_settings import HttpSettings
from schemas.watched import Watched

__all__ = ["check_listener", "server_context"]

log = logging.getLogger(__name__)


def check_listener(http: HttpSettings, host: str) -> None:
    """Check, before anything is started, that a listener on `host` can work: its tokens, and its certificate.

    Raises:
        ConfigError: it cannot; the message names the variable.
    """
    http.require_tokens(host)
    if http.tokens_file:
        read_grants(http.tokens_file)
    if http.encrypts:
        _context(http)


def server_context(http: HttpSettings, metrics: Metrics) -> ssl.SSLContext | None:
    """Return the context of a listener, TLS 1.2 or later; None without a certificate.

    Raises:
        ConfigError: a file cannot be read, or holds no certificate with its key.
    """
    if not http.encrypts:
        return None

    def failed(error: ConfigError) -> None:
        metrics.http_reloads_failed.add(what="certificate")
        log.warning("%s; the certificate that was read before stays in use", error.message)

    current = Watched((http.cert_file, http.key_file), lambda: _context(http), failed)
    first = current.value()

    def begin(connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        # called in each handshake, also by clients that name no server
        connection.context = current.value()

    first.sni_callback = begin
    return first


def _context(http: HttpSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # without a password, because a prompt for one would block a worker forever
        context.load_cert_chain(http.cert_file, http.key_file or None, password="")
    except (OSError, ValueError) as exc:
        rule = "RIFFLE_HTTP_CERT_FILE and _KEY_FILE must hold a certificate and its key in PEM, not encrypted"
        rule += f": {http.cert_file}: {exc}"
        raise ConfigError("invalid_setting", rule, "http_cert_file") from exc
    return context
