"""Partition assignment: balanced, preferring members that already hold the rows, with standbys beside the owners.

A member reports to the group which partition numbers it holds: as owner, as standby, or as rows left on its disk. The group's
leader gives number n of every topic to one member, because requests, events and co-visits of a number belong together. A
partition stays with its owner as long as the balance allows. If the owner is gone, the partition goes to its standby.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

__all__ = ["ON_DISK", "OWNER", "STANDBY", "HoldingAssignor", "Placement", "place"]

OWNER, STANDBY, ON_DISK = 3, 2, 1
"How a member holds a partition. With a larger value it has less to catch up."
VERSION = 1
TURN = 2**32 - 1
"Key in place of a partition number. Its value counts the member's requests for reassignment, in the lowest byte."
_ENTRY = struct.Struct("<IB")


@dataclass(slots=True)
class Placement:
    """Partition numbers per member."""

    owned: dict[str, list[int]] = field(default_factory=dict)
    standby: dict[str, list[int]] = field(default_factory=dict)


def place(partitions: Sequence[int], held: Mapping[str, Mapping[int, int]], standbys: int) -> Placement:
    """Place `partitions` on the members in `held` (at least one), with up to `standbys` copies beside each owner.

    `held`: for each member, how it holds each number. The result is deterministic. The numbers of partitions that any two
    members own differ by at most one. While the members stay the same, nothing moves.
    """
    members = sorted(held)
    placed = Placement({m: [] for m in members}, {m: [] for m in members})
    least, extra = divmod(len(partitions), len(members))
    left = []
    # the best holders choose first; a full member must release, as must one of too many with an extra partition
    claims = sorted((-how, n, m) for m in members for n, how in held[m].items() if n in set(partitions))
    taken: set[int] = set()
    for _, n, member in claims:
        full = sum(len(mine) > least for mine in placed.owned.values()) >= extra
        if n not in taken and len(placed.owned[member]) < least + (0 if full else 1):
            placed.owned[member].append(n)
            taken.add(n)
    left = [n for n in partitions if n not in taken]
    for n in left:
        member = min(members, key=lambda m: (len(placed.owned[m]), m))
        placed.owned[member].append(n)
    owner = {n: m for m, mine in placed.owned.items() for n in mine}
    most = -(-len(partitions) * standbys // len(members))
    for n in partitions:
        others = [m for m in members if m != owner[n]]
        others.sort(key=lambda m: (len(placed.standby[m]) >= most, -held[m].get(n, 0), len(placed.standby[m]), m))
        for member in others[:standbys]:
            placed.standby[member].append(n)
    for mine in (*placed.owned.values(), *placed.standby.values()):
        mine.sort()
    return placed


def packed(held: Mapping[int, int]) -> bytes:
    """Encode the partitions that a member holds for the group protocol."""
    return bytes([VERSION]) + b"".join(_ENTRY.pack(n, how) for n, how in sorted(held.items()))


def unpacked(data: bytes | None) -> dict[int, int]:
    """Decode the result of `packed`; empty for a member of another version, which is treated as holding nothing."""
    if not data or data[0] != VERSION or (len(data) - 1) % _ENTRY.size:
        return {}
    return dict(_ENTRY.iter_unpack(data[1:]))


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

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """Subscription of this member, with the partitions that it holds."""
        return ConsumerProtocolMemberMetadata(VERSION, list(topics), packed({**self._held(), TURN: self.turn & 0xFF}))

    def assign(
        self, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Assign partitions to all members, as the group's leader."""
        topics = sorted({topic for metadata in members.values() for topic in metadata.subscription})
        tables = set(range(self._partitions))
        numbers = {topic: tables & (cluster.partitions_for_topic(topic) or set()) for topic in topics}
        held = {member: unpacked(metadata.user_data) for member, metadata in members.items()}
        placed = place(sorted(set().union(*numbers.values())), held, self._standbys)
        return {
            member: ConsumerProtocolMemberAssignment(
                VERSION,
                [(topic, [n for n in placed.owned[member] if n in numbers[topic]]) for topic in topics],
                packed(dict.fromkeys(placed.standby[member], STANDBY)),
            )
            for member in members
        }

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Store this member's standby numbers from its new assignment."""
        self.standby = frozenset(unpacked(assignment.user_data))
