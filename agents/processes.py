"""The processes of one home: Kafka, Redis, ranking processes, workers and the encoder; how each is named, set and found.

Worker 1 has the home itself. Every other worker, and every ranking process, has a home of its own below it, such as
`workers/2`: data, log and process id. All else is shared: the servers, the archive and the releases.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from schemas.errors import ConfigError
from schemas.settings import Settings
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.process import SAFE_PATH, Daemon, Steps, exchanged, exit_status, port_is_free, python, riffle
from streams.embedded.redis import EmbeddedRedis

__all__ = [
    "KINDS",
    "MOST",
    "RANKING",
    "ROLES",
    "WORKER",
    "PartProcess",
    "PartServer",
    "Role",
    "daemon_of",
    "daemons",
    "encoder_daemon",
    "free_ports",
    "in_order",
    "left_over",
    "name_of",
    "number_of",
    "parts_of",
    "role_of",
    "running",
    "settings_of",
    "supervisor_daemon",
    "worker_daemon",
]


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of process of which a home may run several."""

    kind: str
    "Name of the first one's part; further ones are `kind-2`, `kind-3` …"
    title: str
    "Its name in messages."
    folder: str
    "Folder below the home that holds the homes of these processes, by number."
    port: str
    "Setting of the port of the first one's HTTP interface."
    arguments: tuple[str, ...] = ()
    "Arguments of `python -m agents.worker`."


WORKER = Role("worker", "worker", "workers", "web_port")
RANKING = Role("ranking", "ranking process", "ranking", "rank_port", ("--role", "ranking"))
ROLES = {role.kind: role for role in (WORKER, RANKING)}
KINDS = ("kafka", "redis", "ranking", "worker", "encoder")
"Kinds of parts, in the order in which they start."
MOST = 64
"Maximum number of processes of one role."
ENDING_S = 5.0
"Seconds to wait for the threads of an ended process."
NAME = re.compile(r"(?P<kind>[a-z]+)(?:-(?P<number>[1-9][0-9]?))?", re.ASCII)
HIGHEST_PORT = 65_535
OK = b"HTTP/1.1 200"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def _place_of(name: str) -> tuple[int, int] | None:
    """Return the order of a part by its name; None if no part has this name."""
    found = NAME.fullmatch(name)
    if found is None or found["kind"] not in KINDS or (found["number"] and found["kind"] not in ROLES):
        return None
    return KINDS.index(found["kind"]), int(found["number"] or 1)


def in_order(names: Collection[str]) -> list[str]:
    """Return the names that are names of parts, in the order in which the parts start, each once."""
    placed = {name: place for name in names if (place := _place_of(name)) is not None}
    return sorted(placed, key=placed.__getitem__)


def name_of(role: Role, number: int) -> str:
    """Return the name of a role's process, by its number from 1 on."""
    return role.kind if number == 1 else f"{role.kind}-{number}"


def role_of(name: str) -> Role | None:
    """Return the role of a part by its name; None for parts of which there is one."""
    place = _place_of(name)
    return None if place is None else ROLES.get(KINDS[place[0]])


def number_of(name: str) -> int:
    """Return the number of a part among those of its kind, from 1 on."""
    place = _place_of(name)
    return 1 if place is None else place[1]


def _home_of(settings: Settings, name: str) -> Path:
    """Return the home of a role's process."""
    role = role_of(name)
    return settings.home if role is None or name == WORKER.kind else settings.home / role.folder / str(number_of(name))


def settings_of(settings: Settings, name: str, port: int) -> Settings:
    """Return the settings of a role's process, which listens on `port`. Worker 1 has those of the home."""
    if name == WORKER.kind:
        return settings
    advertised = settings.web_advertised
    if advertised not in {"", "off"}:
        advertised = f"{advertised.rpartition(':')[0]}:{port}"
    return replace(
        settings,
        home=_home_of(settings, name),
        web_port=port,
        rank_port=port if role_of(name) is RANKING else settings.rank_port,
        web_advertised=advertised,
        instance=settings.instance and f"{settings.instance}-{number_of(name)}",
        archive=settings.archive_target,
        releases=str(settings.releases_dir),
    )


def free_ports(settings: Settings, names: Collection[str], taken: Collection[int] = ()) -> dict[str, int]:
    """Choose a port for each of these processes: the next free ones from its role's port on, in the order of the numbers.

    `taken`: ports that must not be chosen although nobody listens on them now.

    Raises:
        ConfigError: there are not enough free ports.
    """
    found: dict[str, int] = {}
    others = {settings.kafka_port, settings.controller_port, settings.redis_port, settings.web_port, *taken}
    for name in in_order(names):
        role = role_of(name) or WORKER
        first = getattr(settings, role.port)
        used = {*others, *found.values()} | (set() if role is RANKING else {settings.rank_port})
        ports = (port for port in range(first, HIGHEST_PORT + 1) if port not in used)
        port = next((port for port in ports if port_is_free(port, settings.web_host)), None)
        if port is None:
            variable = f"RIFFLE_{role.port.upper()}"
            message = f"no free port above {first} is left for {role.title} {number_of(name)}: set {variable} to a lower one"
            raise ConfigError("no_free_port", message, variable)
        found[name] = port
    return found


def daemon_of(settings: Settings, name: str) -> Daemon:
    """A role's process that `up` has started in this home."""
    home, role = _home_of(settings, name), role_of(name) or WORKER
    title = "the worker" if name == WORKER.kind else f"{role.title} {number_of(name)}"
    return Daemon(title, home / "run" / "worker.pid", home / "logs" / "worker.log")


