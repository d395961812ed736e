"""The process that produces events beside the requests: a dataset's events again, with new ids and times."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from schemas.records import Interaction
from schemas.settings import Settings
from serving.sample import Sample
from streams.kafka.produce import produce_events

STARTED_S = 3.0
"Seconds after which the rate is constant."


@contextmanager
def events(settings: Settings, sample: Path, rate: float) -> Iterator[None]:
    """Produce `rate` events a second meanwhile."""
    environment = {**os.environ, **settings.environment()}
    process = subprocess.Popen([sys.executable, __file__, str(sample), str(rate)], env=environment)
    try:
        time.sleep(STARTED_S)
        if process.poll() is not None:
            raise SystemExit("no events are produced")
        yield
    finally:
        process.terminate()
        process.wait(30)


def again(sample: Sample) -> Iterator[Interaction]:
    """The events of a sample without end, as if they happened now."""
    for user, item, action, value in cycle(sample.events):
        yield Interaction(uuid.uuid4().hex, user, item, int(time.time() * 1e3), action, value)


if __name__ == "__main__":
    asyncio.run(produce_events(Settings.from_env(), again(Sample.read(Path(sys.argv[1]))), float(sys.argv[2])))
