"""Settings of the service: frozen, documented data. The service reads the environment here, once."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

from schemas.backend_login import BackendLogin
from schemas.errors import ConfigError
from schemas.http_settings import HttpSettings
from schemas.kafka_settings import PREFIX, KafkaSettings
from schemas.masking import MASK, masked_url
from schemas.parsing import demand, finite_number, shown, shown_without_login, variable, whole_number

__all__ = ["Settings"]

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LIMITS: Mapping[str, int] = {
    **dict.fromkeys(("kafka_port", "controller_port", "redis_port", "web_port", "rank_port"), 65_535),
    **dict.fromkeys(("commit_interval_s", "archive_interval_s", "stop_timeout_s", "drain_s", "start_timeout_s"), 0),
    **dict.fromkeys(("stuck_s", "session_timeout_s"), 0),
    **dict.fromkeys(("partitions", "replication", "standbys", "cache_users", "cache_mb", "block_cache_mb", "archive_rows"), 0),
    "shelf_items": 0,
    "deadline_ms": 60_000,
    "rank_wait_ms": 1_000,
}
"Settings that must be positive, or 0 if in `MAY_BE_ZERO`, with the maximum of each; 0: no limit."
MAY_BE_ZERO = ("standbys", "rank_wait_ms")
SHARES = ("trace_share",)
"Settings that lie in 0..1."
RANKINGS = ("local", "remote")
YES_NO = ("yes", "no")
GRAPHS = ("auto", "loop", "thread")
PROVIDERS = ("auto", "cpu", "cuda", "tensorrt")
URLS = ("redis_url", "registry_url", "archive", "bootstrap", "kafka_token_url", "traces")
FORMATS = ("text", "json")
"Settings that may hold a login; they are shown only masked."
SECRETS = ("kafka_password", "kafka_client_secret", "http_token")
"Settings that are never shown, and passed to other processes only if these need them."
FILES = (
    *("kafka_password_file", "kafka_ca_file", "kafka_cert_file", "kafka_key_file", "kafka_token_file"),
    *("kafka_client_secret_file", "kafka_token_ca_file"),
    *("redis_password_file", "redis_ca_file", "registry_password_file", "registry_ca_file"),
    *("http_cert_file", "http_key_file", "http_ca_file", "http_tokens_file", "http_token_file"),
)
MIRRORS = {"redis": "redis", "rediss": "redis", "unix": "redis"}
"Module in `streams.mirror` whose `Store` serves a `redis_url`, by the URL's scheme. Other schemes are refused."
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
SERVER = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", re.ASCII)
ORIGIN = re.compile(r"https?://[^/?#@\s,]+", re.ASCII)
HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", re.ASCII)
NAME = re.compile(r"[A-Za-z0-9._-]{0,200}", re.ASCII)
"Pattern of names of topics and of group members."


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return CONTROL.search(text) is None


def _is_servers(text: str) -> bool:
    found = [SERVER.fullmatch(server) for server in text.removeprefix("kafka://").split(",")]
    return all(server is not None and 0 < int(server[1]) < 65_536 for server in found)


def _has_home() -> bool:
    try:
        Path("~").expanduser()
    except RuntimeError:
        return False
    return True


def _is_folder(text: str) -> bool:
    try:
        return Path(text).is_dir()
    except OSError:  # a name is too long, or a folder must not be looked into
        return False


def _absolute(name: str, folder: Path) -> Path:
    try:
        return folder.expanduser().absolute()
    except RuntimeError as exc:
        message = f"{variable(name)} begins with ~, and there is no such home directory: set it to an absolute path"
        raise ConfigError("invalid_setting", message, name) from exc
    except OSError as exc:
        message = f"the working directory was deleted: change to another one, or set {variable(name)} to an absolute path"
        raise ConfigError("no_working_directory", message, name) from exc


READERS: Mapping[object, Callable[[str], object]] = {int: whole_number, float: finite_number, str: str.strip, Path: Path}
'Parsers of variables by the type of their field. Each raises ValueError with a message that completes "NAME …".'
DEFAULT_CACHE = Path("~/.cache/riffle")


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """The settings of one Riffle instance. Each field is read from `RIFFLE_<FIELD>`; an empty variable counts as unset."""

    home: Path = Path(".riffle")
    "Folder of all data of the instance: logs, process ids, broker data, tables, archive, releases."
    bootstrap: str = ""
    "Kafka bootstrap servers (`host:port,…`, with an optional `kafka://` prefix). Empty: the embedded broker on `kafka_port`."
    kafka_security: str = "PLAINTEXT"
    """Security protocol of connections to `bootstrap`: `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`. The embedded broker,
    on loopback, supports only the first."""
    kafka_sasl_mechanism: str = ""
    "SASL mechanism of this client: `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`."
    kafka_username: str = ""
    "User name for PLAIN and SCRAM."
    kafka_password_file: str = ""
    "File that holds the user's password; trailing line breaks are ignored."
    kafka_password: str = ""
    "The user's password itself, if no file holds it. Never printed or logged."
    kafka_ca_file: str = ""
    "PEM file of the authorities that sign the brokers' certificates. Empty: the authorities that the system trusts."
    kafka_cert_file: str = ""
    "PEM file of this client's certificate, for brokers that require one."
    kafka_key_file: str = ""
    "PEM file of the certificate's key. Empty: the key is in `kafka_cert_file`."
    kafka_token_provider: str = ""
    "`module:function` that returns the OAUTHBEARER token (Amazon MSK with IAM): see `schemas.kafka_settings`."
    kafka_token_file: str = ""
    "File that holds the OAUTHBEARER token, which something else renews. It is read for each connection."
    kafka_token_url: str = ""
    "Token endpoint (`https://…`) that issues OAUTHBEARER tokens by client credentials."
    kafka_client_id: str = ""
    "This client's id at `kafka_token_url`."
    kafka_client_secret_file: str = ""
    "File that holds the client's secret for `kafka_token_url`; trailing line breaks are ignored."
    kafka_client_secret: str = ""
    "The client's secret itself, if no file holds it. Never printed or logged."
    kafka_token_scope: str = ""
    "Scope that is requested from `kafka_token_url`, if any."
    kafka_token_ca_file: str = ""
    "PEM file of the authorities that sign the certificate of `kafka_token_url`. Empty: those that the system trusts."
    kafka_msk_region: str = ""
    "Region of an Amazon MSK cluster with IAM, such as `eu-west-1`: tokens are signed with this process's AWS credentials."
    kafka_port: int = 19092
    "Port of the embedded broker on loopback."
    controller_port: int = 19093
    "Port of the embedded broker's KRaft controller on loopback."
    redis_url: str = ""
    "URL of the store of the summaries, with a scheme of `MIRRORS`. Empty: the embedded Redis on `redis_port`."
    redis_username: str = ""
    "User of the store's access control list (ACL), if `redis_url` holds no login. Empty with a password: the default user."
    redis_password_file: str = ""
    "File that holds that user's password. It is read for each connection."
    redis_ca_file: str = ""
    "PEM file of the authorities that sign the store's certificate, with `rediss://`. Empty: those that the system trusts."
    redis_port: int = 16379
    "Port of the embedded Redis on loopback."
    web_host: str = "127.0.0.1"
    "Address that the HTTP interface binds to. Any other address than loopback must be set explicitly."
    web_port: int = 6066
    "Port of the HTTP interface."
    web_advertised: str = ""
    """`host:port` at which the other workers of the group reach this worker's HTTP interface. Empty: `web_host` and `web_port`;
    if `web_host` is a wildcard such as 0.0.0.0, the address from which this machine reaches Kafka. `off`: other workers cannot
    reach it; requests for its users go over Kafka."""
    web_origins: str = ""
    """Origins, separated by commas, whose pages may write without the token of `riffle up`, such as `https://shop.example`
    behind a proxy that asks for a login. Programs other than browsers need no token."""
    http_cert_file: str = ""
    "PEM file of the certificate with which HTTP is served over TLS. Empty: plain text. Read again when it changes."
    http_key_file: str = ""
    "PEM file of the certificate's key. Empty: the key is in `http_cert_file`."
    http_ca_file: str = ""
    "PEM file of the authorities with which commands and other workers verify that certificate. Empty: the system's."
    http_server_name: str = ""
    "Name in the certificate that commands and other workers verify. Empty: the address that they connect to."
    http_tokens_file: str = ""
    """File of the tokens that HTTP accepts, one line each: `riffle token` prints them. With it every request needs a token,
    except for `/healthz` and `/readyz`. It is required if `web_host` is not loopback."""
    http_token_file: str = ""
    "File that holds the token that commands and workers send."
    http_token: str = ""
    "That token itself, if no file holds it. Never printed or logged."
    http_without_tokens: str = ""
    "`yes`: HTTP needs no token although `web_host` is not loopback, because others cannot reach it."
    app_id: str = "riffle"
    "Consumer group, and prefix of transactional ids."
    instance: str = ""
    """Unique name of this worker that is the same after a restart, such as a StatefulSet's pod name. With it, a worker that
    restarts within the session timeout resumes its partitions without a rebalance; the loss of a worker is detected only after
    that timeout. Empty: the group assigns a new name at every start."""
    topic_prefix: str = "riffle."
    "Prefix of all topic names."
    partitions: int = 4
    """Number of partitions of the topics keyed by user. To change it later, copy the topics: `riffle topics copy --to PREFIX
    --partitions N`."""
    standbys: int = 1
    """Number of copies of each table partition that other workers of the group update from the changelog, for an immediate
    takeover. 0: none; a new owner then replays the missing changes."""
    replication: int = 1
    "Replication factor of topics that Riffle creates."
    archive: str = ""
    "Archive of the stream: a folder or `s3://bucket/prefix`. Empty: `<home>/archive`; `off`: no archive."
    releases: str = ""
    "Folder of releases. Empty: `<home>/releases`."
    registry_url: str = ""
    "Schema registry. Empty: Avro single-object encoding, no registry."
    registry_username: str = ""
    "User of the registry (basic authentication), if `registry_url` holds no login."
    registry_password_file: str = ""
    "File that holds that user's password."
    registry_ca_file: str = ""
    "PEM file of the authorities that sign the registry's certificate, with `https://`. Empty: those that the system trusts."
    commit_interval_s: float = 0.5
    "Seconds between flushes of a partition's state (changelog, outputs and offsets in one transaction). Must be > 0."
    start_timeout_s: float = 60.0
    """Seconds without progress after which `riffle up` stops waiting for a part that is starting. Progress is a second of
    processor time, or another reason why the part is not ready. `up` waits ten times as long at most."""
    stop_timeout_s: float = 25.0
    """Seconds within which a stopping worker must flush and release its partitions. After that it logs where it hangs and exits
    with status 1, and its events are read again. Keep it below terminationGracePeriodSeconds."""
    drain_s: float = 0.5
    """Seconds for which a stopping worker continues to answer HTTP requests while `/readyz` returns 503, before it closes its
    port. At least as long as a load balancer takes to notice; part of `stop_timeout_s`."""
    stuck_s: float = 60.0
    "Seconds without progress, on a partition with waiting work, after which /healthz returns 503 to have the worker restarted."
    session_timeout_s: float = 15.0
    "Seconds without a heartbeat after which the group reassigns a worker's partitions."
    deadline_ms: int = 250
    "Deadline in milliseconds of requests that name none."
    ranking: str = "local"
    """Where candidates are ranked: `local`, in the worker; or `remote`, by the processes of `riffle worker --role ranking`, and
    in the worker while these do not answer."""
    graphs: str = "auto"
    """Where a worker runs the graphs of a release: `loop`, on the event loop; `thread`, beside it; or `auto`: beside it if the
    worker may use more than two cores."""
    rank_wait_ms: int = 2
    "Milliseconds for which a ranking process waits for more requests to rank with the first one. 0: it does not wait."
    rank_provider: str = "auto"
    """What runs the ranker in a ranking process: `tensorrt`, `cuda`, `cpu`, or `auto`: CUDA if there is a GPU. Each falls back
    to the next; the status page shows what is in use."""
    rank_port: int = 6067
    "Port of a ranking process's status page, on `web_host`."
    cache_users: int = 50_000
    "Maximum number of a table's rows in memory per partition, and of rows that wait to be flushed."
    cache_mb: int = 128
    "Size in MiB of a table's rows in memory, shared equally by its partitions. A partition at twice its share is flushed."
    block_cache_mb: int = 32
    "Size in MiB of a worker's RocksDB block cache, shared by its partitions."
    shelf_items: int = 50_000
    """Number of items from which the decoded catalogue is written below `cache`, as a shelf that the workers of a machine map:
    some 3 kB of disk per item."""
    archive_interval_s: float = 10.0
    "Seconds after which the archiver writes its records, even if a file is not full."
    archive_rows: int = 50_000
    "Number of records per partition at which the archiver writes a file at once."
    encoder: str = "auto"
    """Whether `riffle up` starts the encoder of new items' texts and images: `on`, `off`, or `auto`. It needs torch; `auto`
    starts it if torch is installed. Without it, new items are found by words and categories until the next release."""
    text_model: str = ""
    "Folder or hub name of the text encoder; it must be the one that releases are trained with. Empty: the packaged MiniLM."
    image_hosts: str = ""
    """Additional hosts, separated by commas (`media.internal,10.0.0.7`), from which images are fetched by URL. By default only
    hosts whose addresses are all public are used. `off`: no image is fetched."""
    cache: Path = DEFAULT_CACHE
    """Folder shared by instances: the broker's class path, encoded item vectors, images fetched by URL, the shelf of the
    decoded catalogue. For a user without a home directory it is `<home>/cache`."""
    log_level: str = "INFO"
    "Log level of the worker."
    log_format: str = "text"
    "`text`, or `json`: one object on each line, with the ids of the request and of its trace where a line belongs to one."
    traces: str = ""
    """Address of an OpenTelemetry collector for OTLP over HTTP, such as `http://127.0.0.1:4318`. Empty: no traces. It needs the
    packages of the group `tracing`."""
    trace_share: float = 1.0
    "Share of the requests that are traced, 0 to 1. What its sender does not trace is not traced."
    trace_parents: str = "no"
    """`yes`: all requests are traced whose sender traces them, whatever `trace_share` is, because only trusted programs can
    send requests. `no`: only `trace_share` of these, too."""

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        safe = {name: masked_url(value) if isinstance(value, str) else value for name, value in values.items()}
        safe.update({name: MASK for name in SECRETS if values[name]})
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in safe.items())})"

    def _check_choices(self) -> None:
        demand(
            self.encoder in {"on", "off", "auto"}, "encoder", f"must be on, off or auto, is {shown_without_login(self.encoder)}"
        )
        choices = (
            *(("ranking", RANKINGS), ("graphs", GRAPHS), ("rank_provider", PROVIDERS)),
            *(("log_format", FORMATS), ("trace_parents", YES_NO)),
        )
        for name, known in choices:
            value = getattr(self, name)
            demand(value in known, name, f"must be one of {', '.join(known)}, is {shown_without_login(value)}")
        level = self.log_level.isascii() and self.log_level.upper() in LEVELS
        demand(level, "log_level", f"must be one of {', '.join(LEVELS)}, is {shown_without_login(self.log_level)}")

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str | Path):
                demand(_is_text(str(value)), field.name, "must be UTF-8 text without control characters")
            if isinstance(value, str):
                demand(value == value.strip(), field.name, "must not begin or end with a blank")
        for name, most in LIMITS.items():
            value = getattr(self, name)
            least = 0 if name in MAY_BE_ZERO else 1
            if isinstance(value, float):
                bound = most or math.inf
                within = f"be greater than 0 and at most {most} seconds" if most else "be greater than 0 seconds"
                demand(0 < value < math.inf and value <= bound, name, f"must {within}, is {value}")
            else:
                within = f"lie in {least}..{most}" if most else f"be at least {least}"
                demand(least <= value <= (most or value), name, f"must {within}, is {value}")
        self._check_choices()
        # messages do not repeat values that may hold a login
        schemes = [f"{scheme}://" for scheme in MIRRORS]
        url = not self.redis_url or self.redis_url.startswith(tuple(schemes))
        demand(url, "redis_url", f"must begin with {', '.join(schemes[:-1])} or {schemes[-1]}")
        registry = not self.registry_url or self.registry_url.startswith(("http://", "https://"))
        demand(registry, "registry_url", "must begin with http:// or https://")
        collector = not self.traces or self.traces.startswith(("http://", "https://"))
        demand(collector, "traces", "must begin with http:// or https://")
        for name in SHARES:
            demand(0 <= getattr(self, name) <= 1, name, f"must lie in 0..1, is {getattr(self, name)}")
        for name in ("redis_url", "registry_url", "traces"):
            demand(not any(map(str.isspace, getattr(self, name))), name, "must not contain blanks: write them as %20")
        self.redis_login.check(self.redis_url, ("rediss://",))
        self.registry_login.check(self.registry_url, ("https://",))
        servers = not self.bootstrap or _is_servers(self.bootstrap)
        demand(servers, "bootstrap", "must be host:port, or several separated by commas, without a login")
        _ = self.kafka, self.http  # validates them
        plain = not self.embedded_kafka or self.kafka_security == "PLAINTEXT"
        demand(plain, "kafka_security", "must be PLAINTEXT for the embedded broker: set RIFFLE_BOOTSTRAP to use other brokers")
        bucket = "://" not in self.archive or (self.archive.startswith("s3://") and self.archive.strip("/") != "s3:")
        demand(bucket, "archive", f"must be a folder, s3://bucket/prefix or off, is {shown_without_login(self.archive)}")
        one = _is_servers(self.web_advertised) and not {",", "/"} & set(self.web_advertised)
        demand(one or self.web_advertised in {"", "off"}, "web_advertised", "must be host:port without a scheme, or off")
        demand(self.drain_s < self.stop_timeout_s, "drain_s", f"must be less than RIFFLE_STOP_TIMEOUT_S, is {self.drain_s}")
        odd = [host for host in self.image_hosts.split(",") if set(host.strip()) & set("/ @?#*")]
        demand(not odd, "image_hosts", "must be host names separated by commas, without scheme")
        named = all(ORIGIN.fullmatch(origin) for origin in self.page_origins)
        demand(named, "web_origins", "must be origins separated by commas, such as https://shop.example, without a path")
        demand(
            HOST.fullmatch(self.web_host) is not None,
            "web_host",
            f"must be an address, is {shown_without_login(self.web_host)}",
        )
        for name in ("topic_prefix", "instance", "app_id"):
            named = NAME.fullmatch(getattr(self, name)) is not None
            demand(named, name, "must be at most 200 letters, digits, dots, dashes and underscores, all of ASCII")
        demand(bool(self.app_id), "app_id", "must not be empty")
        taken: dict[int, str] = {}
        for name in self.own_ports():
            other = taken.setdefault(getattr(self, name), name)
            same = f"must be a port other than that of {variable(other)}, both are {getattr(self, name)}"
            demand(other == name, name, same)

    def own_ports(self) -> list[str]:
        """Return the names of the ports that this instance listens on."""
        kafka = ["kafka_port", "controller_port"] if self.embedded_kafka else []
        return [*kafka, *(["redis_port"] if self.embedded_redis else []), "web_port"]

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read `RIFFLE_*`.

        Raises:
            ConfigError: a value does not parse or is out of range, or `home` cannot be a folder; the message names the
                variable.
        """
        source = os.environ if environ is None else environ
        kinds = get_type_hints(cls)
        values: dict[str, object] = {}
        for field in fields(cls):
            name = variable(field.name)
            text = source.get(name, "")
            if not text or (kinds[field.name] is str and not text.strip()):
                continue
            try:
                values[field.name] = READERS[kinds[field.name]](text)
            except ValueError as exc:
                rule = str(exc) if "@" not in text else str(exc).partition(", is ")[0]
                raise ConfigError("invalid_setting", f"{name} {rule}", name) from exc
        found = cls(**values).resolved()  # type: ignore[arg-type]
        try:
            above = next(folder for folder in (found.home, *found.home.parents) if folder.exists())
            usable = above.is_dir() and os.access(above, os.W_OK | os.X_OK)
        except OSError as exc:  # a name is too long, or a folder must not be looked into
            reason = f"cannot be used as a folder: {exc.strerror}"
            raise ConfigError("invalid_setting", f"RIFFLE_HOME={shown(found.home)} {reason}", "home") from exc
        demand(usable, "home", f"must be a folder that can be written, {found.home} cannot: see {above}")
        return found

    @classmethod
    def unknown(cls, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return `RIFFLE_*` variables that match no setting, each with the closest known variable or an empty text."""
        known = {variable(field.name).removeprefix("RIFFLE_"): variable(field.name) for field in fields(cls)}
        given = os.environ if environ is None else environ
        odd = sorted(name for name in given if name.startswith("RIFFLE_") and name not in known.values())
        near = {name: difflib.get_close_matches(name.removeprefix("RIFFLE_"), known, 1) for name in odd}
        return {name: known[found[0]] if found else "" for name, found in near.items()}

    def resolved(self) -> Settings:
        """Return the settings with absolute folders, so that a change of the working directory has no effect.

        If the user has no home directory, `~/.cache/riffle` becomes `<home>/cache`.

        Raises:
            ConfigError: a folder is relative and the working directory was deleted, or it begins with `~` and that user has no
                home directory.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["home"] = _absolute("home", self.home)
        if self.cache == DEFAULT_CACHE and not _has_home():
            values["cache"] = values["home"] / "cache"
        values["cache"] = _absolute("cache", values["cache"])
        for name in ("archive", "releases"):
            text = str(values[name])
            if text and text != "off" and "://" not in text:
                values[name] = str(_absolute(name, Path(text)))
        for name in FILES:
            if values[name]:
                values[name] = str(_absolute(name, Path(values[name])))
        if self.text_model and _is_folder(self.text_model):
            values["text_model"] = str(_absolute("text_model", Path(self.text_model)))
        values["log_level"] = self.log_level.upper()
        return Settings(**values)

    def make_home(self) -> None:
        """Create `home` if it does not exist.

        Raises:
            ConfigError: it cannot be created.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            message = f"RIFFLE_HOME={shown(self.home)} cannot be created: {exc.strerror}"
            raise ConfigError("invalid_setting", message, "home") from exc

    def environment(self, *, secrets: bool = False) -> dict[str, str]:
        """Return the `RIFFLE_*` variables that recreate these settings in another process.

        `secrets`: include passwords. Use it only for the environment of a process that is started.
        """
        names = [field.name for field in fields(self) if secrets or field.name not in SECRETS]
        return {variable(name): str(getattr(self, name)) for name in names}

    @property
    def cache_bytes(self) -> int:
        """Share of `cache_mb` per partition of a table, in bytes."""
        return (self.cache_mb << 20) // self.partitions

    def topic(self, name: str) -> str:
        """Return the full name of one of `streams.kafka.topics.TOPICS`."""
        return f"{self.topic_prefix}{name}"

    @property
    def embedded_kafka(self) -> bool:
        """Whether this instance runs its own broker."""
        return not self.bootstrap

    @property
    def embedded_redis(self) -> bool:
        """Whether this instance runs its own Redis."""
        return not self.redis_url

    @property
    def bootstrap_servers(self) -> str:
        """Bootstrap servers `host:port,…` without a scheme, as aiokafka requires."""
        return self.bootstrap.removeprefix("kafka://") or f"127.0.0.1:{self.kafka_port}"

    @property
    def kafka(self) -> KafkaSettings:
        """Connection settings of Kafka, for `streams.kafka.connect`."""
        parts = {field.name: getattr(self, f"{PREFIX}{field.name}") for field in fields(KafkaSettings)[1:]}
        return KafkaSettings(self.bootstrap_servers, **parts)

    @property
    def http(self) -> HttpSettings:
        """Security settings of HTTP."""
        return HttpSettings(**{field.name: getattr(self, f"http_{field.name}") for field in fields(HttpSettings)})

    @property
    def redis_login(self) -> BackendLogin:
        """Login and authorities of the Redis server."""
        return BackendLogin("redis", self.redis_username, self.redis_password_file, self.redis_ca_file)

    @property
    def registry_login(self) -> BackendLogin:
        """Login and authorities of the schema registry."""
        return BackendLogin("registry", self.registry_username, self.registry_password_file, self.registry_ca_file)

    @property
    def redis(self) -> str:
        """URL of the Redis server in use."""
        return self.redis_url or f"redis://127.0.0.1:{self.redis_port}/0"

    @property
    def page_origins(self) -> tuple[str, ...]:
        """The origins of `web_origins`."""
        return tuple(origin.strip() for origin in self.web_origins.split(",") if origin.strip())

    @property
    def web(self) -> str:
        """Base URL of the HTTP interface."""
        host = f"[{self.web_host}]" if ":" in self.web_host else self.web_host
        return f"{'https' if self.http_cert_file else 'http'}://{host}:{self.web_port}"

    @property
    def archive_target(self) -> str:
        """Folder or `s3://` URL of the archive."""
        return self.archive or str(self.home / "archive")

    def table_dir(self, table: str, partition: int) -> Path:
        """Return the folder of a table's partition."""
        return self.data_dir / "tables" / table / str(partition)

    @property
    def releases_dir(self) -> Path:
        """Folder of releases."""
        return Path(self.releases) if self.releases else self.home / "releases"

    @property
    def logs_dir(self) -> Path:
        """Folder of log files."""
        return self.home / "logs"

    @property
    def run_dir(self) -> Path:
        """Folder of process ids and run-time state."""
        return self.home / "run"

    @property
    def data_dir(self) -> Path:
        """Folder of broker data and tables."""
        return self.home / "data"
