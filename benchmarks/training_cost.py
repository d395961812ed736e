"""CPU time, memory and quality of a whole training on short anonymous sessions.

training.py [DATASET] [--clicks 100000] [--sessions 20000] [--items 3000] [--seed S] [--queries N] [--quick] [--gate]
    [--no-transitions] [--repeats] [--peers FOLDER] [--keep FOLDER]

Trains on the first 80 % of the events and queries the serving pipeline at each click of the rest. Prints one line of JSON: CPU
seconds and seconds by part, peak memory, and quality. Without DATASET it generates clicks with item-to-item transitions,
Zipf popularity and a quarter of repeated items; the items have neither text nor images. --gate adds the gate's part of a
training: parity on 1,000 requests, and 1,000 queries with and without the release. --peers runs quality.py of that folder on
events. --keep writes the generated dataset there.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from models.release.serving import ServingModel
from training.data.corpus import open_corpus
from training.encoders.live import encode_catalogue
from training.evaluation.evaluate import EvaluationPlan
from training.measure import measure, threads, train_release
from training.recipe import LearnSettings, RankerSettings, TowerSettings

SHARE = 0.8
"Fraction of the events before the first query, as in the peers' script."
REPEATS = 0.25
"Fraction of clicks on an item that the session has clicked before."
FOLLOWED = 0.65
"Fraction of the other clicks that follow a transition from the previous item."
SUCCESSORS = 12
"Number of items that an item leads to."
TOPIC = 30
"Number of items in a topic; a click that follows no transition stays in the session's topic half of the time."
DAYS = 30
START_MS = 1_700_000_000_000
GATE = 1_000
"Requests compared, and queries, as `riffle train` does."


def clicks(n: int, sessions: int, items: int, seed: int) -> pl.DataFrame:
    """Generate about `n` clicks: `user_id` (the session), `item_id`, `event_time` in ms."""
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, items + 1) ** 0.8
    popular = np.cumsum(popularity / popularity.sum())
    # items of a topic are a random part of the catalogue, so that popularity does not reveal it
    topic = rng.permutation(items) // TOPIC
    members = [np.flatnonzero(topic == t) for t in range(topic.max() + 1)]
    successors = np.stack([_successors(item, members[topic[item]], popular, rng) for item in range(items)])
    chance = 1.0 / np.arange(1, SUCCESSORS + 1)
    follows = np.cumsum(chance / chance.sum())
    lengths = 1 + rng.geometric(1 / (n / sessions), sessions * 2)
    lengths = lengths[lengths >= 2][:sessions] - (rng.random(sessions) < 0.5)
    lengths = np.maximum(1, np.round(lengths * n / lengths.sum())).astype(np.int64)
    starts = START_MS + np.sort(rng.integers(0, DAYS * 86_400_000, sessions))
    rows = []
    for session, (length, start) in enumerate(zip(lengths.tolist(), starts.tolist(), strict=True)):
        time_ms, clicked = start, [int(np.searchsorted(popular, rng.random()))]
        for _ in range(length - 1):
            last, draw = clicked[-1], rng.random()
            if draw < REPEATS:
                following = clicked[int(rng.integers(len(clicked)))]
            elif draw < REPEATS + (1 - REPEATS) * FOLLOWED:
                following = int(successors[last, np.searchsorted(follows, rng.random())])
            elif rng.random() < 0.5:
                following = int(rng.choice(members[topic[clicked[0]]]))
            else:
                following = int(np.searchsorted(popular, rng.random()))
            clicked.append(min(following, items - 1))
        for item in clicked:
            rows.append((f"s{session}", f"i{item}", time_ms))
            time_ms += int(rng.exponential(40_000)) + 1
    made = pl.DataFrame(rows, schema=["user_id", "item_id", "event_time"], orient="row")
    return made.sort("event_time", maintain_order=True)


def _successors(item: int, topic: np.ndarray, popular: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Items that `item` leads to, the likeliest first: half of them of its topic, half of any."""
    near = rng.permutation(topic[topic != item])[: SUCCESSORS // 2]
    far = np.minimum(np.searchsorted(popular, rng.random(SUCCESSORS - len(near))), len(popular) - 1)
    return rng.permutation(np.concatenate([near, far]))


def write(folder: Path, made: pl.DataFrame, items: int) -> None:
    """Write a dataset folder with these events."""
    folder.mkdir(parents=True, exist_ok=True)
    made.with_columns(pl.lit("click").alias("action")).write_parquet(folder / "events.parquet")
    pl.DataFrame({"item_id": [f"i{n}" for n in range(items)], "title": [""] * items}).write_parquet(folder / "items.parquet")
    (folder / "dataset.toml").write_text('name = "sessions"\npositive = "action == \'click\'"\n', encoding="utf-8")


@dataclass(slots=True)
class Costs:
    """CPU seconds of this process, all threads, and seconds, by part. A report callback of a training."""

    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)
    _part: str = ""
    _since: tuple[float, float] = (0.0, 0.0)

    def __call__(self, part: str, done: int, of: int) -> None:  # noqa: ARG002
        if part != self._part:
            self.end()
            self._part, self._since = part, (time.process_time(), time.perf_counter())
            print(f"{time.strftime('%H:%M:%S')} {part}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """End the current part."""
        if self._part:
            now = time.process_time(), time.perf_counter()
            for spent, end, start in zip((self.cpu, self.wall), now, self._since, strict=True):
                spent[self._part] = round(spent.get(self._part, 0.0) + end - start, 1)
        self._part = ""


@contextmanager
def dataset(options: argparse.Namespace) -> Iterator[str]:
    """The dataset's folder: the given one, or a generated one."""
    if options.dataset:
        yield options.dataset
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary) / "sessions"
        write(folder, clicks(options.clicks, options.sessions, options.items, options.seed), options.items)
        yield str(folder)


