"""A member asks to join its group once in a rebalance, whatever the number of its assignors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import GroupAuthorizationFailedError, MemberIdRequired
from aiokafka.protocol.group import JoinGroupRequest

from streams.kafka.assignor import HoldingAssignor
from streams.kafka.coordinator import Coordinator

ASSIGNORS = [HoldingAssignor(dict, 0, 1), RangePartitionAssignor, RoundRobinPartitionAssignor]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("named", [False, True])
async def test_one_request_names_all_assignors(monkeypatch: pytest.MonkeyPatch, count: int, named: bool) -> None:
    sent: list[tuple[str, list[str]]] = []

    async def send(self: Any, request: Any) -> Any:
        assert isinstance(request, JoinGroupRequest)
        sent.append((request._member_id, [name for name, _ in request._group_protocols]))
        refused = GroupAuthorizationFailedError if self.member_id else MemberIdRequired
        return SimpleNamespace(error_code=refused.errno, member_id="given")

    monkeypatch.setattr(GroupCoordinator, "_send_req", send)
    coordinator = Coordinator.__new__(Coordinator)
    coordinator._assignors = ASSIGNORS[:count]
    coordinator.member_id, coordinator._group_instance_id = "mine" if named else "", None
    coordinator._rebalance_timeout_ms = 1_000
    subscription = SimpleNamespace(topics={"t"}, active=True)
    joining = CoordinatorGroupRebalance(coordinator, "g", 1, subscription, coordinator._assignors, 1_000, 1)
    with pytest.raises(GroupAuthorizationFailedError):
        await joining.perform_group_join()
    names = [assignor.name for assignor in ASSIGNORS[:count]]
    assert sent == [("mine", names)] if named else [("", names), ("given", names)], "the first one only asks for a name"
