"""Reports the progress of a training that runs in a process of its own, so that every worker can show it."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from schemas.settings import Settings
from schemas.trainings import RUNNING, TrainingProgress
from streams.embedded.kafka import EmbeddedKafka
from streams.kafka.trainings import Announcer

__all__ = ["INTERRUPTED", "Reported", "progress_of", "state_of"]

INTERRUPTED = 130
"Exit status of a training that a person interrupted."


def progress_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `TrainingProgress` that a training's progress file sets.

    Raises:
        ValueError, TypeError, KeyError: the file is not one.
    """
    share, left, done, of = facts["share"], facts["left_s"], int(facts["done"]), int(facts["of"])
    return {
        "part": str(facts["part"]),
        "part_share": min(1.0, done / max(1, of)),
        "share": None if share is None else float(share),
        "left_s": None if left is None else float(left),
        "parts": tuple((str(name), float(seconds)) for name, seconds in facts["parts"]),
    }


def state_of(status: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `TrainingProgress` that a training's exit status and its last line of output set."""
    if status == INTERRUPTED:
        return {"state": "interrupted", "left_s": None}
    if status:
        message = facts.get("error", {}).get("message") or f"it ended with status {status}"
        return {"state": "failed", "left_s": None, "reasons": (str(message),)}
    if facts.get("skipped"):
        return {"state": "skipped", "left_s": None, "reasons": (str(facts.get("message") or facts["skipped"]),)}
    gate = facts.get("gate", {})
    if gate.get("passed"):
        return {"state": "accepted", "release": facts.get("release"), "share": 1.0, "part_share": 1.0, "left_s": 0.0}
    reasons = tuple(map(str, gate.get("reasons", ())))
    return {
        "state": "refused",
        "release": facts.get("release"),
        "share": 1.0,
        "part_share": 1.0,
        "left_s": 0.0,
        "reasons": reasons,
    }


class Reported:
    """Reports a training on Kafka from its start to its end. A failure to do so is printed once, and changes nothing else."""

    def __init__(
        self,
        settings: Settings,
        path: Path,
        options: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`path`: the file at which the training keeps its progress (`training.cli.written`)."""
        now = wall()
        self._path, self._clock, self._began = path, clock, clock()
        self._newest = TrainingProgress(
            f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(3)}",
            kind="incremental" if "--incremental" in options else "full",
            host=socket.gethostname(),
            started_at=int(now * 1000),
            part="start",
        )
        # the broker of a home that is not up has nobody to report to
        up = not settings.embedded_kafka or EmbeddedKafka(settings).daemon.pid() is not None
        self._announcer = Announcer(settings, self.newest, _warn) if up else None

    def newest(self) -> TrainingProgress:
        """Return how far the training is."""
        if self._newest.state == RUNNING:
            with suppress(OSError, ValueError, TypeError, KeyError):  # it has not begun to write, or can no longer
                self._newest = replace(self._newest, **progress_of(json.loads(self._path.read_text(encoding="utf-8"))))
            self._newest = replace(self._newest, elapsed_s=round(self._clock() - self._began, 1))
        return self._newest

    def start(self) -> None:
        """Begin to report."""
        if self._announcer is not None:
            self._announcer.start()

    def end(self, status: int, facts: Mapping[str, Any]) -> None:
        """Report the end: the exit status, and the last line of the output."""
        self._newest = replace(self.newest(), **state_of(status, facts))
        if self._announcer is not None:
            self._announcer.stop()


def _warn(reason: str) -> None:
    click.echo(f"riffle: the progress of this training is not shown by workers: {reason}", err=True)
