"""What a refit is worth: a judged release and its refits, measured on later events that none of them saw.

refit.py DATASET [--later 0.1] [--positive RULE] [--queries N] [--seed S] [--quick] [--settings FILE] [--cache FOLDER] [--json]

Keeps the newest --later of the events outside. In the rest it does as `riffle train`: the gate's part is held out, and a
release is trained on the older part (`judged`). Then it is trained again on all of the rest, its ranker unchanged, in two
ways: from the start with the same settings (`fresh`, what `riffle train` does), and from the judged weights as an update
(`warm`). All three are measured on the first likes of the events outside, query by query in time order. Prints NDCG@10, the
differences from `judged` with 95 % intervals over users, and the seconds that each training took.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from models.release.serving import ServingModel
from training.data.corpus import open_corpus
from training.discount import discounts_at
from training.encoders.live import encode_catalogue
from training.evaluation.evaluate import EvaluationPlan, Figures, K
from training.evaluation.holdout import held_out
from training.evaluation.ranking_metrics import bootstrap
from training.loop.noise import quiet
from training.measure import measure, threads, train_release
from training.recipe import LearnSettings, RankerSettings, TowerSettings
from training.refit import refit
from training.settings_file import read_settings
from training.update import update_release

GATE_QUERIES, HOLDOUT = 1_000, 0.1
"As in `riffle train`."


def gains(figures: Figures) -> np.ndarray:
    return discounts_at(np.asarray(figures.ranks, np.int64), K)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--later", type=float, default=0.1)
    parser.add_argument("--positive")
    parser.add_argument("--queries", type=int, default=1_500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--settings", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/riffle").expanduser())
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    quiet()
    seed = asked.seed
    settings = LearnSettings(seed=seed, towers=TowerSettings(seed=seed), ranker=RankerSettings(seed=seed))
    if asked.quick:
        settings = replace(settings, towers=replace(settings.towers, epochs=3), queries=1_500)
    if asked.settings:
        settings = read_settings(asked.settings, settings)
    corpus = open_corpus(asked.dataset, asked.positive)
    known = corpus.until(1 - asked.later)
    held = held_out(known.events, corpus.positive, 1 - HOLDOUT, GATE_QUERIES)
    judging = replace(known, events=held.events)
    part, all_known = judging.until(held.share), known.until(1.0)
    vectors, begun = asked.cache / "vectors", ""

    def report(what: str, done: int, of: int) -> None:  # noqa: ARG001
        nonlocal begun
        if what != begun:
            begun = what
            print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)

    cores = threads(held.trained)
    seconds: dict[str, float] = {}
    since = time.perf_counter()
    judged = train_release(part, 1.0, settings, vectors, report)
    seconds["judged"] = time.perf_counter() - since
    since = time.perf_counter()
    fresh = refit(judged, all_known.items, all_known.events, vectors, settings, report)
    seconds["fresh"] = time.perf_counter() - since
    with tempfile.TemporaryDirectory() as folder:
        written = judged.write(Path(folder), {})
        since = time.perf_counter()
        warm = update_release(known, 1.0, Path(folder), written.name, settings, vectors, report)
        seconds["warm"] = time.perf_counter() - since
    plan = EvaluationPlan(1 - asked.later, asked.queries, first=True)
    encode = partial(encode_catalogue, cache=vectors, text_model=settings.text_model, image_hosts=settings.image_hosts)
    found = {}
    for name, learned in (("judged", judged), ("fresh", fresh), ("warm", warm)):
        found[name] = measure(corpus, plan, report, f"measure {name}", ServingModel(learned.release(), cores), encode, learned)[
            0
        ]
    users = np.unique([one.user_id for one in found["judged"].asked], return_inverse=True)[1]
    facts: dict[str, object] = {
        "dataset": corpus.name,
        "events": {
            "judged": held.trained,
            "held_out": len(held.events) - held.trained,
            "outside": len(corpus.events) - len(known.events),
        },
        "protocol": held.protocol,
        "queries": len(users),
        "users": int(users.max(initial=-1)) + 1,
    }
    base = gains(found["judged"])
    for name, figures in found.items():
        mine = gains(figures)
        entry: dict[str, object] = {"ndcg@10": round(float(mine.mean()), 4), "seconds": round(seconds[name], 1)}
        entry |= {metric: figures.to_json()[metric] for metric in ("hr@10", "recall@50", "candidate_recall")}
        if name != "judged":
            difference = bootstrap(mine - base, users, 0.95)
            entry["difference"] = [round(value, 4) for value in (difference.mean, difference.low, difference.high)]
            entry["ratio"] = round(float(mine.mean() / base.mean()), 4)
        facts[name] = entry
    print(json.dumps(facts) if asked.json else json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
