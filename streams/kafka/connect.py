"""The only module that creates Kafka clients: producers, consumers, admin clients, Faust's credentials, the schema registry's
client.

Connection parameters come from `KafkaSettings`. Parameters of a client's task are a profile, a constant below. No other module
constructs a client or handles connection security; a test verifies this.

Each new connection reads changed files of certificates and of the password again.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from schemas.errors import ConfigError
from schemas.kafka_settings import KafkaSettings
from schemas.settings import Settings
from schemas.watched import Stamp, stamp
from streams.kafka.aiokafka_patches import AIOKafkaConsumer
from streams.kafka.connection import RENEW, FilePassword
from streams.kafka.probe import answers
from streams.kafka.tokens import tokens_of

if TYPE_CHECKING:
    from faust.auth import Credentials

    from schemas.codec import Registry

__all__ = [
    "METADATA_MAX_AGE_MS",
    "Profile",
    "admin",
    "any_answers",
    "consumer",
    "credentials",
    "producer",
    "registry",
    "security",
    "tls",
]

log = logging.getLogger(__name__)

Profile = Mapping[str, Any]
"Keyword arguments of an aiokafka client for its task, none for its connection."

METADATA_MAX_AGE_MS = 30_000
"Maximum age of a client's cluster metadata: a changed topic is noticed within that time."
MAX_REQUEST_BYTES = 2 << 20

# producers

DURABLE: Profile = {"acks": "all", "enable_idempotence": True}
"Announcements and dead letters: few records, each of which counts."
OUTPUTS: Profile = {
    **DURABLE,
    "linger_ms": 2,
    "max_request_size": MAX_REQUEST_BYTES,
    "metadata_max_age_ms": METADATA_MAX_AGE_MS,
}
"A worker's output besides its tables: impressions, dead letters, and events and items received by HTTP."
TABLE_WRITES: Profile = {
    "acks": "all",
    "linger_ms": 0,
    "max_batch_size": 1 << 20,
    "max_request_size": MAX_REQUEST_BYTES,
    "transaction_timeout_ms": 60_000,
}
"Transactions of one table partition, which adds its `transactional_id` and `request_timeout_ms`."
VECTOR_WRITES: Profile = {"acks": "all", "max_request_size": MAX_REQUEST_BYTES, "transaction_timeout_ms": 60_000}
"Transactions of the item encoder; `transactional_id` is its partition's."
BULK: Profile = {**DURABLE, "linger_ms": 0, "max_request_size": MAX_REQUEST_BYTES}
"Datasets, in batches that the caller fills and whose `max_batch_size` it sets."
COPIES: Profile = {**DURABLE, "linger_ms": 20, "max_request_size": MAX_REQUEST_BYTES}
"Topics copied to others."
CLIENT_EVENTS: Profile = {**DURABLE, "linger_ms": 0, "max_request_size": MAX_REQUEST_BYTES, "request_timeout_ms": 10_000}
"Events and items of a program that embeds the client."
CLIENT_REQUESTS: Profile = {"acks": 1, "linger_ms": 0, "request_timeout_ms": 10_000}
"Requests of a program that embeds the client."

# consumers: none commits by itself

LOOK: Profile = {"enable_auto_commit": False}
"Offsets and metadata, no records."
COMMITTED: Profile = {"enable_auto_commit": False, "auto_offset_reset": "earliest", "isolation_level": "read_committed"}
"Committed records from the beginning, for commands that read to an end."
BROADCAST: Profile = {**COMMITTED, "fetch_max_wait_ms": 50, "max_partition_fetch_bytes": 1 << 20}
"Topics that every worker reads whole."
TRAININGS: Profile = {**COMMITTED, "fetch_max_wait_ms": 500}
"The topic of trainings, which no request waits for."
STANDBY: Profile = {**COMMITTED, "fetch_max_wait_ms": 100, "max_partition_fetch_bytes": 4 << 20}
"Changelogs that standbys follow."
RESTORE: Profile = {**COMMITTED, "fetch_max_wait_ms": 20, "max_partition_fetch_bytes": 4 << 20}
"A changelog replay, while requests of its users wait."
PUBLISHED: Profile = {**COMMITTED, "fetch_max_wait_ms": 50}
"Item vectors that are already published."
ANNOUNCED: Profile = {"enable_auto_commit": False, "auto_offset_reset": "earliest", "fetch_max_wait_ms": 50}
"Announced releases."
CLIENT_REPLIES: Profile = {"enable_auto_commit": False, "auto_offset_reset": "latest", "fetch_max_wait_ms": 100}
"Replies to a program that embeds the client."
RANK_ACKS: Profile = {**CLIENT_REPLIES, "metadata_max_age_ms": METADATA_MAX_AGE_MS}
"Acknowledgements of ranking processes, for one worker."
ARCHIVE: Profile = {
    **COMMITTED,
    "max_poll_records": 200,  # bounds the records decoded between two turns of the event loop
    "fetch_max_wait_ms": 250,
    "metadata_max_age_ms": METADATA_MAX_AGE_MS,
}
"The archiver's group; `group_id` is the instance's."
ENCODER: Profile = {**COMMITTED, "fetch_max_wait_ms": 100, "session_timeout_ms": 15_000}
"The encoder's group; `group_id` is the instance's."
STREAM: Profile = {
    **COMMITTED,
    # writes per user and chunk are shared by more events, and long work runs in a thread
    "max_poll_records": 4_000,
    "max_poll_interval_ms": 300_000,
    "max_partition_fetch_bytes": 1 << 20,
    "fetch_max_wait_ms": 20,
    "metadata_max_age_ms": METADATA_MAX_AGE_MS,
}
"A worker's group, within Faust. The app sets its names, its assignors and its session."


def producer(kafka: KafkaSettings, profile: Profile, **own: Any) -> AIOKafkaProducer:
    """Create a producer that is not started. `own`: arguments of this producer besides its profile.

    Raises:
        ConfigError: as `security`. All functions here that create a client raise it.
    """
    return AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, **security(kafka), **profile, **own)


def consumer(kafka: KafkaSettings, profile: Profile, **own: Any) -> AIOKafkaConsumer:
    """Create a consumer that is not started."""
    return AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, **security(kafka), **profile, **own)


def admin(kafka: KafkaSettings) -> AIOKafkaAdminClient:
    """Create an admin client that is not started."""
    return AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers, **security(kafka))


def registry(settings: Settings) -> Registry | None:
    """The schema registry's client; None when none is configured.

    Raises:
        ConfigError: RIFFLE_REGISTRY_URL is no address.
    """
    if not settings.registry_url:
        return None
    # because the client's own dependencies take half a second to import, and warn
    from schemas.registry import ConfluentRegistry

    return ConfluentRegistry.at(settings.registry_url, settings.registry_login)


def security(kafka: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments with which an aiokafka client connects and logs in.

    Raises:
        ConfigError: a certificate file or the password cannot be read, or there is no such token provider; the message names
            the variable.
    """
    found: dict[str, Any] = {"security_protocol": kafka.security}
    if kafka.encrypts:
        found["ssl_context"] = tls(kafka)
    if kafka.uses_tokens:
        found |= {"sasl_mechanism": kafka.sasl_mechanism, "sasl_oauth_token_provider": tokens_of(kafka)}
    elif kafka.logs_in:
        login = {"sasl_plain_username": kafka.username, "sasl_plain_password": _password(kafka)}
        found |= {"sasl_mechanism": kafka.sasl_mechanism, **login}
    return found


