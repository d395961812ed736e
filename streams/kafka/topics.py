"""The topics, their required configuration, and their creation."""

from __future__ import annotations

from dataclasses import dataclass

from aiokafka.admin import NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

from schemas.errors import ConfigError
from schemas.settings import Settings
from streams.kafka import connect
from streams.kafka.error_codes import advice_of

__all__ = ["CLIENT", "RANKING", "TOPICS", "TRAIN", "WORKER", "TopicSpec", "ensure_topics", "partition_counts", "partitions_of"]

WORKER, RANKING, CLIENT, TRAIN = "worker", "ranking", "client", "train"
"Roles on Kafka: workers, ranking processes, programs that embed the client, and `riffle train`."
RETENTION_MS = 30 * 86_400_000
TRAININGS_MS = 7 * 86_400_000
TOMBSTONES_MS = 7 * 86_400_000
"""Milliseconds that a compacted topic keeps tombstones. Rows on an older disk may lack a deletion, so a worker rebuilds tables
that were not written for half of that time."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """Shape of a topic. `partitions` 0 means as many as `Settings.partitions`: such topics are co-partitioned by key."""

    partitions: int = 0
    compacted: bool = False
    retention_ms: int = RETENTION_MS
    stamped: bool = False
    "Whether the broker's clock stamps the records, so that clients' clocks do not matter."
    purpose: str = ""
    readers: tuple[str, ...] = (WORKER,)
    writers: tuple[str, ...] = (WORKER,)
    "Roles that read the topic and that write it, for `streams.kafka.rights`."

    def configuration(self) -> dict[str, str]:
        """Topic configuration. Compacted topics are never `compact,delete`: recovery stalls on records that vanish."""
        if self.compacted:
            kept = {"min.cleanable.dirty.ratio": "0.3", "segment.ms": "3600000", "delete.retention.ms": str(TOMBSTONES_MS)}
            return {"cleanup.policy": "compact", **kept}
        stamped = {"message.timestamp.type": "LogAppendTime"} if self.stamped else {}
        return {"cleanup.policy": "delete", "retention.ms": str(self.retention_ms), **stamped}


TOPICS: dict[str, TopicSpec] = {
    "interactions": TopicSpec(retention_ms=-1, purpose="what users did, key user_id", writers=(WORKER, CLIENT)),
    "requests": TopicSpec(
        retention_ms=3_600_000, stamped=True, purpose="recommendation requests, key user_id", writers=(WORKER, CLIENT)
    ),
    "rank": TopicSpec(retention_ms=600_000, purpose="candidates of requests, for ranking processes", readers=(RANKING,)),
    "rank-acks": TopicSpec(retention_ms=600_000, purpose="results of ranking processes, key worker", writers=(RANKING,)),
    "impressions": TopicSpec(purpose="slates as shown, key user_id"),
    "items": TopicSpec(
        partitions=1, compacted=True, purpose="the catalogue, key item_id; an empty value deletes", writers=(WORKER, CLIENT)
    ),
    "item-vectors": TopicSpec(
        partitions=1, compacted=True, purpose="vectors as encoders produce them, key item_id", writers=()
    ),
    "item-stats": TopicSpec(partitions=1, compacted=True, purpose="item statistics per source partition, absolute"),
    "covisits": TopicSpec(retention_ms=86_400_000, purpose="co-visitation increments, key item_id"),
    "neighbours": TopicSpec(partitions=1, compacted=True, purpose="each item's neighbours, absolute"),
    "models": TopicSpec(
        partitions=1,
        compacted=True,
        purpose="announced releases, key alias",
        readers=(WORKER, RANKING, TRAIN),
        writers=(WORKER, TRAIN),
    ),
    "trainings": TopicSpec(
        partitions=1,
        retention_ms=TRAININGS_MS,
        stamped=True,
        purpose="progress of trainings, key training",
        writers=(WORKER, TRAIN),
    ),
    "rules": TopicSpec(
        partitions=1, compacted=True, purpose="merchandising rules, key serving; an empty value removes them", writers=()
    ),
    "users-changelog": TopicSpec(compacted=True, purpose="user records and item statistics, by partition"),
    "covisits-changelog": TopicSpec(compacted=True, purpose="neighbour tables, by partition"),
    "dead-letters": TopicSpec(partitions=1, purpose="records that could not be used, with reason and origin"),
}


def partitions_of(name: str, settings: Settings) -> int:
    """Required number of partitions of a topic of `TOPICS`."""
    return TOPICS[name].partitions or settings.partitions


async def partition_counts(settings: Settings) -> dict[str, int]:
    """Partition count of each topic of `TOPICS` that exists, by short name."""
    admin = connect.admin(settings.kafka)
    try:
        await admin.start()
        described = await admin.describe_topics([settings.topic(name) for name in TOPICS])
    finally:
        await admin.close()
    full = {settings.topic(name): name for name in TOPICS}
    return {full[topic["topic"]]: len(topic["partitions"]) for topic in described if topic["error_code"] == 0}


async def ensure_topics(settings: Settings) -> dict[str, int]:
    """Create missing topics and check existing ones; returns the partition counts.

    Raises:
        ConfigError: a topic exists with another partition count than these settings need.
    """
    admin = connect.admin(settings.kafka)
    try:
        await admin.start()
        present = set(await admin.list_topics())
        missing = [
            NewTopic(
                settings.topic(name),
                partitions_of(name, settings),
                settings.replication,
                topic_configs=spec.configuration(),
            )
            for name, spec in TOPICS.items()
            if settings.topic(name) not in present
        ]
        if missing:
            response = await admin.create_topics(missing)
            for topic, code, *_ in response.topic_errors:
                if code not in (0, TopicAlreadyExistsError.errno):
                    message = f"{topic} cannot be created: {advice_of(for_code(code)())}"
                    raise ConfigError("topic_not_created", message, "partitions")
    finally:
        await admin.close()
    counts = await partition_counts(settings)
    for name, count in counts.items():
        wanted = partitions_of(name, settings)
        # tables keep the partition count of their changelogs; extra partitions of another topic are not read
        if count < wanted or (count != wanted and name.endswith("-changelog")):
            raise ConfigError(
                "partition_count",
                f"topic {settings.topic(name)} has {count} partitions, these settings need {wanted}: set RIFFLE_PARTITIONS to "
                f"{counts['users-changelog']}, or copy the topics with `riffle topics copy --partitions {wanted} --to PREFIX`",
                "partitions",
            )
    return counts
