"""A large catalogue: time until it is ready, memory of two workers, and time per request, by number of items.

catalogue.py [--items 10000 100000 1000000] [--requests 200] [--folder FOLDER] [--json]

Makes a catalogue, a release over it and users with histories (`made_catalogue.py`), once per folder. Then, in processes of
their own without a broker: one worker reads the records of the items topic, takes up the release, and writes the shelf; two
more find it. Prints seconds by phase, the memory of all three while they run (resident, proportional, own MB), the recall
of both indexes on the users' own queries against brute force, and milliseconds per request by stage, alone and in batches,
while statistics change between the batches. `cpu` is the thread's own time, which other work on the machine influences less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import made_catalogue
import numpy as np

from agents.broadcast.item_stream import Catalogue
from agents.broadcast.shelves import Shelves
from agents.memory import give_back
from agents.metrics import Metrics
from models.items.store import ItemStore
from models.pipeline.batch import Queries
from models.pipeline.exact import exact_top
from models.pipeline.kernels import signals
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.slot import ModelSlot
from models.pipeline.sources import LEAST_ALIKE, RECENCY
from models.release.serving import ServingModel, prepare
from models.tables.statistics import StatisticsTable
from models.tables.users import UserTable
from models.warm import warm
from schemas.records import Request
from schemas.settings import Settings
from streams.kafka.chunks import Chunk

AT_ONCE = 4_000
USERS, EVENTS, K = 300, 40, 20


def make(folder: Path, n: int) -> None:
    """Write the records of the items topic and a release below `folder`."""
    cluster = made_catalogue.clusters_of(n)
    keys, values = made_catalogue.entries(cluster)
    ends = np.cumsum([len(value) for value in values])
    made_catalogue.release(folder / "releases", cluster)
    np.savez(folder / "entries.npz", keys=np.asarray(keys), data=np.frombuffer(b"".join(values), np.uint8), ends=ends)


def memory_mb(pid: int | str = "self") -> dict[str, int]:
    """Memory of a process, MB (proc(5), smaps_rollup): `own` is what it wrote, and what no file or process shares."""
    rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    kb = {row[0].rstrip(":"): int(row[1]) for row in rows}
    return {"resident": kb["Rss"] // 1000, "proportional": kb["Pss"] // 1000, "own": kb["Private_Dirty"] // 1000}


class Phases:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def end(self, name: str) -> None:
        """End a phase."""
        now = time.perf_counter()
        self.seconds[name], self._since = round(now - self._since, 2), now


async def read_items(folder: Path, items: ItemStore, metrics: Metrics) -> None:
    """Apply the records as a worker does at its start. They are read from a file in pieces, as from a topic."""
    catalogue, held = Catalogue(items, metrics), np.load(folder / "entries.npz")
    keys, ends = held["keys"], held["ends"]
    data, at = held["data"], 0
    for start in range(0, len(keys), AT_ONCE):
        cuts = ends[start : start + AT_ONCE].tolist()
        piece = data[at : cuts[-1]].tobytes()
        values = [piece[low - at : high - at] for low, high in zip([at, *cuts], cuts, strict=False)]
        count, at = len(values), cuts[-1]
        mine = keys[start : start + count].tolist()
        await catalogue.on_items(Chunk("items", 0, range(count), mine, values, [0] * count, [()] * count))


async def ready(folder: Path) -> tuple[ItemStore, ModelSlot, Phases]:
    """Start as a worker does, up to the point where it may answer; then write what is missing."""
    items, slot, metrics, phases = ItemStore(4), ModelSlot(), Metrics(), Phases()
    shelves = Shelves(folder / "shelves", items, slot, metrics, Settings().shelf_items)
    shelves.find()
    phases.end("find the shelf")
    await read_items(folder, items, metrics)
    phases.end("read the items")
    (release,) = (folder / "releases").iterdir()
    model = prepare(release, None, shelves.held(release.name))
    phases.end("prepare the release")
    while not model.synced(items):
        model.sync(items)
    phases.end("bind it to the rows")
    if not model.rows.indexed:
        model.rows.index_content(items.held or None)()
    phases.end("index the content")
    slot.swap(model)
    phases.seconds["ready"] = round(sum(phases.seconds.values()), 2)
    await shelves.renew()
    phases.end("write, after that")
    return items, slot, phases


def recalls(queries: Queries, model: ServingModel) -> dict[str, float]:
    """Recall of both sources that search an index, at the depth that they search, on the users' own queries."""
    eligible, n = queries.eligible, queries.size
    assert queries.user_vectors is not None
    asked = {"learned": (queries.user_vectors, model.vectors[:n], 300, -np.inf)}
    profiles = signals.profiles(model.content, queries.recent_rows, RECENCY)
    asked["content"] = (profiles, model.content[:n], 150, LEAST_ALIKE)
    found = {}
    for name, (vectors, column, most, above) in asked.items():
        if name == "learned":
            near = model.nearest(vectors, eligible, most, queries.ties)
        else:
            near = model.alike(vectors, eligible, most, queries.ties, above)
        exact = [
            exact_top(vectors[q : q + 1], column, eligible, most, queries.ties.of(np.asarray([q])), above)
            for q in range(len(vectors))
        ]
        shares = [len(np.intersect1d(near.of_query(q)[0], one.rows)) / max(len(one.rows), 1) for q, one in enumerate(exact)]
        found[name] = round(float(np.mean(shares)), 4)
    return found


