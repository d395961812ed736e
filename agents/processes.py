"""The processes of one home: Kafka, Redis, one or more workers and the encoder; how each is named, set, started and found.

Worker 1 has the home itself, every other worker a home of its own below it, `workers/N`: data, log and process id. All else
is shared: the servers, the archive and the releases.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from schemas.errors import ConfigError
from schemas.settings import Settings
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.process import SAFE_PATH, Daemon, exit_status, port_is_free, python, riffle
from streams.embedded.redis import EmbeddedRedis

__all__ = [
    "KINDS",
    "MOST_WORKERS",
    "PartProcess",
    "PartServer",
    "daemons",
    "encoder_daemon",
    "free_web_ports",
    "in_order",
    "left_over",
    "number_of",
    "parts_of",
    "running_workers",
    "supervisor_daemon",
    "worker_daemon",
    "worker_name",
    "worker_settings",
]

KINDS = ("kafka", "redis", "worker", "encoder")
"Kinds of parts, in the order in which they start. A part is named after its kind; further workers are `worker-2`, `worker-3` …"
MOST_WORKERS = 64
"Maximum number of workers of one home."
ENDING_S = 5.0
"Seconds to wait for the threads of an ended process."
NAME = re.compile(r"(?P<kind>[a-z]+)(?:-(?P<number>[1-9][0-9]?))?", re.ASCII)
HIGHEST_PORT = 65_535


def _place_of(name: str) -> tuple[int, int] | None:
    """Return the order of a part by its name; None if no part has this name."""
    found = NAME.fullmatch(name)
    if found is None or found["kind"] not in KINDS or (found["number"] and found["kind"] != "worker"):
        return None
    return KINDS.index(found["kind"]), int(found["number"] or 1)


def in_order(names: Collection[str]) -> list[str]:
    """Return the names that are names of parts, in the order in which the parts start, each once."""
    placed = {name: place for name in names if (place := _place_of(name)) is not None}
    return sorted(placed, key=placed.__getitem__)


def worker_name(number: int) -> str:
    """Return the name of a worker's part, by its number from 1 on."""
    return "worker" if number == 1 else f"worker-{number}"


def number_of(name: str) -> int | None:
    """Return the number of a worker by the name of its part; None for other parts."""
    place = _place_of(name)
    return None if place is None or KINDS[place[0]] != "worker" else place[1]


def worker_home(settings: Settings, number: int) -> Path:
    """Return the home of a worker."""
    return settings.home if number == 1 else settings.home / "workers" / str(number)


def worker_settings(settings: Settings, number: int, web_port: int) -> Settings:
    """Return the settings of a worker of this home, which listens on `web_port`. Worker 1 has those of the home."""
    if number == 1:
        return settings
    advertised = settings.web_advertised
    if advertised not in {"", "off"}:
        advertised = f"{advertised.rpartition(':')[0]}:{web_port}"
    return replace(
        settings,
        home=worker_home(settings, number),
        web_port=web_port,
        web_advertised=advertised,
        instance=settings.instance and f"{settings.instance}-{number}",
        archive=settings.archive_target,
        releases=str(settings.releases_dir),
    )


def free_web_ports(settings: Settings, numbers: Collection[int], taken: Collection[int] = ()) -> dict[int, int]:
    """Choose a port for each of these workers: the next free ones above the first worker's, in the order of the numbers.

    `taken`: ports that must not be chosen although nobody listens on them now.

    Raises:
        ConfigError: there are not enough free ports.
    """
    found: dict[int, int] = {}
    used = {settings.kafka_port, settings.controller_port, settings.redis_port, *taken}
    ports = iter(port for port in range(settings.web_port + 1, HIGHEST_PORT + 1) if port not in used)
    for number in sorted(numbers):
        port = next((port for port in ports if port_is_free(port, settings.web_host)), None)
        if port is None:
            message = f"no free port above {settings.web_port} is left for worker {number}: set RIFFLE_WEB_PORT to a lower one"
            raise ConfigError("no_free_port", message, "RIFFLE_WEB_PORT")
        found[number] = port
    return found


def worker_daemon(settings: Settings, number: int = 1) -> Daemon:
    """A worker that `up` has started in this home."""
    home = worker_home(settings, number)
    name = "the worker" if number == 1 else f"worker {number}"
    return Daemon(name, home / "run" / "worker.pid", home / "logs" / "worker.log")


def encoder_daemon(settings: Settings) -> Daemon:
    """The encoder of new items that `up` has started."""
    return Daemon("the encoder", settings.run_dir / "encoder.pid", settings.logs_dir / "encoder.log")


