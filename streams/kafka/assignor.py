"""Partition assignment: balanced, preferring members that already hold the rows, with standbys beside the owners.

A member reports to the group which partition numbers it holds: as owner, as standby, or as rows left on its disk. The group's
leader gives number n of every topic to one member, because requests, events and co-visits of a number belong together. A
partition stays with its owner as long as the balance allows. If the owner is gone, the partition goes to its standby.

A member also reports the address of its HTTP interface. The leader gives each such member the addresses of the workers that
own each number and stand by for it, so that requests find the rows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

import orjson
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

__all__ = ["NOBODY", "ON_DISK", "OWNER", "STANDBY", "Holders", "HoldingAssignor", "Placement", "place", "pools"]

OWNER, STANDBY, ON_DISK = 3, 2, 1
"How a member holds a partition. With a larger value it has less to catch up."
VERSION = 1
TURN = 2**32 - 1
"Key in place of a partition number. Its value counts the member's requests for reassignment, in the lowest byte."
ADDRESS, MAX_ADDRESS = TURN - 1_024, 512
"""Key of the first byte of a member's address, and its maximum length. Each byte is the value of an entry with the next key,
because versions that know no addresses ignore such entries, as they ignore `TURN`."""
WITH_HOLDERS = 2
"""First byte of an assignment with the addresses of holders, as JSON. Only a member that reports an address gets one; an
assignment of version 1, of an earlier leader, has none."""
_ENTRY = struct.Struct("<IB")


@dataclass(slots=True)
class Placement:
    """Partition numbers per member."""

    owned: dict[str, list[int]] = field(default_factory=dict)
    standby: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Holders:
    """The workers that hold a partition number, by the address of their HTTP interface."""

    owner: str | None = None
    "None if the owner reports no address."
    standbys: tuple[str, ...] = ()


NOBODY = Holders()
"The holders of a number of which nothing is known."


def place(partitions: Sequence[int], held: Mapping[str, Mapping[int, int]], standbys: int) -> Placement:
    """Place `partitions` on the members in `held` (at least one), with up to `standbys` copies beside each owner.

    `held`: for each member, how it holds each number. The result is deterministic. The numbers of partitions that any two
    members own differ by at most one. While the members stay the same, nothing moves.
    """
    members = sorted(held)
    placed = Placement({m: [] for m in members}, {m: [] for m in members})
    owner = _owners(partitions, held, members, placed.owned)
    _add_standbys(partitions, held, owner, placed.standby, standbys)
    for mine in (*placed.owned.values(), *placed.standby.values()):
        mine.sort()
    return placed


def _owners(
    partitions: Sequence[int], held: Mapping[str, Mapping[int, int]], members: Sequence[str], owned: dict[str, list[int]]
) -> dict[int, str]:
    """Give each number to a member; returns the owner of each."""
    least, extra = divmod(len(partitions), len(members))
    known, owner = set(partitions), dict[int, str]()
    # the best holders choose first; a full member must release, as must one of too many with an extra partition
    for _, n, member in sorted((-how, n, m) for m in members for n, how in held[m].items() if n in known):
        mine = owned[member]
        if n not in owner and len(mine) < least + (extra > 0):
            mine.append(n)
            owner[n] = member
            extra -= len(mine) > least
    lightest = [(len(owned[m]), m) for m in members]
    heapify(lightest)
    for n in partitions:
        if n not in owner:
            count, member = lightest[0]
            owned[member].append(n)
            owner[n] = member
            heapreplace(lightest, (count + 1, member))
    return owner


def _add_standbys(
    partitions: Sequence[int],
    held: Mapping[str, Mapping[int, int]],
    owner: Mapping[int, str],
    standby: dict[str, list[int]],
    standbys: int,
) -> None:
    """Give each number to `standbys` members beside its owner: first those with room that hold it best, then the lightest."""
    most = -(-len(partitions) * standbys // len(standby))
    holders: dict[int, list[str]] = {}
    for member, mine in held.items():
        for n in mine:
            holders.setdefault(n, []).append(member)
    lightest = [(0, m) for m in standby]
    heapify(lightest)
    for n in partitions:
        # no other member can be among the chosen, because as many lighter ones precede it
        first: list[str] = []
        while lightest and len(first) <= standbys:
            count, member = heappop(lightest)
            if count == len(standby[member]):
                first.append(member)
            else:
                heappush(lightest, (len(standby[member]), member))
        candidates = {*first, *holders.get(n, ())} - {owner[n]}
        rank = {m: (len(standby[m]) >= most, -held[m].get(n, 0), len(standby[m]), m) for m in candidates}
        for member in sorted(candidates, key=rank.__getitem__)[:standbys]:
            standby[member].append(n)
        for member in first:
            heappush(lightest, (len(standby[member]), member))


def packed(held: Mapping[int, int]) -> bytes:
    """Encode the partitions that a member holds for the group protocol."""
    return bytes([VERSION]) + b"".join(_ENTRY.pack(n, how) for n, how in sorted(held.items()))


def unpacked(data: bytes | None) -> dict[int, int]:
    """Decode the result of `packed`; empty for a member of another version, which is treated as holding nothing."""
    if not data or data[0] != VERSION or (len(data) - 1) % _ENTRY.size:
        return {}
    return dict(_ENTRY.iter_unpack(data[1:]))


def spelled(address: str) -> dict[int, int]:
    """Encode a member's address as entries for `packed`; none if it is too long."""
    data = address.encode()
    return {ADDRESS + n: byte for n, byte in enumerate(data)} if len(data) <= MAX_ADDRESS else {}