def measure(folder: Path, n: int, requests: int) -> tuple[dict[str, Any], object]:
    """Measure a worker of this process; also returns what it holds."""
    warm()
    items, slot, phases = asyncio.run(ready(folder))
    model = slot.current
    assert isinstance(model, ServingModel)
    users, statistics = UserTable(items, lambda keys: [None] * len(keys)), StatisticsTable(items)
    events = made_catalogue.histories(made_catalogue.clusters_of(n), USERS, EVENTS)
    applied = users.apply(events)
    statistics.apply(events, applied)
    statistics.copy_to_store(0)
    statistics.take()
    pipeline, rng = CandidatePipeline(items, slot=slot), np.random.default_rng(0)

    def asked(size: int) -> list[Request]:
        return [Request(f"r{k}", f"u{rng.integers(0, USERS)}", k=K) for k in range(size)]

    times: dict[str, Any] = {}
    for size, runs in ((1, requests), (16, max(requests // 10, 5))):
        took, spent, stages = list[float](), list[float](), list[dict[str, float]]()
        for run in range(runs + 3):
            batch = asked(size)
            rows = users.columns([request.user_id for request in batch])
            changed = rng.integers(0, n, 50)
            items.events[changed, 0] += 1
            items.all_events[changed] += 1
            items.popularity[changed, 0] += 1
            items.statistics_changes, items.stream_time_ms = items.statistics_changes + 1, items.stream_time_ms + 500
            items.journal.extend(changed)
            since, busy = time.perf_counter(), time.thread_time()
            slates = pipeline.run(batch, rows, [None] * size)
            if run >= 3:
                took.append((time.perf_counter() - since) * 1e3 / size)
                spent.append((time.thread_time() - busy) * 1e3 / size)
                stages.append(slates[0].timings_ms)
            assert not slates[0].degraded, slates[0].degraded
        middle = {name: round(float(np.median([one[name] for one in stages])) / size, 3) for name in stages[0]}
        p50, p99 = np.percentile(took, [50, 99])
        cpu = round(float(np.median(spent)), 2)
        times[f"batch of {size}"] = {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "cpu": cpu, "stages": middle}
    batch = [Request(f"r{k}", f"u{k}", k=K) for k in range(50)]
    queries = Queries.hydrate(batch, users.columns([request.user_id for request in batch]), items, model)
    model.hydrate(queries, items)()
    found = {
        "items": n,
        "seconds": phases.seconds,
        "ms_per_request": times,
        "recall": recalls(queries, model),
    }
    give_back()
    return found, (pipeline, users, statistics)


def worker(folder: Path, n: int, requests: int) -> subprocess.Popen[str]:
    """Start a process that measures, and waits for its input to end before it ends."""
    command = [sys.executable, __file__, "--folder", str(folder), "--items", str(n), "--requests", str(requests), "--one"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # as in a worker
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def report(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a worker failed: {process.wait()}")
    return dict(json.loads(line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--requests", type=int, default=200, help="requests that are timed")
    parser.add_argument("--folder", type=Path, help="keeps what is made; by default a temporary folder")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found, _held = measure(options.folder, options.items[0], options.requests)
        print(json.dumps(found), flush=True)
        sys.stdin.read()  # stay, so that memory is measured while all workers hold it
        return
    with tempfile.TemporaryDirectory() as temporary:
        for n in options.items:
            folder = (options.folder or Path(temporary)) / str(n)
            if not (folder / "entries.npz").exists():
                folder.mkdir(parents=True, exist_ok=True)
                make(folder, n)
            found, workers = {}, []
            for which in ("first", "second", "third"):
                workers.append(worker(folder, n, options.requests if which != "third" else 10))
                found[which] = report(workers[-1])
            # all still run, so that what they share counts as shared
            together = [memory_mb(process.pid) for process in workers]
            for process in workers:
                process.communicate("")
            result = {"items": n, **found, "memory_mb": dict(zip(found, together, strict=True))}
            print(json.dumps(result) if options.json else json.dumps(result, indent=1), flush=True)


if __name__ == "__main__":
    main()