def supervisor_daemon(settings: Settings) -> Daemon:
    """The supervisor that `up` starts."""
    return Daemon("the supervisor", settings.run_dir / "supervisor.pid", settings.logs_dir / "supervisor.log")


def _further_homes(settings: Settings) -> dict[int, Path]:
    """Return the homes of workers from 2 on that exist, whether or not the workers run."""
    folders = (settings.home / "workers").glob("*")
    found = {number_of(f"worker-{folder.name}"): folder for folder in folders}
    return {number: folder for number, folder in sorted(found.items(), key=lambda entry: entry[0] or 0) if number is not None}


def running_workers(settings: Settings) -> list[int]:
    """Return the numbers of the workers that `up` started and that run now."""
    return [number for number in (1, *_further_homes(settings)) if worker_daemon(settings, number).pid() is not None]


def left_over(settings: Settings, numbers: Collection[int]) -> dict[int, Path]:
    """Return the homes of workers with rows on disk that are none of `numbers`.

    Nothing is lost with them: other workers have their partitions, and the changelogs have all rows.
    """
    homes = _further_homes(settings).items()
    return {number: home for number, home in homes if number not in numbers and any((home / "data" / "tables").glob("*/*"))}


def daemons(settings: Settings, workers: Collection[int] = (1,)) -> dict[str, Daemon]:
    """Return the processes of this home by the name of the part, in reverse order of stopping.

    The supervisor, which restarts the others, comes last, and worker 1 before all other workers.
    """
    found = {"kafka": EmbeddedKafka(settings).daemon, "redis": EmbeddedRedis(settings).daemon}
    found |= {worker_name(number): worker_daemon(settings, number) for number in sorted(workers)}
    return {**found, "encoder": encoder_daemon(settings), "supervisor": supervisor_daemon(settings)}


@dataclass(frozen=True, slots=True)
class PartProcess:
    """A part that is one command. `start` does not wait until it is ready."""

    name: str
    daemon: Daemon
    command: Sequence[str]
    settings: Settings
    address: str
    needs: Sequence[str]

    def pid(self) -> int | None:
        """Pid of the live process; None when there is none."""
        return self.daemon.pid()

    def start(self) -> int | None:
        """Start the command with the settings as its environment; returns the pid. Raises OSError."""
        environment = {**os.environ, **self.settings.environment(secrets=True), **SAFE_PATH}
        return self.daemon.start(self.command, environment, self.settings.home, self.address)

    def exit_status(self) -> int | None:
        """Exit status of the process that was last started; None if unknown."""
        return exit_status(self.daemon.last_pid(), ENDING_S)

    def last_words(self) -> str:
        """The end of its log."""
        return self.daemon.tail(1)


@dataclass(frozen=True, slots=True)
class PartServer:
    """An embedded server. `start` returns when it answers."""

    name: str
    server: EmbeddedKafka | EmbeddedRedis
    needs: Sequence[str] = ()

    def pid(self) -> int | None:
        """Pid of the live process; None when there is none."""
        return self.server.daemon.pid()

    def start(self) -> int | None:
        """Start the server; returns the pid. Raises RiffleError, OSError."""
        self.server.start()
        return self.pid()

    def exit_status(self) -> int | None:
        """Exit status of the process that was last started; None if unknown."""
        # a server that is not ready in time still runs
        return None if self.pid() is not None else exit_status(self.server.daemon.last_pid(), ENDING_S)

    def last_words(self) -> str:
        """The end of its log."""
        return self.server.daemon.tail(1)


def parts_of(settings: Settings, web_ports: Mapping[str, int]) -> list[PartProcess | PartServer]:
    """Return the parts with these names that run locally under the settings, in the order in which they start.

    `web_ports`: the port of each part's HTTP interface by the part's name; 0 for parts without one and for worker 1, whose port
    is in the settings.
    """
    found: list[PartProcess | PartServer] = []
    for name in in_order(web_ports):
        number = number_of(name)
        if name == "kafka":
            found += [PartServer(name, EmbeddedKafka(settings))] if settings.embedded_kafka else []
        elif name == "redis":
            found += [PartServer(name, EmbeddedRedis(settings))] if settings.embedded_redis else []
        elif number is not None:
            own = worker_settings(settings, number, web_ports[name])
            command = python("-m", "agents.worker")
            found.append(PartProcess(name, worker_daemon(settings, number), command, own, own.web, ("kafka",)))
        else:
            found.append(PartProcess(name, encoder_daemon(settings), riffle("encode"), settings, "", ("kafka",)))
    return found