def address_in(entries: Mapping[int, int]) -> str | None:
    """Decode the address in the result of `unpacked`; None if it has none."""
    data = bytes(entries[n] for n in sorted(entries) if ADDRESS <= n < ADDRESS + MAX_ADDRESS)
    return data.decode(errors="replace") or None


def holders_in(placed: Placement, addresses: Mapping[str, str | None]) -> dict[int, Holders]:
    """Return the addresses of each number's holders, given each member's own."""
    standbys: dict[int, list[str]] = {}
    for member, numbers in placed.standby.items():
        if (address := addresses[member]) is not None:
            for n in numbers:
                standbys.setdefault(n, []).append(address)
    owned = [(n, addresses[member]) for member, numbers in placed.owned.items() for n in numbers]
    return {n: Holders(owner, tuple(sorted(standbys.get(n, ())))) for n, owner in sorted(owned)}


def with_holders(standby: Iterable[int], holders: Mapping[int, Holders]) -> bytes:
    """Encode a member's standby numbers, and the holders of every number."""
    workers = sorted({a for found in holders.values() for a in (found.owner, *found.standbys) if a is not None})
    at = {address: n for n, address in enumerate(workers)}
    rows = [[n, -1 if h.owner is None else at[h.owner], *(at[a] for a in h.standbys)] for n, h in holders.items()]
    return bytes([WITH_HOLDERS]) + orjson.dumps({"standby": list(standby), "workers": workers, "holders": rows})


def shared(data: bytes | None) -> tuple[frozenset[int], dict[int, Holders] | None]:
    """Decode a member's standby numbers, and the holders of every number; None in place of these if the leader knows none."""
    if not data or data[0] != WITH_HOLDERS:
        return frozenset(unpacked(data)), None
    found = orjson.loads(data[1:])
    workers = [*found["workers"], None]  # -1 stands for no address
    holders = {n: Holders(workers[owner], tuple(workers[m] for m in others)) for n, owner, *others in found["holders"]}
    return frozenset(found["standby"]), holders


def pools(
    members: Mapping[str, ConsumerProtocolMemberMetadata],
) -> list[dict[str, ConsumerProtocolMemberMetadata]]:
    """Divide a group's members so that those of different pools have no topic in common.

    There are several if programs with other topics share the group's name, such as workers with another prefix of topics.
    """
    found: list[tuple[set[str], dict[str, ConsumerProtocolMemberMetadata]]] = []
    for member, metadata in members.items():
        topics, mine = set(metadata.subscription), {member: metadata}
        apart = []
        for others, pool in found:
            if others & topics:
                topics |= others
                mine = {**pool, **mine}
            else:
                apart.append((others, pool))
        found = [*apart, (topics, mine)]
    return [pool for _, pool in found]


class HoldingAssignor(AbstractPartitionAssignor):  # type: ignore[misc]
    """`place` as an assignor of aiokafka. Called in the consumer's thread."""

    name = "riffle"

    def __init__(self, held: Callable[[], Mapping[int, int]], standbys: int, partitions: int) -> None:
        """`partitions`: number of partitions of the tables. Higher numbers, of a larger topic, are not assigned."""
        self._held = held
        self._partitions = partitions
        self._standbys = standbys
        self.turn = 0
        """Raised to force a reassignment: with unchanged metadata, a member of a stable group gets its old assignment back, in
        the old generation."""
        self.standby: frozenset[int] = frozenset()
        "Partition numbers to stand by for, as of the last assignment."
        self.address = ""
        "Address of this worker's HTTP interface, for other workers. Set before the consumer starts."
        self.holders: Mapping[int, Holders] = {}
        "Holders of each number, as of the last assignment. Replaced as a whole, so that any thread may read it."
        self.misnamed = False
        """Whether the last assignment names holders, but not this worker's address: a member with a fixed name that starts anew
        gets its old assignment, with the old address."""

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """Subscription of this member, with the partitions that it holds."""
        entries = {**self._held(), TURN: self.turn & 0xFF, **spelled(self.address)}
        return ConsumerProtocolMemberMetadata(VERSION, list(topics), packed(entries))

    def assign(
        self, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Assign partitions to all members, as the group's leader: to each only of topics that it asked for."""
        assigned: dict[str, ConsumerProtocolMemberAssignment] = {}
        for pool in pools(members):
            assigned |= self._assign(cluster, pool)
        return assigned

    def _assign(
        self, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        asked = {member: sorted(set(metadata.subscription)) for member, metadata in members.items()}
        tables = set(range(self._partitions))
        topics = set().union(*asked.values())
        numbers = {topic: tables & (cluster.partitions_for_topic(topic) or set()) for topic in topics}
        held = {member: unpacked(metadata.user_data) for member, metadata in members.items()}
        placed = place(sorted(set().union(*numbers.values())), held, self._standbys)
        addresses = {member: address_in(entries) for member, entries in held.items()}
        holders = holders_in(placed, addresses)
        return {
            member: ConsumerProtocolMemberAssignment(
                VERSION,
                [(topic, [n for n in placed.owned[member] if n in numbers[topic]]) for topic in asked[member]],
                packed(dict.fromkeys(placed.standby[member], STANDBY))
                if addresses[member] is None
                else with_holders(placed.standby[member], holders),
            )
            for member in members
        }

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Store this member's standby numbers, and the holders of all numbers, from its new assignment."""
        self.standby, holders = shared(assignment.user_data)
        self.holders = holders or {}
        known = {address for found in self.holders.values() for address in (found.owner, *found.standbys)}
        mine = self.standby or any(numbers for _, numbers in assignment.assignment)
        self.misnamed = holders is not None and bool(mine) and bool(self.address) and self.address not in known
