"""The only module that creates librdkafka's clients for records. Connection parameters come from `KafkaSettings`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError, for_code
from confluent_kafka import Consumer, Producer
from confluent_kafka import KafkaError as NativeError
from confluent_kafka.admin import AdminClient

from schemas.errors import ConfigError
from schemas.kafka_settings import KafkaSettings
from schemas.watched import Stamp, stamp_of
from streams.kafka import connect
from streams.kafka.tokens import tokens_of

__all__ = ["RANK_REPLIES", "RANK_TASKS", "REPLIES", "Files", "Profile", "admin", "consumer", "error_of", "producer"]

log = logging.getLogger(__name__)

Profile = Mapping[str, Any]

COMMON: Profile = {
    "reconnect.backoff.max.ms": 1_000,
    "topic.metadata.refresh.interval.ms": connect.METADATA_MAX_AGE_MS,
    "allow.auto.create.topics": False,
    "log.connection.close": False,
}
PROMPT: Profile = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",
    "isolation.level": "read_committed",
    "check.crcs": True,
    "fetch.wait.max.ms": 500,  # a fetch ends with the first record
    "fetch.queue.backoff.ms": 5,
    "queued.max.messages.kbytes": 16_384,
    "max.poll.interval.ms": 86_400_000,  # this consumer is no member of its group
}
"Records that must not wait. The group assigns the partitions and keeps the offsets."
REPLIES: Profile = {
    "acks": 1,
    "linger.ms": 0,
    "partitioner": "murmur2_random",  # as Kafka's other clients
    "message.max.bytes": connect.MAX_REQUEST_BYTES,
    "message.timeout.ms": 30_000,
    "queue.buffering.max.kbytes": 262_144,
}
"A worker's replies: a late reply is worth less than the next one."
RANK_TASKS: Profile = {
    **REPLIES,
    "compression.type": "zstd",
    "message.timeout.ms": 2_000,  # no record is of use much later
}
"A worker's tasks for ranking processes: of the features, which are most of a record, many are equal or 0."
RANK_REPLIES: Profile = {**REPLIES, "message.timeout.ms": 2_000}
"Replies and acknowledgements of a ranking process."


class Files:
    """Notices changed files of certificates and of the password, which a client of librdkafka reads only when it is created."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._stamps = self._now()

    def changed(self) -> bool:
        """Whether a client must be created anew: once after each change, and not if the files cannot be used."""
        now = self._now()
        if now == self._stamps:
            return False
        self._stamps = now
        try:
            _connection(self._kafka)
        except ConfigError as error:
            log.warning("%s; what was read before is used", error.message)
            return False
        return True

    def _now(self) -> tuple[Stamp, ...]:
        kafka = self._kafka
        return tuple(map(stamp_of, (kafka.ca_file, kafka.cert_file, kafka.key_file, kafka.password_file)))


def consumer(kafka: KafkaSettings, group_id: str) -> Consumer:
    """Create a consumer of partitions that its caller assigns.

    Raises:
        ConfigError: as `streams.kafka.connect.security`. All functions here that create a client raise it.
    """
    return Consumer({**_connection(kafka), **PROMPT, "group.id": group_id}, logger=log)


def producer(kafka: KafkaSettings, profile: Profile) -> Producer:
    """Create a producer."""
    return Producer({**_connection(kafka), **profile}, logger=log)


def admin(kafka: KafkaSettings) -> AdminClient:
    """Create an admin client."""
    return AdminClient(_connection(kafka), logger=log)


def error_of(error: NativeError) -> KafkaError:
    """Return the error of aiokafka that stands for an error of librdkafka, so that one table says what to do about it."""
    if error.code() >= 0:
        return for_code(error.code())(error.str())
    if error.code() in {NativeError._MSG_TIMED_OUT, NativeError._TIMED_OUT}:
        return KafkaTimeoutError(error.str())
    return KafkaConnectionError(error.str())


def _connection(kafka: KafkaSettings) -> dict[str, Any]:
    found: dict[str, Any] = {"bootstrap.servers": kafka.bootstrap_servers, "security.protocol": kafka.security, **COMMON}
    if kafka.encrypts:
        connect.tls(kafka)  # so that an unusable file is named by its setting
        key = kafka.key_file or kafka.cert_file
        files = {"ssl.ca.location": kafka.ca_file, "ssl.certificate.location": kafka.cert_file, "ssl.key.location": key}
        found |= {name: file for name, file in files.items() if file}
    if kafka.uses_tokens:
        tokens = tokens_of(kafka)
        found |= {"sasl.mechanism": kafka.sasl_mechanism, "oauth_cb": lambda _: tokens.with_expiry()}
    elif kafka.logs_in:
        login = {"sasl.username": kafka.username, "sasl.password": kafka.secret()}
        found |= {"sasl.mechanism": kafka.sasl_mechanism, **login}
    return found
