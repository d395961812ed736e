"""The rights on Kafka that each role needs, and no more: as access control lists, and as a policy of Amazon IAM for MSK.

What a role reads and writes is declared with each topic in `streams.kafka.topics`.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schemas.errors import ConfigError
from schemas.settings import Settings
from streams.kafka.client import REPLIES
from streams.kafka.topics import CLIENT, RANKING, TOPICS, TRAIN, WORKER

__all__ = ["ROLES", "Right", "commands_of", "policy_of", "rights_of"]

ROLES = (WORKER, RANKING, CLIENT, TRAIN)
CLUSTER = re.compile(
    r"arn:(?P<partition>aws[a-z-]*):kafka:(?P<region>[a-z0-9-]+):(?P<account>\d+):cluster/(?P<name>[^/]+/[^/]+)"
)
OPTIONS = {"topic": "--topic", "group": "--group", "transactional-id": "--transactional-id"}
ACTIONS = {
    ("topic", "Describe"): ("DescribeTopic",),
    ("topic", "Read"): ("DescribeTopic", "ReadData"),
    ("topic", "Write"): ("DescribeTopic", "WriteData"),
    ("topic", "Create"): ("CreateTopic",),
    ("group", "Read"): ("DescribeGroup", "AlterGroup"),
    ("transactional-id", "Describe"): ("DescribeTransactionalId",),
    ("transactional-id", "Write"): ("DescribeTransactionalId", "AlterTransactionalId"),
}
"Actions of `kafka-cluster` that stand for an operation of Kafka."


@dataclass(frozen=True, slots=True)
class Right:
    """One operation on a resource."""

    kind: str
    "A key of `OPTIONS`."
    name: str
    operation: str
    prefixed: bool = False
    "Whether the name is a prefix of the names that are meant."


def rights_of(role: str, settings: Settings) -> tuple[Right, ...]:
    """Return the rights of one of `ROLES`. The topics must exist: nobody may create one but that of replies."""
    found = [] if role == TRAIN else [Right("topic", settings.topic_prefix, "Describe", prefixed=True)]
    for name, spec in TOPICS.items():
        found += [Right("topic", settings.topic(name), "Read")] if role in spec.readers else []
        found += [Right("topic", settings.topic(name), "Write")] if role in spec.writers else []
    if role == TRAIN:
        return tuple(found)
    replies = settings.topic(REPLIES)
    if role == RANKING:
        return (*found, Right("topic", replies, "Write"), Right("group", settings.topic("rank"), "Read"))
    # a worker asks other workers as a client does
    found += [Right("topic", replies, "Read"), Right("topic", replies, "Create")]
    if role == CLIENT:
        return tuple(found)
    found += [Right("topic", replies, "Write"), Right("group", settings.app_id, "Read")]
    found += [Right("group", f"{settings.app_id}-archive", "Read")]
    found += [Right("transactional-id", f"{settings.app_id}-", one, prefixed=True) for one in ("Describe", "Write")]
    return tuple(found)


def commands_of(rights: Sequence[Right], principal: str, bootstrap: str) -> list[str]:
    """Return commands of Kafka's `kafka-acls` that give the rights to `principal` (`User:name`), one for each resource."""
    operations: dict[tuple[str, str, bool], list[str]] = defaultdict(list)
    for right in rights:
        operations[right.kind, right.name, right.prefixed].append(right.operation)
    return [
        shlex.join(
            [
                *("kafka-acls", "--bootstrap-server", bootstrap, "--add", "--allow-principal", principal),
                *(part for one in given for part in ("--operation", one)),
                *(OPTIONS[kind], name),
                *(("--resource-pattern-type", "prefixed") if prefixed else ()),
            ]
        )
        for (kind, name, prefixed), given in operations.items()
    ]


def policy_of(rights: Sequence[Right], cluster: str) -> dict[str, Any]:
    """Return a policy of Amazon IAM that gives the rights on an MSK cluster, by its ARN.

    Raises:
        ConfigError: `cluster` is no ARN of an MSK cluster.
    """
    match = CLUSTER.fullmatch(cluster)
    if match is None:
        message = "the cluster must be an ARN, as arn:aws:kafka:REGION:ACCOUNT:cluster/NAME/ID"
        raise ConfigError("invalid_setting", message, "cluster")
    at = f"arn:{match['partition']}:kafka:{match['region']}:{match['account']}"
    resources: dict[tuple[str, ...], set[str]] = defaultdict(set)
    actions: dict[str, set[str]] = defaultdict(set)
    for right in rights:
        arn = f"{at}:{right.kind}/{match['name']}/{right.name}{'*' if right.prefixed else ''}"
        actions[arn] |= {f"kafka-cluster:{action}" for action in ACTIONS[right.kind, right.operation]}
    for arn, given in actions.items():
        resources[tuple(sorted(given))].add(arn)
    allowed = [{"Effect": "Allow", "Action": list(given), "Resource": sorted(arns)} for given, arns in resources.items()]
    own = {"Effect": "Allow", "Action": ["kafka-cluster:Connect", "kafka-cluster:WriteDataIdempotently"], "Resource": [cluster]}
    return {"Version": "2012-10-17", "Statement": [own, *allowed]}
