"""Public addresses: URLs in a catalogue must not make Riffle send requests to machines in its private network."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from socket import AF_INET, AddressFamily

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

__all__ = ["NotPublic", "PublicResolver", "is_public"]

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
NOT_PUBLIC = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("3fff::/20"))
"A cloud-internal address, and a documentation network (RFC 9637), which Python 3.11 classifies as public."


class NotPublic(Exception):
    """A host is a non-public address, or resolves to at least one."""


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet: not loopback, private, link-local, shared, multicast or reserved.

    An IPv6 address that embeds an IPv4 one (mapped, 6to4, NAT64) is classified by the latter; Teredo is not public.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
        if found.teredo is not None or found.is_site_local:
            return False
    if any(found in network for network in NOT_PUBLIC if network.version == found.version):
        return False
    return found.is_global and not found.is_multicast and not found.is_reserved


class PublicResolver(AbstractResolver):
    """The system's resolver, restricted to names with only public addresses, and to `allowed` names.

    Connections use the addresses checked here, so a name that changes its address afterwards gains nothing. Hosts written as
    addresses bypass a resolver; see `check_literal`.
    """

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self._allowed = frozenset(allowed)
        self._system = ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: AddressFamily = AF_INET) -> list[ResolveResult]:
        """Resolve a host.

        Raises:
            NotPublic: one of the addresses is not public.
            OSError: the name is unknown.
        """
        found = await self._system.resolve(host, port, family)
        if host.lower() not in self._allowed and not all(is_public(entry["host"]) for entry in found):
            raise NotPublic(host)
        return found

    def check_literal(self, host: str) -> None:
        """Check a host that may be written as an address, including forms such as `127.1` that only some parsers accept.

        Raises:
            NotPublic: it is an address that is not public, or not in its usual form.
        """
        address = ":" in host or host.replace(".", "").isdigit()
        if address and host.lower() not in self._allowed and not is_public(host):
            raise NotPublic(host)

    async def close(self) -> None:
        """Do nothing, because no resource is held."""
        await self._system.close()