def worker_daemon(settings: Settings) -> Daemon:
    """The worker, or worker 1, that `up` has started in this home."""
    return daemon_of(settings, WORKER.kind)


def encoder_daemon(settings: Settings) -> Daemon:
    """The encoder of new items that `up` has started."""
    return Daemon("the encoder", settings.run_dir / "encoder.pid", settings.logs_dir / "encoder.log")


def supervisor_daemon(settings: Settings) -> Daemon:
    """The supervisor that `up` starts."""
    return Daemon("the supervisor", settings.run_dir / "supervisor.pid", settings.logs_dir / "supervisor.log")


def _homes(settings: Settings, role: Role) -> dict[str, Path]:
    """Return the homes of a role's processes that exist below this home, by name, whether or not the processes run."""
    homes = (_home_of(settings, name_of(role, number)) for number in range(2 if role is WORKER else 1, MOST + 1))
    return {name_of(role, int(home.name)): home for home in homes if home.is_dir()}


def running(settings: Settings) -> list[str]:
    """Return the names of the roles' processes that `up` started and that run now, in the order in which they start."""
    names = {WORKER.kind, *(name for role in ROLES.values() for name in _homes(settings, role))}
    return [name for name in in_order(names) if daemon_of(settings, name).pid() is not None]


def left_over(settings: Settings, names: Collection[str]) -> dict[str, Path]:
    """Return the homes of workers with rows on disk that are none of `names`.

    Nothing is lost with them: other workers have their partitions, and the changelogs have all rows.
    """
    homes = _homes(settings, WORKER).items()
    return {name: home for name, home in homes if name not in names and any((home / "data" / "tables").glob("*/*"))}


def daemons(settings: Settings, names: Collection[str] = (WORKER.kind,)) -> dict[str, Daemon]:
    """Return the processes of this home by the name of the part, in reverse order of stopping.

    `names`: the roles' processes. The supervisor, which restarts the others, comes last.
    """
    found = {"kafka": EmbeddedKafka(settings).daemon, "redis": EmbeddedRedis(settings).daemon}
    found |= {name: daemon_of(settings, name) for name in in_order(names)}
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

    def start(self) -> Steps[int | None]:
        """Start the command with the settings as its environment, in one step; returns the pid. Raises OSError."""
        environment = {**os.environ, **self.settings.environment(secrets=True), **SAFE_PATH}
        yield from ()
        return self.daemon.start(self.command, environment, self.settings.home, self.address)

    def answers(self) -> bool | None:
        """Whether `/healthz` is 200 within a second.

        None where that says nothing about the process: it has no HTTP interface, or does not listen there, as while it starts
        or ends; or it cannot be reached, because of the network or of this process.
        """
        place = urlsplit(self.address)
        port, host = place.port or 80, place.hostname or "127.0.0.1"
        if not self.address or not _is_here(host) or not self.daemon.listens(port):
            return None
        context = None
        if place.scheme == "https":
            # nothing secret is sent, and a certificate that has expired is no reason to restart
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            said = exchanged(port, HEALTH, len(OK), host, context=context)
        except TimeoutError:
            return False
        except OSError:
            return None
        return said is not None and said.split()[1:2] == OK.split()[1:2]

    def exit_status(self) -> int | None:
        """Exit status of the process that was last started; None if unknown."""
        return exit_status(self.daemon.last_pid(), ENDING_S)

    def last_words(self) -> str:
        """The end of its log."""
        return self.daemon.tail(1)


@dataclass(frozen=True, slots=True)
class PartServer:
    """An embedded server. `start` ends when it answers."""

    name: str
    server: EmbeddedKafka | EmbeddedRedis
    needs: Sequence[str] = ()

    def pid(self) -> int | None:
        """Pid of the live process; None when there is none."""
        return self.server.daemon.pid()

    def start(self) -> Steps[int | None]:
        """Start the server step by step; returns the pid. Raises RiffleError, OSError."""
        return self.server.starting()

    def answers(self) -> bool | None:
        """None: its clients say whether it answers."""
        return None

    def exit_status(self) -> int | None:
        """Exit status of the process that was last started; None if unknown."""
        # a server that is not ready in time still runs
        return None if self.pid() is not None else exit_status(self.server.daemon.last_pid(), ENDING_S)

    def last_words(self) -> str:
        """The end of its log."""
        return self.server.daemon.tail(1)


def _is_here(host: str) -> bool:
    """Whether an address is one of this machine's now. A name is not looked up, because that may take long."""
    if host == "localhost":
        return True
    try:
        version = ipaddress.ip_address(host).version
        with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except (ValueError, OSError):
        return False
    return True


def parts_of(settings: Settings, ports: Mapping[str, int]) -> list[PartProcess | PartServer]:
    """Return the parts with these names that run locally under the settings, in the order in which they start.

    `ports`: the port of each part's HTTP interface by the part's name; 0 for parts without one and for worker 1, whose port is
    in the settings.
    """
    found: list[PartProcess | PartServer] = []
    for name in in_order(ports):
        role = role_of(name)
        if name == "kafka":
            found += [PartServer(name, EmbeddedKafka(settings))] if settings.embedded_kafka else []
        elif name == "redis":
            found += [PartServer(name, EmbeddedRedis(settings))] if settings.embedded_redis else []
        elif role is not None:
            own = settings_of(settings, name, ports[name])
            command = python("-m", "agents.worker", *role.arguments)
            found.append(PartProcess(name, daemon_of(settings, name), command, own, own.web, ("kafka",)))
        else:
            found.append(PartProcess(name, encoder_daemon(settings), riffle("encode"), settings, "", ("kafka",)))
    return found
