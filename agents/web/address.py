"""Addresses under which the workers of a group reach each other's HTTP interface."""

from __future__ import annotations

import ipaddress
import socket

from schemas.settings import Settings

__all__ = ["advertised", "reachable"]

SEPARATOR = "@"
"Before the name of the machine, in an address on loopback, which means another worker on every machine."


def advertised(settings: Settings) -> str:
    """Return this worker's address, as `host:port`; empty if the others must not use it.

    An address on loopback is followed by this machine's name. May resolve the name of a Kafka server, so call it in a thread.
    """
    if settings.web_advertised:
        return "" if settings.web_advertised == "off" else settings.web_advertised
    host = settings.web_host
    if _is(host, "is_unspecified"):
        host = _towards(settings.bootstrap_servers)
    address = f"[{host}]:{settings.web_port}" if ":" in host else f"{host}:{settings.web_port}"
    local = host == "localhost" or _is(host, "is_loopback")
    return f"{address}{SEPARATOR}{socket.gethostname()}" if local else address


def reachable(address: str | None) -> str | None:
    """Return `host:port` of an advertised address; None if there is none, or it is another machine's loopback."""
    if address is None:
        return None
    place, _, machine = address.partition(SEPARATOR)
    return place if machine in {"", socket.gethostname()} else None


def _is(host: str, kind: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(host), kind))
    except ValueError:
        return False  # a name


def _towards(servers: str) -> str:
    """Return the address of this machine's interface towards Kafka, or its name if there is no route."""
    host, _, port = servers.partition(",")[0].removeprefix("kafka://").rpartition(":")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)  # of a datagram socket: nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
