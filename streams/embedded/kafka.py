"""Apache Kafka in KRaft mode, one node, on the Java runtime of a wheel."""

from __future__ import annotations

import fcntl
import logging
import os
import ssl
import subprocess
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import TextIO

from schemas.errors import NotReady
from schemas.settings import Settings
from streams.embedded.jars import class_path, java, require_plain
from streams.embedded.process import Daemon, Steps, answer_of, driven, polled, require_free_ports
from streams.kafka.probe import ANSWER_BYTES, API_VERSIONS, is_answer

__all__ = ["EmbeddedKafka", "broker_answers"]

log = logging.getLogger(__name__)

HEAP = "512m"
JVM = (
    f"-Xmx{HEAP}",
    "-Xms128m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)

# the broker runs in its folder and gets relative paths, because it would split a path at a comma
SERVER = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=log
num.network.threads=2
num.io.threads=4
num.partitions=1
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
message.max.bytes=2097152
log.segment.bytes=134217728
log.cleaner.dedupe.buffer.size=33554432
"""

CONTROLLER = """\
process.roles=controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=CONTROLLER://127.0.0.1:{controller}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs=log
broker.session.timeout.ms=500
broker.heartbeat.interval.ms=100
"""
CONTROLLER_LOG = tuple(
    f"-Dorg.slf4j.simpleLogger.log.org.apache.kafka.controller.{name}=info"
    for name in ("QuorumController", "ReplicationControlManager")
)
ACTIVE, FENCED = "Becoming the active controller", "Fencing broker 1 "
"Log messages of the controller."
FENCE_S = 5.0
"""Seconds that an active controller has to fence a broker. If the last one was killed before it was ready, there is none to
fence."""
READING = "it reads its log, and does not answer yet"
FENCING = "it was killed: its end is recorded in the metadata log first"
APPENDED_S = 3.0
"Seconds until the controller's decision is in the log."


def broker_answers(host: str, port: int, timeout_s: float = 1.0, context: ssl.SSLContext | None = None) -> bool:
    """Whether a Kafka broker answers an ApiVersions request there. Accepting connections is not enough. `context`: for TLS."""
    answer = answer_of(port, API_VERSIONS, ANSWER_BYTES, host.strip("[]"), timeout_s, context)
    return answer is not None and is_answer(answer)


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class EmbeddedKafka:
    """The broker of one instance."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.data_dir / "kafka"
        self.daemon = Daemon("Kafka", settings.run_dir / "kafka.pid", settings.logs_dir / "kafka.log")
        said = settings.logs_dir / "kafka-controller.log"
        self._controller = Daemon("Kafka's controller", settings.run_dir / "kafka-controller.pid", said)

    def start(self) -> None:
        """Start the broker unless it runs; returns when it answers. Raises as `starting`."""
        driven(self.starting())

    def starting(self) -> Steps[int | None]:
        """Start the broker unless it runs; ends when it answers, with its pid.

        Raises:
            ConfigError: as `check`.
            NotReady: it did not start; the message shows its log.
        """
        settings = self._settings
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        with (settings.run_dir / "kafka.lock").open("w") as lock:
            while not _locked(lock):
                yield "another start of it is under way"
            self._controller.stop()  # left behind by an interrupted start
            self.check()
            if self.daemon.pid() is None:
                path = class_path(settings.cache)
                properties = self._configure(path)
                yield from self._fence(path)
                self._run(self.daemon, path, properties, settings.bootstrap_servers)
        yield from self.daemon.until_ready(self.answers, settings.start_timeout_s, READING)
        return self.daemon.pid()

    def _run(self, daemon: Daemon, path: str, properties: Path, address: str = "", *options: str) -> None:
        environment = {"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"}
        command = [java(), *JVM, *options, "-cp", path, "kafka.Kafka", properties.name]
        daemon.start(command, environment, self._folder, address)

    def _fence(self, path: str) -> Steps[None]:
        """Record in the metadata log that a killed broker is gone, before its successor starts.

        A broker that starts within the session of a killed one considers itself the leader that the old one was. When that
        session ends, there is no leader for a moment. Kafka then omits the markers of transactions that were ending when the
        broker was killed ("likely deleted already"), so these transactions stay open forever. A controller alone, with a short
        session, writes the record.

        Raises:
            NotReady: the controller did not start; the message shows its log.
        """
        logs, settings = self._folder / "log", self._settings
        if (logs / ".kafka_cleanshutdown").exists() or not (logs / "__cluster_metadata-0").exists():
            return
        properties = self._folder / "controller.properties"
        properties.write_text(CONTROLLER.format(controller=settings.controller_port), encoding="utf-8")
        self._controller.log_file.unlink(missing_ok=True)
        try:
            self._run(self._controller, path, properties, "", *CONTROLLER_LOG)
            active = lambda: ACTIVE in self._controller_says()
            yield from self._controller.until_ready(active, settings.start_timeout_s, FENCING)
            if (yield from polled(lambda: FENCED in self._controller_says(), FENCE_S, FENCING)):
                size = self._metadata_bytes()  # decisions are appended in order, and each half second adds a record
                yield from polled(lambda: self._metadata_bytes() > size, APPENDED_S, FENCING)
            else:
                log.warning("Kafka was not stopped cleanly, but there is no broker to fence: an earlier start fenced it")
        finally:
            self._controller.stop()

    def _metadata_bytes(self) -> int:
        return sum(path.stat().st_size for path in (self._folder / "log" / "__cluster_metadata-0").glob("*.log"))

    def _controller_says(self) -> str:
        try:
            return self._controller.log_file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def ports_to_bind(self) -> dict[str, int]:
        """Return the ports that `start` would bind, by the variable that sets each; none while the broker runs."""
        if self.daemon.pid() is not None:
            return {}
        found = {"RIFFLE_KAFKA_PORT": self._settings.kafka_port}
        if self._controller.pid() is None:
            found["RIFFLE_CONTROLLER_PORT"] = self._settings.controller_port
        return found

    def check(self) -> None:
        """Check the preconditions of `start`, without starting anything.

        Raises:
            ConfigError: a port is taken, this instance's broker runs on another port than the settings say, or the broker's
                jars cannot be in the folder that they name.
        """
        settings = self._settings
        require_plain(settings.cache)
        require_free_ports(self.ports_to_bind())
        if self.daemon.pid() is not None:
            self.daemon.require_address(settings.bootstrap_servers, "RIFFLE_KAFKA_PORT")

    def _configure(self, path: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        properties = self._folder / "server.properties"
        logs = self._folder / "log"
        settings = self._settings
        properties.write_text(SERVER.format(port=settings.kafka_port, controller=settings.controller_port), encoding="utf-8")
        if not (logs / "meta.properties").exists():
            cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            formatted = subprocess.run(
                [
                    *(java(), "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", path, "kafka.tools.StorageTool", "format"),
                    # joined by "=", because an id may begin with a dash
                    *("--ignore-formatted", f"--cluster-id={cluster}", "--config", properties.name),
                ],
                cwd=self._folder,
                capture_output=True,
                text=True,
                check=False,
            )
            if formatted.returncode:
                raise NotReady("kafka_not_formatted", f"formatting {logs} failed: {formatted.stderr.strip()[-500:]}")
        return properties

    def answers(self) -> bool:
        """Whether this instance's broker answers an ApiVersions request. Accepting connections is not enough."""
        port = int(self.daemon.address().rpartition(":")[2] or self._settings.kafka_port)
        return self.daemon.listens(port) and broker_answers("127.0.0.1", port)

    def stop(self) -> bool:
        """Stop the broker, and a controller that was left behind; returns whether any ran."""
        alone = self._controller.stop()
        return self.daemon.stop() or alone
