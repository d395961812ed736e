"""Topic metadata with ids: a topic that was deleted and recreated has another id, whatever its name and length.

aiokafka uses metadata versions without topic ids (KIP-516). The request here is version 12, sent with aiokafka's own protocol
classes and client. A broker older than Apache Kafka 2.8 does not support it: ids are then unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from aiokafka.errors import NoBrokersAvailable
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

__all__ = ["NO_ID", "TopicFacts", "describe_topics", "differ"]

NO_ID = bytes(16)
"Stands for an unknown id."
UNKNOWN_TOPIC = 3
TEXT = CompactString("utf-8")


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]
    """Protocol type of 16 raw bytes."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _Answer(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(("node_id", Int32), ("host", TEXT), ("port", Int32), ("rack", TEXT), ("tags", TaggedFields)),
        ),
        ("cluster_id", TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", TEXT),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("topic_authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _Question(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = _Answer
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("topic", TEXT), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicIds(Request[_Question]):  # type: ignore[misc]
    API_KEY = 3
    _CLASSES = (_Question,)

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_Question]) -> _Question:
        return request_struct_class([(NO_ID, topic, {}) for topic in self._topics], False, False, {})


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """Metadata of one topic."""

    topic_id: bytes
    "16 bytes; `NO_ID` if the broker does not report it."
    partitions: int
    "Number of partitions; 0 when the topic does not exist."


def differ(one: bytes, other: bytes) -> bool:
    """Whether two ids are known to belong to different topics."""
    return NO_ID not in {one, other} and one != other


async def describe_topics(client: Any, topics: Sequence[str]) -> Mapping[str, TopicFacts]:
    """Metadata of topics from any broker, through a connected `AIOKafkaClient`.

    Raises:
        KafkaError: no broker answers.
    """
    node = client.get_random_node()
    if node is None:
        raise NoBrokersAvailable
    try:
        answer = await client.send(node, _TopicIds(topics))
    except NotImplementedError:  # the broker supports only older versions
        for topic in topics:
            await client.add_topic(topic)
        await client.force_metadata_update()
        return {topic: TopicFacts(NO_ID, len(client.cluster.partitions_for_topic(topic) or ())) for topic in topics}
    found = dict.fromkeys(topics, TopicFacts(NO_ID, 0))
    for code, topic, topic_id, _, partitions, *_ in answer.topics:
        if code == 0 and topic in found:
            found[topic] = TopicFacts(topic_id, len(partitions))
    return found
