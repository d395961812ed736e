"""Settings of commands that use the Kafka of this home, or its workers."""

from __future__ import annotations

import click

from agents.processes import worker_daemon
from schemas.errors import ConfigError
from schemas.settings import Settings
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.neighbours import home_of, listener_of
from streams.embedded.process import port_is_free, serving

__all__ = ["own_settings", "require_own"]


def own_settings() -> Settings:
    """Read the settings of a command that uses the stack. Raises as `Settings.from_env` and `require_own`."""
    settings = Settings.from_env()
    require_own(settings)
    return settings


def require_own(settings: Settings) -> None:
    """Check that no other home answers in place of this one, none of whose servers runs; a port may be that of both.

    An unknown program on the port of Kafka is a warning, because it may be meant.

    Raises:
        ConfigError: `another_home`, with the home that answers.
    """
    if not settings.embedded_kafka or EmbeddedKafka(settings).daemon.pid() is not None:
        return
    ports = {"Kafka": settings.kafka_port}
    if worker_daemon(settings).pid() is None and serving(settings).pid() is None:
        ports["the worker"] = settings.web_port
    for name, port in ports.items():
        if port_is_free(port):
            continue
        pid = listener_of(port)
        home = None if pid is None else home_of(pid)
        if home is not None and home.resolve() != settings.home.resolve():
            message = (
                f"{name} on port {port} belongs to RIFFLE_HOME={home}, and this home, {settings.home}, has none running:"
                f" set RIFFLE_HOME to use that one; or set {', '.join(_ports(settings))} to free ports, and run `riffle up`"
            )
            raise ConfigError("another_home", message, "home")
        if name == "Kafka" and home is None:
            which = f"a program (process {pid})" if pid is not None else "a program"
            text = f"{which} on port {port} answers as Kafka, and this home, {settings.home}, has none running"
            click.echo(f"riffle: warning: {text}: set RIFFLE_BOOTSTRAP if it is meant", err=True)


def _ports(settings: Settings) -> list[str]:
    return [f"RIFFLE_{name.upper()}" for name in settings.own_ports()]
