"""Configuration: frozen, documented data. The environment is read once, here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

from schemas.errors import ConfigError

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What one Riffle instance runs with. Every field is read from `RIFFLE_<FIELD>`; an empty variable counts as unset."""

    home: Path = Path(".riffle")
    "Folder of everything the instance keeps: logs, process ids, broker data, tables, archive, releases."
    bootstrap: str = ""
    "Kafka bootstrap servers (`host:port,…`, an optional `kafka://` in front). Empty: the embedded broker on `kafka_port`."
    kafka_port: int = 19092
    "Port of the embedded broker on loopback."
    controller_port: int = 19093
    "Port of the embedded broker's KRaft controller on loopback."
    redis_url: str = ""
    "Redis URL. Empty: the embedded server on `redis_port`."
    redis_port: int = 16379
    "Port of the embedded Redis on loopback."
    web_host: str = "127.0.0.1"
    "Address the HTTP interface binds to. Anything but loopback must be set on purpose."
    web_port: int = 6066
    "Port of the HTTP interface."
    app_id: str = "riffle"
    "Consumer group, and prefix of transactional ids."
    instance: str = ""
    """A name of this worker that no other has, and that it keeps when it is started again (a StatefulSet's pod name). With
    one, a worker that comes back within the session timeout takes its partitions up at once, without a rebalance; one that
    is gone for good is missed only after that timeout. Empty: the group gives every start a new name."""
    topic_prefix: str = "riffle."
    "Put in front of every topic's name."
    partitions: int = 4
    "Partitions of the topics keyed by user. More later means a rebuild by replay."
    standbys: int = 1
    """Copies of each table partition that other workers of the group keep up to date from the changelog, to take it over at
    once. 0: none; a new owner then replays what it lacks."""
    replication: int = 1
    "Replication factor of topics that Riffle creates."
    archive: str = ""
    "Where the stream is archived: a folder or `s3://bucket/prefix`. Empty: `<home>/archive`; `off`: nowhere."
    releases: str = ""
    "Folder of releases. Empty: `<home>/releases`."
    registry_url: str = ""
    "Schema registry. Empty: Avro single-object encoding, no registry."
    commit_interval_s: float = 0.5
    "Seconds between flushes of a partition's state (changelog, outputs and offsets in one transaction). Must be > 0."
    stop_timeout_s: float = 25.0
    """Seconds that a worker told to stop may take to flush and let go. One that takes longer writes where it hangs to its log,
    ends with status 1, and its events are read again. Keep it below terminationGracePeriodSeconds."""
    stuck_s: float = 60.0
    "Seconds that a partition with work waiting may stand still before /healthz answers 503, so that the worker is restarted."
    session_timeout_s: float = 15.0
    "Seconds without a heartbeat after which the group gives a worker's partitions to others."
    deadline_ms: int = 250
    "Milliseconds a request has when it names no deadline."
    cache_users: int = 50_000
    "User records kept in memory per partition beside those not yet flushed."
    block_cache_mb: int = 32
    "RocksDB block cache per worker, in MiB, shared by its partitions."
    archive_interval_s: float = 10.0
    "Seconds after which the archiver writes what it holds, even when a file is not full."
    archive_rows: int = 50_000
    "Records per partition after which the archiver writes a file at once."
    encoder: str = "auto"
    """Whether `riffle up` starts the encoder of new items' texts and images, which needs torch: `on`, `off`, or `auto`: when it
    is installed. Without it new items are found by words and categories until the next release."""
    text_model: str = ""
    "Folder or hub name of the text encoder; it must be the one that releases are trained with. Empty: the packaged MiniLM."
    cache: Path = Path("~/.cache/riffle")
    "Folder shared by instances: the broker's class path, encoded item vectors."
    log_level: str = "INFO"
    "Level of the worker's log."

    def __post_init__(self) -> None:
        if self.standbys < 0:
            raise ConfigError("invalid_setting", "standbys must be at least 0", "standbys")
        if self.encoder not in {"on", "off", "auto"}:
            raise ConfigError("invalid_setting", "encoder must be on, off or auto", "encoder")
        if self.partitions < 1 or self.replication < 1:
            raise ConfigError("invalid_setting", "partitions and replication must be at least 1", "partitions")
        if not self.commit_interval_s > 0 or not self.archive_interval_s > 0 or not self.stop_timeout_s > 0:
            raise ConfigError("invalid_setting", "intervals must be greater than 0 seconds", "commit_interval_s")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read `RIFFLE_*`.

        Raises:
            ConfigError: a value does not parse or is out of range; the message names the variable.
        """
        source = os.environ if environ is None else environ
        kinds = get_type_hints(cls)
        values: dict[str, object] = {}
        for field in fields(cls):
            name = f"RIFFLE_{field.name.upper()}"
            text = source.get(name, "").strip()
            if not text:
                continue
            try:
                values[field.name] = Path(text) if kinds[field.name] is Path else kinds[field.name](text)
            except ValueError as exc:
                raise ConfigError("invalid_setting", f"{name}={text!r} is not {kinds[field.name].__name__}", name) from exc
        return cls(**values).resolved()  # type: ignore[arg-type]

    def resolved(self) -> Settings:
        """The same settings with absolute folders, so that a change of working directory changes nothing."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["home"] = self.home.expanduser().absolute()
        values["cache"] = self.cache.expanduser().absolute()
        return Settings(**values)

    def environment(self) -> dict[str, str]:
        """The `RIFFLE_*` variables that recreate these settings in another process."""
        return {f"RIFFLE_{field.name.upper()}": str(getattr(self, field.name)) for field in fields(self)}

    def topic(self, name: str) -> str:
        """Full name of one of `streams.topics.TOPICS`."""
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
        """`host:port,…` without a scheme, as aiokafka wants it."""
        return self.bootstrap.removeprefix("kafka://") or f"127.0.0.1:{self.kafka_port}"

    @property
    def redis(self) -> str:
        """URL of the Redis in use."""
        return self.redis_url or f"redis://127.0.0.1:{self.redis_port}/0"

    @property
    def web(self) -> str:
        """Base URL of the HTTP interface."""
        return f"http://{self.web_host}:{self.web_port}"

    @property
    def archive_target(self) -> str:
        """Folder or `s3://` URL of the archive."""
        return self.archive or str(self.home / "archive")

    def table_dir(self, table: str, partition: int) -> Path:
        """Folder of one partition of a table."""
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
        """Folder of process ids and run-time facts."""
        return self.home / "run"

    @property
    def data_dir(self) -> Path:
        """Folder of broker data and tables."""
        return self.home / "data"
