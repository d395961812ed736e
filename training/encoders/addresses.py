"""Which addresses are public: what a catalogue names must not make Riffle ask machines that only it can reach."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from socket import AF_INET, AddressFamily

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

__all__ = ["NotPublic", "PublicResolver", "is_public"]

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
NOT_PUBLIC = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("3fff::/20"))
"An address inside of a cloud, and one for documentation (RFC 9637), that Python 3.11 takes for public."


class NotPublic(Exception):
    """A host is, or has among its addresses, one that is not public."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet: not loopback, private, link-local, shared, multicast or reserved.

    An IPv6 address that stands for an IPv4 one (mapped, 6to4, NAT64) is what that one is; Teredo is not public.
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
    """The system's resolver, for names whose addresses are all public, and for `allowed` ones.

    What is connected to is what was looked at here: a name that changes its address in between gains nothing. Hosts that
    are written as an address do not come here; see `check_literal`.
    """

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self._allowed = frozenset(allowed)
        self._system = ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: AddressFamily = AF_INET) -> list[ResolveResult]:
        """Addresses of a host.

        Raises:
            NotPublic: one of them is not public.
            OSError: the name is not known.
        """
        found = await self._system.resolve(host, port, family)
        if host.lower() not in self._allowed and not all(is_public(entry["host"]) for entry in found):
            raise NotPublic(host)
        return found

    def check_literal(self, host: str) -> None:
        """Look at a host that may be written as an address, also in a form such as `127.1`, which only some take for one.

        Raises:
            NotPublic: it is one, and not public, or not in its usual form.
        """
        address = ":" in host or host.replace(".", "").isdigit()
        if address and host.lower() not in self._allowed and not is_public(host):
            raise NotPublic(host)

    async def close(self) -> None:
        """Nothing is held."""
        await self._system.close()