def credentials(kafka: KafkaSettings) -> Credentials | None:
    """The login for Faust, which creates a producer of its own; None for plain text.

    Raises:
        ConfigError: as `security`.
    """
    # because commands that run no worker need not wait for Faust to be imported
    from faust.auth import OAuthCredentials, SASLCredentials, SSLCredentials

    context = tls(kafka)
    if kafka.uses_tokens:
        return OAuthCredentials(oauth_cb=tokens_of(kafka), ssl_context=context)
    if kafka.logs_in:
        return SASLCredentials(
            username=kafka.username, password=_password(kafka), mechanism=kafka.sasl_mechanism, ssl_context=context
        )
    return None if context is None else SSLCredentials(context)


def tls(kafka: KafkaSettings) -> ssl.SSLContext | None:
    """TLS context that encrypts connections and verifies brokers, including host names; None without TLS.

    Contexts are shared until a file changes.

    Raises:
        ConfigError: as `security`.
    """
    if not kafka.encrypts:
        return None
    stamps = tuple(_stamp(name, getattr(kafka, name)) for name in ("ca_file", "cert_file", "key_file"))
    found = _context(kafka.ca_file, kafka.cert_file, kafka.key_file, stamps)
    setattr(found, RENEW, lambda: tls(kafka))
    return found


def _password(kafka: KafkaSettings) -> str:
    return FilePassword.of(kafka.secret) if kafka.password_file else kafka.secret()


async def any_answers(kafka: KafkaSettings, timeout_s: float) -> bool:
    """Whether one of the bootstrap servers answers; `timeout_s` for each."""
    try:
        context = tls(kafka)
    except ConfigError as error:  # files that are being replaced
        log.warning("the broker cannot be queried: %s", error.message)
        return False
    for server in kafka.bootstrap_servers.split(","):
        host, _, port = server.rpartition(":")
        if await answers(host.strip("[]"), int(port), timeout_s, context):
            return True
    return False


def _stamp(name: str, file: str) -> Stamp:
    try:
        return stamp(file)
    except OSError as exc:
        raise _wrong(name, f"cannot be read: {exc}") from exc


@lru_cache(maxsize=4)
def _context(ca_file: str, cert_file: str, key_file: str, _stamps: object) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ValueError) as exc:
        raise _wrong("ca_file", f"holds no certificates in PEM that can be read: {exc}") from exc
    if cert_file:
        try:
            # without a password, because a prompt for one would block a worker forever
            context.load_cert_chain(cert_file, key_file or None, password="")
        except (OSError, ValueError) as exc:
            rule = f"and RIFFLE_KAFKA_KEY_FILE must hold a certificate and its key in PEM, not encrypted: {exc}"
            raise _wrong("cert_file", rule) from exc
    return context


def _wrong(name: str, rule: str) -> ConfigError:
    return ConfigError("invalid_setting", f"RIFFLE_KAFKA_{name.upper()} {rule}", f"kafka_{name}")
