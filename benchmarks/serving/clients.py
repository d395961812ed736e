"""The process of the clients, apart from the worker and from the producer of events.

It reads one measurement a line, `{"do": NAME, ...}`, and writes its figures as a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import aiohttp

from schemas.settings import Settings
from serving.http_load import Http
from serving.kafka_load import Embedded, burst, overload
from serving.open_loop import Ask, closed_loop, open_loop
from serving.sample import Sample
from serving.summary import stages, summary
from streams.kafka.client import RiffleClient

DEADLINE_MS = 1_000
"Deadline of measured requests, so that saturation shows as latency and not as refusals."
CONNECTIONS = 500
"Connections over HTTP at most: select(2) knows 1,024 files."


class Clients:
    """The caller's side of the process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def measure(self, name: str, **options: Any) -> dict[str, Any]:
        """Figures of one measurement.

        Raises:
            SystemExit: the process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": name, **options}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the clients ended during {name}")
        return dict(json.loads(line))


@contextmanager
def clients(settings: Settings, sample: Path) -> Iterator[Clients]:
    """Start the process."""
    environment = {**os.environ, **settings.environment()}
    process = subprocess.Popen(
        [sys.executable, __file__, str(sample)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield Clients(process)
    finally:
        process.terminate()
        process.wait(30)


async def timed(ask: Ask, rate: float, seconds: float) -> dict[str, Any]:
    """Figures at `rate` requests a second, at 0 of one request in flight; with the processor time of the client itself."""
    wall, used = time.perf_counter(), time.process_time()
    answers = await (open_loop(rate, seconds, ask) if rate else closed_loop(seconds, ask))
    client = round((time.process_time() - used) / (time.perf_counter() - wall), 2)
    return {**summary(answers), "client_cores": client, "stages": stages(answers)}


async def serve(settings: Settings, sample: Sample) -> None:
    """Measure what standard input asks for, until its end."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session,
        RiffleClient(settings) as client,
    ):
        embedded = Embedded(client, sample, DEADLINE_MS)
        over: dict[str, Ask] = {
            "kafka": embedded.ask,
            "http": Http(settings, session, Http.slates(sample), DEADLINE_MS).ask,
            "rerank": Http(settings, session, Http.rankings(sample), DEADLINE_MS).ask,
        }
        while line := await asyncio.to_thread(sys.stdin.readline):
            options = json.loads(line)
            name = options.pop("do")
            if name in over:
                figures = await timed(over[name], **options)
            elif name == "freshness":
                figures = await embedded.fresh(**options)
            elif name == "burst":
                figures = await burst(settings, sample, **options)
            else:
                figures = await overload(settings, sample, **options)
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    # select(2) has a resolution of microseconds, where epoll wakes up to a millisecond late
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(serve(Settings.from_env(), Sample.read(Path(sys.argv[1]))))
