"""Riffle's reaction to each Kafka error code: one table, which `docs/kafka-errors.md` shows and every Kafka client follows.

The codes and their names are those of Apache Kafka 4.3 (`org.apache.kafka.common.protocol.Errors`).
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

import aiokafka.errors
from aiokafka.errors import BrokerResponseError, KafkaError

__all__ = ["ACTIONS", "CODES", "Action", "Code", "Refused", "action_of", "advice_of", "named"]


class Action(enum.Enum):
    """Reaction to an error."""

    RETRY = "retry"
    "The error is transient: the client retries, and waiting work keeps waiting."
    REPLACE = "replace the client"
    "The client and the broker no longer agree: the client is closed and replaced, and the work is done again."
    REJECT = "reject the record"
    "The record is at fault: its sender gets a final error, or it becomes a dead letter. Its neighbours are unaffected."
    REFUSE = "report"
    """Someone must change something: readiness and `riffle doctor` name the error and the remedy. It is retried at long
    intervals, so that nothing has to be restarted."""
    END = "end"
    "The client was used wrongly, which is a fault of this program: the process ends, and its supervisor restarts it."


ACTIONS = {
    Action.RETRY: "The client retries with back-off until the deadline of the operation; nothing is lost.",
    Action.REPLACE: "The client is closed and a new one takes its place. A partition is read again from its last commit.",
    Action.REJECT: "The sender gets a final error (HTTP 413 or 400), or the record becomes a dead letter.",
    Action.REFUSE: "Readiness and `riffle doctor` report it. It is retried at least every 30 s: no restart is needed.",
    Action.END: "The process ends with a stack trace, and its supervisor starts it again.",
}


@dataclass(frozen=True, slots=True)
class Code:
    """A row of the table."""

    name: str
    action: Action
    advice: str = ""
    "The remedy; completes the message of a refusal."


_ACL = "grant this client's principal the required permission in the broker's ACLs"
_CREDENTIALS = "correct the credentials of this client"
_RETRY, _REPLACE, _REJECT, _REFUSE = Action.RETRY, Action.REPLACE, Action.REJECT, Action.REFUSE
_ADMIN = "Riffle sends no request that should get this answer: see the broker's log"

CODES: dict[int, Code] = {
    -1: Code("UNKNOWN_SERVER_ERROR", _REPLACE),
    1: Code("OFFSET_OUT_OF_RANGE", _RETRY),
    2: Code("CORRUPT_MESSAGE", _RETRY),
    3: Code("UNKNOWN_TOPIC_OR_PARTITION", _RETRY),
    4: Code("INVALID_FETCH_SIZE", _REPLACE),
    5: Code("LEADER_NOT_AVAILABLE", _RETRY),
    6: Code("NOT_LEADER_OR_FOLLOWER", _RETRY),
    7: Code("REQUEST_TIMED_OUT", _RETRY),
    8: Code("BROKER_NOT_AVAILABLE", _RETRY),
    9: Code("REPLICA_NOT_AVAILABLE", _RETRY),
    10: Code("MESSAGE_TOO_LARGE", _REJECT, "raise the topic's max.message.bytes"),
    11: Code("STALE_CONTROLLER_EPOCH", _RETRY),
    12: Code("OFFSET_METADATA_TOO_LARGE", _REPLACE),
    13: Code("NETWORK_EXCEPTION", _RETRY),
    14: Code("COORDINATOR_LOAD_IN_PROGRESS", _RETRY),
    15: Code("COORDINATOR_NOT_AVAILABLE", _RETRY),
    16: Code("NOT_COORDINATOR", _RETRY),
    17: Code("INVALID_TOPIC_EXCEPTION", _REFUSE, "choose a RIFFLE_TOPIC_PREFIX that gives valid topic names"),
    18: Code("RECORD_LIST_TOO_LARGE", _REJECT, "raise the topic's segment.bytes"),
    19: Code("NOT_ENOUGH_REPLICAS", _RETRY),
    20: Code("NOT_ENOUGH_REPLICAS_AFTER_APPEND", _RETRY),
    21: Code("INVALID_REQUIRED_ACKS", _REPLACE),
    22: Code("ILLEGAL_GENERATION", _REPLACE),
    23: Code(
        "INCONSISTENT_GROUP_PROTOCOL", _REFUSE, "another program uses this group: give this instance its own RIFFLE_APP_ID"
    ),
    24: Code("INVALID_GROUP_ID", _REFUSE, "set RIFFLE_APP_ID to a valid group name"),
    25: Code("UNKNOWN_MEMBER_ID", _REPLACE),
    26: Code(
        "INVALID_SESSION_TIMEOUT",
        _REFUSE,
        "set RIFFLE_SESSION_TIMEOUT_S between the broker's group.min.session.timeout.ms and group.max.session.timeout.ms",
    ),
    27: Code("REBALANCE_IN_PROGRESS", _RETRY),
    28: Code("INVALID_COMMIT_OFFSET_SIZE", _REPLACE),
    29: Code("TOPIC_AUTHORIZATION_FAILED", _REFUSE, _ACL),
    30: Code("GROUP_AUTHORIZATION_FAILED", _REFUSE, _ACL),
    31: Code("CLUSTER_AUTHORIZATION_FAILED", _REFUSE, _ACL),
    32: Code("INVALID_TIMESTAMP", _REJECT, "correct the clock here, or raise the topic's message.timestamp.before.max.ms"),
    33: Code("UNSUPPORTED_SASL_MECHANISM", _REFUSE, "set RIFFLE_KAFKA_SASL_MECHANISM to one that the broker enables"),
    34: Code("ILLEGAL_SASL_STATE", _REPLACE),
    35: Code("UNSUPPORTED_VERSION", _REFUSE, "use Apache Kafka 2.8 or newer"),
    36: Code("TOPIC_ALREADY_EXISTS", _RETRY),
    37: Code("INVALID_PARTITIONS", _REFUSE, "set RIFFLE_PARTITIONS to a number that the broker allows"),
    38: Code("INVALID_REPLICATION_FACTOR", _REFUSE, "set RIFFLE_REPLICATION to at most the number of brokers"),
    39: Code("INVALID_REPLICA_ASSIGNMENT", _REFUSE, _ADMIN),
    40: Code("INVALID_CONFIG", _REFUSE, "create the topic by hand, with a configuration that the broker allows"),
    41: Code("NOT_CONTROLLER", _RETRY),
    42: Code("INVALID_REQUEST", _REPLACE),
    43: Code("UNSUPPORTED_FOR_MESSAGE_FORMAT", _REFUSE, "set the topic's message.format.version to 2.0 or newer"),
    44: Code("POLICY_VIOLATION", _REFUSE, "create the topic by hand, within the broker's policy"),
    45: Code("OUT_OF_ORDER_SEQUENCE_NUMBER", _REPLACE),
    46: Code("DUPLICATE_SEQUENCE_NUMBER", _REPLACE),
    47: Code("INVALID_PRODUCER_EPOCH", _REPLACE),
    48: Code("INVALID_TXN_STATE", _REPLACE),
    49: Code("INVALID_PRODUCER_ID_MAPPING", _REPLACE),
    50: Code("INVALID_TRANSACTION_TIMEOUT", _REFUSE, "raise the broker's transaction.max.timeout.ms to 60000"),
    51: Code("CONCURRENT_TRANSACTIONS", _RETRY),
    52: Code("TRANSACTION_COORDINATOR_FENCED", _REPLACE),
    53: Code("TRANSACTIONAL_ID_AUTHORIZATION_FAILED", _REFUSE, _ACL),
    54: Code("SECURITY_DISABLED", _REFUSE, _ADMIN),
    55: Code("OPERATION_NOT_ATTEMPTED", _RETRY),
    56: Code("KAFKA_STORAGE_ERROR", _RETRY),
    57: Code("LOG_DIR_NOT_FOUND", _RETRY),
    58: Code("SASL_AUTHENTICATION_FAILED", _REFUSE, _CREDENTIALS),
    59: Code("UNKNOWN_PRODUCER_ID", _REPLACE),
    60: Code("REASSIGNMENT_IN_PROGRESS", _RETRY),
    61: Code("DELEGATION_TOKEN_AUTH_DISABLED", _REFUSE, _CREDENTIALS),
    62: Code("DELEGATION_TOKEN_NOT_FOUND", _REFUSE, _CREDENTIALS),
    63: Code("DELEGATION_TOKEN_OWNER_MISMATCH", _REFUSE, _CREDENTIALS),
    64: Code("DELEGATION_TOKEN_REQUEST_NOT_ALLOWED", _REFUSE, _CREDENTIALS),
    65: Code("DELEGATION_TOKEN_AUTHORIZATION_FAILED", _REFUSE, _CREDENTIALS),
    66: Code("DELEGATION_TOKEN_EXPIRED", _REFUSE, _CREDENTIALS),
    67: Code("INVALID_PRINCIPAL_TYPE", _REFUSE, _CREDENTIALS),
    68: Code("NON_EMPTY_GROUP", _REFUSE, _ADMIN),
    69: Code("GROUP_ID_NOT_FOUND", _REPLACE),
    70: Code("FETCH_SESSION_ID_NOT_FOUND", _RETRY),
    71: Code("INVALID_FETCH_SESSION_EPOCH", _RETRY),
    72: Code("LISTENER_NOT_FOUND", _RETRY),
    73: Code("TOPIC_DELETION_DISABLED", _REFUSE, _ADMIN),
    74: Code("FENCED_LEADER_EPOCH", _RETRY),
    75: Code("UNKNOWN_LEADER_EPOCH", _RETRY),
    76: Code("UNSUPPORTED_COMPRESSION_TYPE", _REFUSE, "set the topic's compression.type to producer"),
    77: Code("STALE_BROKER_EPOCH", _RETRY),
    78: Code("OFFSET_NOT_AVAILABLE", _RETRY),
    79: Code("MEMBER_ID_REQUIRED", _RETRY),
    80: Code("PREFERRED_LEADER_NOT_AVAILABLE", _RETRY),
    81: Code("GROUP_MAX_SIZE_REACHED", _REFUSE, "raise the broker's group.max.size, or run fewer workers"),
    82: Code("FENCED_INSTANCE_ID", _REFUSE, "two workers have the same RIFFLE_INSTANCE: give each its own"),
    83: Code("ELIGIBLE_LEADERS_NOT_AVAILABLE", _RETRY),
    84: Code("ELECTION_NOT_NEEDED", _RETRY),
    85: Code("NO_REASSIGNMENT_IN_PROGRESS", _RETRY),
    86: Code("GROUP_SUBSCRIBED_TO_TOPIC", _REPLACE),
    87: Code("INVALID_RECORD", _REJECT, "compare the topic's cleanup.policy and timestamps with `riffle topics`"),
    88: Code("UNSTABLE_OFFSET_COMMIT", _RETRY),
    89: Code("THROTTLING_QUOTA_EXCEEDED", _RETRY),
    90: Code("PRODUCER_FENCED", _REPLACE),
    91: Code("RESOURCE_NOT_FOUND", _REFUSE, _ADMIN),
    92: Code("DUPLICATE_RESOURCE", _REFUSE, _ADMIN),
    93: Code("UNACCEPTABLE_CREDENTIAL", _REFUSE, _CREDENTIALS),
    94: Code("INCONSISTENT_VOTER_SET", _RETRY),
    95: Code("INVALID_UPDATE_VERSION", _REFUSE, _ADMIN),
    96: Code("FEATURE_UPDATE_FAILED", _REFUSE, _ADMIN),
    97: Code("PRINCIPAL_DESERIALIZATION_FAILURE", _REFUSE, _CREDENTIALS),
    98: Code("SNAPSHOT_NOT_FOUND", _RETRY),
    99: Code("POSITION_OUT_OF_RANGE", _RETRY),
    100: Code("UNKNOWN_TOPIC_ID", _RETRY),
    101: Code("DUPLICATE_BROKER_REGISTRATION", _RETRY),
    102: Code("BROKER_ID_NOT_REGISTERED", _RETRY),
    103: Code("INCONSISTENT_TOPIC_ID", _RETRY),
    104: Code("INCONSISTENT_CLUSTER_ID", _REFUSE, "RIFFLE_BOOTSTRAP names brokers of two clusters: name brokers of only one"),
    105: Code("TRANSACTIONAL_ID_NOT_FOUND", _REPLACE),
    106: Code("FETCH_SESSION_TOPIC_ID_ERROR", _RETRY),
    107: Code("INELIGIBLE_REPLICA", _RETRY),
    108: Code("NEW_LEADER_ELECTED", _RETRY),
    109: Code("OFFSET_MOVED_TO_TIERED_STORAGE", _RETRY),
    110: Code("FENCED_MEMBER_EPOCH", _REPLACE),
    111: Code("UNRELEASED_INSTANCE_ID", _RETRY),
    112: Code("UNSUPPORTED_ASSIGNOR", _REFUSE, "add classic to the broker's group.coordinator.rebalance.protocols"),
    113: Code("STALE_MEMBER_EPOCH", _REPLACE),
    114: Code("MISMATCHED_ENDPOINT_TYPE", _REFUSE, "RIFFLE_BOOTSTRAP names a controller: name brokers"),
    115: Code("UNSUPPORTED_ENDPOINT_TYPE", _REFUSE, "RIFFLE_BOOTSTRAP names a controller: name brokers"),
    116: Code("UNKNOWN_CONTROLLER_ID", _RETRY),
    117: Code("UNKNOWN_SUBSCRIPTION_ID", _RETRY),
    118: Code("TELEMETRY_TOO_LARGE", _RETRY),
    119: Code("INVALID_REGISTRATION", _RETRY),
    120: Code("TRANSACTION_ABORTABLE", _REPLACE),
    121: Code("INVALID_RECORD_STATE", _REPLACE),
    122: Code("SHARE_SESSION_NOT_FOUND", _REPLACE),
    123: Code("INVALID_SHARE_SESSION_EPOCH", _REPLACE),
    124: Code("FENCED_STATE_EPOCH", _REPLACE),
    125: Code("INVALID_VOTER_KEY", _REFUSE, _ADMIN),
    126: Code("DUPLICATE_VOTER", _REFUSE, _ADMIN),
    127: Code("VOTER_NOT_FOUND", _REFUSE, _ADMIN),
    128: Code("INVALID_REGULAR_EXPRESSION", _REFUSE, _ADMIN),
    129: Code("REBOOTSTRAP_REQUIRED", _REPLACE),
    130: Code("STREAMS_INVALID_TOPOLOGY", _REFUSE, _ADMIN),
    131: Code("STREAMS_INVALID_TOPOLOGY_EPOCH", _REFUSE, _ADMIN),
    132: Code("STREAMS_TOPOLOGY_FENCED", _REFUSE, _ADMIN),
    133: Code("SHARE_SESSION_LIMIT_REACHED", _REFUSE, _ADMIN),
}
"Every code that a broker may answer, and the reaction to it. A code that is missing here is treated as -1."

CLIENT: dict[type[BaseException], Code] = {
    aiokafka.errors.KafkaConnectionError: Code("the connection broke", _RETRY),
    aiokafka.errors.NodeNotReadyError: Code("no connection to the broker", _RETRY),
    aiokafka.errors.NoBrokersAvailable: Code("no broker can be reached", _RETRY, "see RIFFLE_BOOTSTRAP"),
    aiokafka.errors.KafkaUnavailableError: Code("no broker can be reached", _RETRY, "see RIFFLE_BOOTSTRAP"),
    aiokafka.errors.KafkaTimeoutError: Code("the broker did not answer in time", _RETRY),
    aiokafka.errors.StaleMetadata: Code("metadata of the cluster is out of date", _RETRY),
    aiokafka.errors.Cancelled: Code("the request was cut off", _RETRY),
    aiokafka.errors.CommitFailedError: Code("the group was rebalanced before the commit", _RETRY),
    aiokafka.errors.ProducerFenced: Code("PRODUCER_FENCED", _REPLACE),
    aiokafka.errors.ProducerClosed: Code("the producer is closed", _REPLACE),
    aiokafka.errors.ConsumerStoppedError: Code("the consumer is closed", _REPLACE),
    aiokafka.errors.NoOffsetForPartitionError: Code("no offset to read from", _REPLACE),
    aiokafka.errors.RecordTooLargeError: Code(
        "a record is larger than one fetch", _REFUSE, "lower the topic's max.message.bytes, and delete the record"
    ),
    aiokafka.errors.UnsupportedCodecError: Code("records are compressed by an unknown codec", _REFUSE, "use gzip, lz4 or zstd"),
    aiokafka.errors.AuthenticationFailedError: Code("authentication failed", _REFUSE, _CREDENTIALS),
    aiokafka.errors.AuthenticationMethodNotSupported: Code("the SASL mechanism is not supported", _REFUSE, _CREDENTIALS),
    aiokafka.errors.UnrecognizedBrokerVersion: CODES[35],
    aiokafka.errors.IncompatibleBrokerVersion: CODES[35],
    aiokafka.errors.KafkaConfigurationError: Code("the client's configuration is invalid", Action.END),
    aiokafka.errors.IllegalStateError: Code("the client was used wrongly", Action.END),
    aiokafka.errors.IllegalArgumentError: Code("the client was used wrongly", Action.END),
    aiokafka.errors.IllegalOperation: Code("the client was used wrongly", Action.END),
    OSError: Code("the network failed", _RETRY),
}
"Errors that clients raise by themselves."

_QUOTED = re.compile(r"\b([A-Z]\w+)\(")


def _known(code: int, row: Code) -> type[BrokerResponseError]:
    """Create the class of a code that aiokafka lacks: it would otherwise be reported as an unknown error."""
    facts = {"errno": code, "message": row.name, "retriable": row.action is Action.RETRY}
    return type(row.name, (BrokerResponseError,), facts)


for _code, _row in CODES.items():
    aiokafka.errors.kafka_errors.setdefault(_code, _known(_code, _row))


def named(error: BaseException) -> Code:
    """The row of an error, or of the error that it wraps.

    aiokafka wraps some errors in a plain `KafkaError` that names their class only in its text.
    """
    seen: BaseException | None = error
    found: Code | None = None
    while seen is not None:
        if isinstance(seen, BrokerResponseError) and seen.errno in CODES:
            return CODES[seen.errno]
        for kind, row in CLIENT.items():
            if isinstance(seen, kind):
                return row
        if type(seen) is KafkaError and found is None:
            found = _quoted(str(seen))
        seen = seen.__cause__
    if found is not None:
        return found
    return CODES[-1] if isinstance(error, KafkaError) else Code(type(error).__name__, Action.END)


def _quoted(text: str) -> Code | None:
    for name in _QUOTED.findall(text):
        for code, kind in aiokafka.errors.kafka_errors.items():
            if kind.__name__ == name and code in CODES:
                return CODES[code]
    return None


class Refused(KafkaError):  # type: ignore[misc]
    """An error of Kafka with its topic; its cause is the error itself."""

    def __init__(self, topic: str, error: BaseException) -> None:
        super().__init__(f"{topic}: {advice_of(error)}")
        self.text = f"{topic}: {advice_of(error)}"


def action_of(error: BaseException) -> Action:
    """The reaction to an error. An error that does not come from Kafka ends the process."""
    return named(error).action


def advice_of(error: BaseException) -> str:
    """The error in one line, with the remedy if there is one."""
    if isinstance(error, Refused):
        return error.text
    row = named(error)
    text = row.name if row.action is not Action.END else f"{type(error).__name__}: {error}"
    return f"{text}: {row.advice}" if row.advice else text
