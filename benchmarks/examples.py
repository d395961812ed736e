"""Peak memory and seconds of joining an archive's slates with the actions that followed, each in a separate process.

examples.py [--examples 400000 1600000] [--slate 10] [--rows 10000] [--s3] [--json]

Creates an archive of one partition: the given number of examples with the current features, files of `--rows` slates, and two
events per slate, one of which names it. `build` writes all examples, `newest` those of the 2,000 newest slates. With `--s3`
the archive is on moto's server, a separate process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl

from models.archive.files import ArchiveFile, columns
from models.archive.target import LocalFolder
from models.features.compute import FEATURES, SPEC

NOW = 1_700_000_000_000
PEOPLE, ITEMS = 20_000, 20_000
NEWEST = 2_000
JOBS = {
    "build": "build_examples(target, Path({out!r}), settings)",
    "newest": f"newest_examples(target, settings, [{SPEC!r}], 0, {NEWEST})",
}
JOB = """
import resource
from pathlib import Path
from models.archive.target import open_target
from training.data.slates.examples import ImpressionSettings, build_examples, newest_examples
target, settings = open_target({archive!r}), ImpressionSettings("action == 'like'")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{job}
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def names(prefix: str, numbers: np.ndarray) -> pl.Series:
    """Format numbers as ids."""
    return pl.select(pl.format(f"{prefix}{{}}", pl.lit(pl.Series(numbers)).cast(pl.String).str.zfill(10))).to_series()


def slates(rng: np.random.Generator, first: int, n: int, size: int) -> pl.DataFrame:
    """Make `n` slates of `size` items; the slate at offset o reflects the event at offset 2 o."""
    offset = np.arange(first, first + n)
    shown = pl.DataFrame(
        {
            "item_id": names("item-", rng.integers(0, ITEMS, n * size)),
            "position": np.tile(np.arange(size, dtype=np.int32), n),
            "score": rng.random(n * size),
            "propensity": np.ones(n * size),
            "sources": pl.Series([["covisitation", "popular"]]).new_from_index(0, n * size),
            "features": pl.Series(rng.random((n * size, len(FEATURES)), np.float32)).arr.to_list(),
        }
    )
    items = shown.to_struct().reshape((n, size)).arr.to_list()
    time_ms = NOW + 1_000 * offset
    rows = {
        "request_id": names("0f8fad5b-d9cb-469f-a165-", offset),
        "user_id": names("user-", offset % PEOPLE),
        "event_time": time_ms,
        "release": pl.Series(["20261125"]).new_from_index(0, n),
        "arm": pl.Series(["default"]).new_from_index(0, n),
        "feature_spec": pl.Series([SPEC]).new_from_index(0, n),
        "as_of": pl.DataFrame({"partition": np.zeros(n, np.int32), "offset": 2 * offset, "event_time": time_ms}).to_struct(),
        "items": items,
        "_partition": np.zeros(n, np.int32),
        "_offset": offset,
        "_timestamp": time_ms + 5,
    }
    return pl.DataFrame(rows, schema=columns("impressions"))


def events(rng: np.random.Generator, shown: pl.DataFrame) -> pl.DataFrame:
    """Make two events after each slate, by its user, on its items."""
    size = shown["items"].list.len()[0]
    offset = shown["_offset"].to_numpy()
    two = pl.DataFrame({"slate": np.repeat(np.arange(len(offset)), 2), "nth": np.tile([0, 1], len(offset))})
    slate, nth = two["slate"].to_numpy(), two["nth"].to_numpy()
    number = 2 * offset[slate] + 1 + nth
    picked = pl.Series(rng.integers(0, size, len(slate)))
    first = shown["items"].list.eval(pl.element().struct.field("item_id")).gather(slate)
    item = pl.DataFrame({"items": first, "picked": picked}).select(pl.col("items").list.get(pl.col("picked"))).to_series()
    rows = {
        "event_id": names("c9a646d3-9c61-4cb7-bfcd-", number),
        "user_id": shown["user_id"].gather(slate),
        "item_id": item,
        "event_time": NOW + 1_000 * offset[slate] + 400 + nth,
        "action": pl.Series(["view", "like"]).gather(nth),
        "value": pl.Series([None], dtype=pl.Float64).new_from_index(0, len(slate)),
        "session_id": pl.Series([None], dtype=pl.String).new_from_index(0, len(slate)),
        "request_id": pl.select(
            pl.when(pl.lit(pl.Series(nth)) == 0).then(pl.lit(shown["request_id"].gather(slate)))
        ).to_series(),
        "position": pl.Series([None], dtype=pl.Int32).new_from_index(0, len(slate)),
        "_partition": np.zeros(len(slate), np.int32),
        "_offset": number,
        "_timestamp": NOW + 1_000 * offset[slate] + 410 + nth,
        "_removed": np.zeros(len(slate), np.bool_),
    }
    return pl.DataFrame(rows, schema=columns("interactions"))


def make(root: Path, examples: int, size: int, rows: int) -> None:
    """Write an archive of that many examples."""
    rng, target = np.random.default_rng(0), LocalFolder(root)
    for first in range(0, examples // size, rows):
        shown = slates(rng, first, min(rows, examples // size - first), size)
        for topic, frame in (("impressions", shown), ("interactions", events(rng, shown))):
            last = frame["_offset"][-1]
            path = target.root / ArchiveFile.of(topic, 0, frame["_offset"][0], last, NOW).path
            path.parent.mkdir(parents=True, exist_ok=True)
            frame.write_parquet(path, compression="zstd")


def run(archive: str, what: str) -> dict[str, float]:
    """Run a job: peak memory and memory before the job, MB, and seconds."""
    with tempfile.TemporaryDirectory() as out:
        code = JOB.format(archive=archive, job=JOBS[what].format(out=out))
        started = time.perf_counter()
        ran = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
        before, peak = (int(kb) / 1000 for kb in ran.stdout.split())
        return {"mb": round(peak), "before_mb": round(before), "seconds": round(time.perf_counter() - started, 1)}


@contextlib.contextmanager
def on_s3(root: Path) -> Iterator[str]:
    """Serve the archive on moto's server; yields its address."""
    import boto3

    from models.archive.target import S3Folder

    serve = "import moto.server, sys; sys.argv[1:] = ['-p', '15999']; moto.server.main()"
    server = subprocess.Popen([sys.executable, "-c", serve], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:15999", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    try:
        client = boto3.client("s3")
        while True:
            with contextlib.suppress(Exception):
                client.create_bucket(Bucket="riffle")
                break
            time.sleep(0.2)
        folder, local = S3Folder("riffle", "archive", client), LocalFolder(root)
        for path in local.names("topic=interactions/") + local.names("topic=impressions/"):
            folder.write(path, (root / path).read_bytes())
        yield "s3://riffle/archive"
    finally:
        server.kill()
        server.wait()


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, nargs="+", default=[400_000, 1_600_000])
    parser.add_argument("--slate", type=int, default=10)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--json", action="store_true")
    said = parser.parse_args()
    for examples in said.examples:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            root = Path(folder)
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                pool.submit(make, root, examples, said.slate, said.rows).result()
            archive = stack.enter_context(on_s3(root)) if said.s3 else str(root)
            for what in JOBS:
                found = {"what": what, "examples": examples, **run(archive, what)}
                print(json.dumps(found) if said.json else "  ".join(f"{name} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