def peers(folder: Path, of: str) -> dict[str, dict[str, float]]:
    """Quality of the classical peers on the same events."""
    ran = subprocess.run([sys.executable, str(folder / "quality.py"), of, "--json"], capture_output=True, text=True, check=True)
    return dict(json.loads(ran.stdout.strip().splitlines()[-1])["peers"])


def settings(options: argparse.Namespace) -> LearnSettings:
    """Standard settings, or those of `riffle train --quick`."""
    seed = options.seed
    made = LearnSettings(seed=seed, towers=TowerSettings(seed=seed), ranker=RankerSettings(seed=seed))
    made = replace(made, followers=0) if options.no_transitions else made
    return replace(made, towers=replace(made.towers, epochs=3), queries=1_500) if options.quick else made


def measured(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and measure on one dataset."""
    costs, corpus = Costs(), open_corpus(folder)
    costs("read the events", 0, 1)
    threads()
    cache = Path("~/.cache/riffle/vectors").expanduser()
    learned = train_release(corpus, SHARE, settings(options), cache, costs)
    costs("load the release", 0, 1)
    model, encode = ServingModel(learned.release(), threads()), partial(encode_catalogue, cache=cache)
    if options.gate:
        plan = EvaluationPlan(SHARE, GATE, GATE, first=True)
        measure(corpus, plan, costs, "gate: with the release", model, encode, learned)
        measure(corpus, plan, costs, "gate: without a release", None, encode)
    trained = {"cpu_s": round(sum(costs.cpu.values()), 1), "wall_s": round(sum(costs.wall.values()), 1)}
    model = ServingModel(learned.release(), threads())
    figures, _ = measure(
        corpus, EvaluationPlan(SHARE, options.queries, repeats=options.repeats), costs, "evaluation", model, encode, None
    )
    costs.end()
    quality = figures.to_json()
    return {
        "dataset": corpus.name,
        "events": len(corpus.events),
        "items": len(corpus.items),
        "queries": quality["queries"],
        "training": trained,
        "cpu_s": costs.cpu,
        "wall_s": costs.wall,
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        **{name: quality[name] for name in ("ndcg@10", "hr@10", "recall@50", "mrr", "candidate_recall", "stages", "sources")},
        "measured": {name: learned.measured[name] for name in sorted(learned.measured) if name != "reliability"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="a dataset folder instead of generated clicks")
    parser.add_argument("--clicks", type=int, default=100_000)
    parser.add_argument("--sessions", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--queries", type=int, help="ask only that many, evenly spread")
    parser.add_argument("--quick", action="store_true", help="train with fewer passes")
    parser.add_argument("--no-transitions", action="store_true", help="learn no transitions of items in sessions")
    parser.add_argument("--repeats", action="store_true", help="slates may hold items that the session has clicked")
    parser.add_argument("--gate", action="store_true", help="also do the gate's part of a training")
    parser.add_argument("--peers", type=Path, help="folder of the peers' quality.py")
    parser.add_argument("--keep", type=Path, help="write the generated dataset there")
    options = parser.parse_args()
    with dataset(options) as folder:
        found = measured(folder, options)
        if options.peers:
            found["peers"] = peers(options.peers, folder)
            best = max(found["peers"], key=lambda name: found["peers"][name]["ndcg@10"])
            found["ratio"] = {"best_peer": best, "ndcg@10": round(found["ndcg@10"] / found["peers"][best]["ndcg@10"], 3)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
