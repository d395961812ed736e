"""Laws of the assignment of partitions to workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from hypothesis import given
from hypothesis import strategies as st

from streams.kafka.assignor import (
    ADDRESS,
    MAX_ADDRESS,
    ON_DISK,
    OWNER,
    STANDBY,
    HoldingAssignor,
    Placement,
    packed,
    place,
    spelled,
    unpacked,
    with_holders,
)

members = st.lists(st.sampled_from([f"w{n}" for n in range(7)]), min_size=1, unique=True)
holding = st.dictionaries(st.integers(0, 20), st.sampled_from([ON_DISK, STANDBY, OWNER]), max_size=12)


@st.composite
def groups(draw: Any) -> dict[str, dict[int, int]]:
    return {member: draw(holding) for member in draw(members)}


def held_after(placed: Placement) -> dict[str, dict[int, int]]:
    return {m: dict.fromkeys(placed.standby[m], STANDBY) | dict.fromkeys(placed.owned[m], OWNER) for m in placed.owned}


@given(st.integers(1, 20), groups(), st.integers(0, 3))
def test_every_partition_has_one_owner_and_the_load_is_even(n: int, held: dict[str, dict[int, int]], standbys: int) -> None:
    placed = place(range(n), held, standbys)
    assert sorted(p for mine in placed.owned.values() for p in mine) == list(range(n))
    sizes = [len(mine) for mine in placed.owned.values()]
    assert max(sizes) - min(sizes) <= 1
    for member in held:
        assert not set(placed.owned[member]) & set(placed.standby[member])
    copies = [p for mine in placed.standby.values() for p in mine]
    for p in range(n):
        assert copies.count(p) == min(standbys, len(held) - 1)


def place_plainly(partitions: Sequence[int], held: Mapping[str, Mapping[int, int]], standbys: int) -> Placement:
    """As `place`, by looking at every member for every partition."""
    members = sorted(held)
    placed = Placement({m: [] for m in members}, {m: [] for m in members})
    least, extra = divmod(len(partitions), len(members))
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


@given(st.integers(1, 20), groups(), st.integers(0, 3))
def test_partitions_are_placed_as_by_looking_at_every_member(n: int, held: dict[str, dict[int, int]], standbys: int) -> None:
    assert place(range(n), held, standbys) == place_plainly(range(n), held, standbys)


@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 3), st.data())
def test_larger_groups_that_lose_members_are_placed_alike(n: int, size: int, standbys: int, data: st.DataObject) -> None:
    held = held_after(place_plainly(range(n), {f"m{k:02d}": {} for k in range(size)}, standbys))
    gone = data.draw(st.sets(st.sampled_from(sorted(held)), max_size=size - 1))
    left = {member: mine for member, mine in held.items() if member not in gone} | {"new": {}}
    assert place(range(n), left, standbys) == place_plainly(range(n), left, standbys)


@given(st.integers(1, 20), groups(), st.integers(0, 2))
def test_nothing_moves_while_the_members_stay(n: int, held: dict[str, dict[int, int]], standbys: int) -> None:
    first = place(range(n), held, standbys)
    assert place(range(n), held_after(first), standbys) == first


@given(st.integers(1, 20), groups())
def test_what_a_lost_worker_owned_goes_to_its_standbys_as_far_as_the_balance_allows(
    n: int, held: dict[str, dict[int, int]]
) -> None:
    first = place(range(n), held, 1)
    lost = sorted(held)[0]
    left = {m: kept for m, kept in held_after(first).items() if m != lost}
    if not left:
        return
    second = place(range(n), left, 1)
    room = -(-n // len(left))
    for member, rows in left.items():
        assert set(first.owned[member]) <= set(second.owned[member]), "those who stay keep what they own"
        cold = [p for p in second.owned[member] if p not in rows]
        waiting = [p for p in first.standby[member] if p not in second.owned[member] and p in first.owned[lost]]
        # it was given rows that it does not hold only where it holds none that it could have had instead
        assert not cold or not waiting or len(second.owned[member]) > room - 1


@given(holding)
def test_what_is_held_survives_the_group_protocol(held: dict[int, int]) -> None:
    assert unpacked(packed(held)) == held
    assert unpacked(b"\x09" + packed(held)[1:]) == {}
    assert unpacked(packed(held) + b"x") == {}


def test_a_number_of_every_topic_goes_to_one_member_and_standbys_are_told() -> None:
    # 4 and 5 were added to the topics later: the tables have no such partitions
    cluster = SimpleNamespace(partitions_for_topic=lambda topic: {0, 1, 2, 3, 4, 5})
    holds: dict[str, dict[int, int]] = {"a": {2: OWNER, 3: OWNER}, "b": {}}
    assignors = {member: HoldingAssignor(partial(holds.__getitem__, member), 1, 4) for member in holds}
    joined = {
        member: ConsumerProtocolMemberMetadata.decode(assignor.metadata(["events", "requests"]).encode())
        for member, assignor in assignors.items()
    }
    shares = assignors["a"].assign(cluster, joined)
    for member, assignor in assignors.items():
        share = ConsumerProtocolMemberAssignment.decode(shares[member].encode())
        assignor.on_assignment(share)
        by_topic = dict(share.assignment)
        assert by_topic["events"] == by_topic["requests"]
    assert dict(shares["a"].assignment)["events"] == [2, 3]
    assert dict(shares["b"].assignment)["events"] == [0, 1]
    assert [assignors[member].standby for member in "ab"] == [frozenset({0, 1}), frozenset({2, 3})]


subscriptions = st.dictionaries(
    st.sampled_from([f"w{n}" for n in range(6)]),
    st.sets(st.sampled_from(["a.events", "a.requests", "b.events", "b.requests"]), min_size=1),
    min_size=1,
)


@given(subscriptions, st.integers(1, 8))
def test_members_get_partitions_of_the_topics_that_they_asked_for_alone(asked: dict[str, set[str]], partitions: int) -> None:
    cluster = SimpleNamespace(partitions_for_topic=lambda topic: set(range(partitions)))
    joined = {member: HoldingAssignor(dict, 1, partitions).metadata(sorted(topics)) for member, topics in asked.items()}
    shares = HoldingAssignor(dict, 1, partitions).assign(cluster, joined)
    given_out = [(topic, n) for member, share in shares.items() for topic, numbers in share.assignment for n in numbers]
    assert len(given_out) == len(set(given_out))
    for member, share in shares.items():
        assert {topic for topic, _ in share.assignment} <= asked[member]
    prefixes = [{topic[0] for topic in topics} for topics in asked.values()]
    if all(len(prefix) == 1 for prefix in prefixes) and all(len(topics) == 2 for topics in asked.values()):
        # programs with different topics share no partition, and each has all of its own
        assert set(given_out) == {(t, n) for topics in asked.values() for t in topics for n in range(partitions)}


def test_workers_of_another_prefix_in_the_same_group_take_nothing_from_these() -> None:
    cluster = SimpleNamespace(partitions_for_topic=lambda topic: {0, 1, 2, 3})
    joined = {name: HoldingAssignor(dict, 1, 4).metadata([f"{name[0]}.rank"]) for name in ("a1", "a2", "b1")}
    shares = HoldingAssignor(dict, 1, 4).assign(cluster, joined)
    owned = {name: dict(share.assignment) for name, share in shares.items()}
    assert owned["b1"] == {"b.rank": [0, 1, 2, 3]}
    assert sorted(owned["a1"]["a.rank"] + owned["a2"]["a.rank"]) == [0, 1, 2, 3]


def group(holds: dict[str, dict[int, int]], addresses: dict[str, str], partitions: int) -> dict[str, HoldingAssignor]:
    """Members after one assignment, with all messages encoded as for the wire; without an address, of an earlier version."""
    numbers = set(range(partitions))
    cluster = SimpleNamespace(partitions_for_topic=lambda topic: numbers)
    assignors = {member: HoldingAssignor(partial(holds.__getitem__, member), 1, partitions) for member in holds}
    for member, assignor in assignors.items():
        assignor.address = addresses.get(member, "")
    joined = {
        member: ConsumerProtocolMemberMetadata.decode(assignor.metadata(["events"]).encode())
        for member, assignor in assignors.items()
    }
    shares = assignors[min(assignors)].assign(cluster, joined)
    for member, assignor in assignors.items():
        assignor.on_assignment(ConsumerProtocolMemberAssignment.decode(shares[member].encode()))
    return assignors


@given(groups(), st.integers(1, 12), st.data())
def test_every_member_learns_who_holds_what_under_which_address(
    held: dict[str, dict[int, int]], partitions: int, data: st.DataObject
) -> None:
    texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
    addresses = dict(zip(held, data.draw(st.lists(texts, min_size=len(held), max_size=len(held), unique=True)), strict=True))
    named = {member: addresses[member] for member in held if data.draw(st.booleans())}
    members = group(held, named, partitions)
    placed = place(range(partitions), held, 1)
    for member, assignor in members.items():
        assert assignor.standby == frozenset(placed.standby[member]), "whatever else it is given"
        if member not in named:
            assert assignor.holders == {}, "an earlier version would not understand it"
            continue
        assert not assignor.misnamed
        for owner, numbers in placed.owned.items():
            for n in numbers:
                copies = {named[m] for m, mine in placed.standby.items() if n in mine and m in named}
                assert assignor.holders[n].owner == named.get(owner)
                assert set(assignor.holders[n].standbys) == copies


@given(st.dictionaries(st.integers(0, 20), st.sampled_from([ON_DISK, STANDBY, OWNER]), max_size=12), st.text(max_size=40))
def test_an_address_changes_nothing_for_a_leader_that_knows_none(held: dict[int, int], address: str) -> None:
    data = packed({**held, **spelled(address.encode("utf-8", "ignore").decode())})
    known = unpacked(data)
    assert {n: how for n, how in known.items() if n < ADDRESS} == held
    assert place(range(21), {"a": known, "b": {}}, 1) == place(range(21), {"a": held, "b": {}}, 1)
    assert spelled("x" * (MAX_ADDRESS + 1)) == {}


def test_a_member_that_got_its_old_assignment_under_another_address_notices() -> None:
    members = group({"a": {0: OWNER}, "b": {1: OWNER}}, {"a": "a:1", "b": "b:1"}, 2)
    moved = members["b"]
    standby, holders = moved.standby, dict(moved.holders)
    moved.address = "c:1"
    moved.on_assignment(ConsumerProtocolMemberAssignment(2, [("events", [1])], with_holders(standby, holders)))
    assert moved.misnamed
    moved.on_assignment(ConsumerProtocolMemberAssignment(1, [("events", [1])], packed(dict.fromkeys(standby, STANDBY))))
    assert not moved.misnamed, "a leader of an earlier version names nobody"
