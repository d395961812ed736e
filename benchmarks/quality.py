"""Quality of slates, compared with classical recommenders on the same queries, and with content alone on new items.

quality.py DATASET [--peers PATH/quality.py] [--share 0.8] [--queries N] [--quick] [--ablations] [--seeds N] [--seed S]
    [--twice] [--out FOLDER] [--cache FOLDER] [--json]

Trains on the first 80 % of the events and queries the serving pipeline at each liked event of the rest. --ablations repeats
this without texts (and titles), without images and without both. --twice repeats the training and compares the releases byte
by byte. Only with the default --queries and --share does the peers' script ask the same queries, and only then are ratios
printed. A smaller share leaves more new items for the ablations. --seeds trains each ablation with N seeds and averages each
query, because two seeds differ by more than images contribute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nearest import nearest_ranks

from models.items.store import text_vector
from models.release.release import list_releases
from models.release.serving import ServingModel
from models.rules import PositiveRule
from training.data.corpus import Corpus, open_corpus
from training.encoders.cache import encode_items
from training.encoders.image import ImageEncoder
from training.encoders.live import encode_catalogue
from training.encoders.text import TextEncoder
from training.evaluation.evaluate import EvaluationPlan, asked_of
from training.evaluation.measurement import Measurement
from training.evaluation.ranking_metrics import bootstrap
from training.evaluation.report import html_report
from training.measure import measure, measurement, threads, train_release
from training.recipe import LearnSettings, RankerSettings, TowerSettings
from training.release.learned import Learned

SHARE = 0.8
"Fraction of the events before the first query, as in the peers' script."
PARITY = 1_000
ENCODED = 200
COLD = "items_new"


def say(part: str, done: int, of: int) -> None:  # noqa: ARG001
    if not done:
        print(f"{time.strftime('%H:%M:%S')} {part}", file=sys.stderr, flush=True)


def settings(seed: int, *, quick: bool) -> LearnSettings:
    made = LearnSettings(seed=seed, towers=TowerSettings(seed=seed), ranker=RankerSettings(seed=seed))
    return replace(made, towers=replace(made.towers, epochs=3), queries=1_500) if quick else made


def run(
    corpus: Corpus, plan: EvaluationPlan, label: str, options: argparse.Namespace
) -> tuple[Measurement, Learned, dict[str, Any]]:
    learned = train_release(corpus, plan.share, settings(options.seed, quick=options.quick), options.cache, say)
    model, encode = ServingModel(learned.release(), threads()), partial(encode_catalogue, cache=options.cache)
    figures, parity = measure(corpus, plan, say, f"measure {label}", model, encode, learned)
    found = measurement(corpus, plan, figures, label, learned.manifest.name, {"training_seconds": learned.seconds})
    return found, learned, {"parity": parity.to_json()} if parity else {}


def content_alone(corpus: Corpus, plan: EvaluationPlan, learned: Learned, measured: Measurement) -> dict[str, Any]:
    """HR@10 on cold items of nearest neighbours by content, with the release's vectors, and the difference to the best."""
    cold = measured.within(COLD)
    if not cold.any():
        return {}
    trained_on = {item_id: n for n, item_id in enumerate(learned.item_ids)}
    rows = np.asarray([trained_on.get(item.item_id, -1) for item in corpus.items])
    parts = {name: learned.arrays[f"{name}.npy"][rows] * (rows >= 0)[:, None] for name in ("text", "image")}
    words = np.stack([text_vector(item) for item in corpus.items])
    kinds = {
        "text": parts["text"],
        "image": parts["image"],
        "text and image": np.concatenate([parts["text"], parts["image"]], axis=1),
        "text, image and words": np.concatenate([parts["text"], parts["image"], words], axis=1),
    }
    rule = PositiveRule(corpus.positive)
    queries = asked_of(corpus.events, rule, plan.share, plan.queries)
    hits = {}
    for kind, vectors in kinds.items():
        say(f"content alone: {kind}", 0, 1)
        ranks = nearest_ranks(corpus.items, corpus.events, rule, queries, vectors.astype(np.float32))
        hits[kind] = (ranks >= 0) & (ranks < 10)
    best = max(hits, key=lambda kind: float(hits[kind][cold].mean()))
    mine = measured.values["hr@10"]
    return {
        "content_hr@10": {kind: round(float(hit[cold].mean()), 4) for kind, hit in hits.items()},
        "best": best,
        "difference": bootstrap(mine[cold] - hits[best][cold], measured.people[cold]).to_json(),
    }


def encoding_rate(corpus: Corpus) -> dict[str, float]:
    """Items encoded per second, on a sample without a cache."""
    rates = {}
    for name, encoder, there in (
        ("text", TextEncoder(), [i for i in corpus.items if i.title or i.text]),
        ("image", ImageEncoder(), [i for i in corpus.items if i.image]),
    ):
        sample = there[:: max(1, len(there) // ENCODED)][:ENCODED]
        if sample:
            with tempfile.TemporaryDirectory() as cache:
                encode_items(sample[:8], encoder, Path(cache))  # loads the weights
                started = time.perf_counter()
                encode_items(sample[8:], encoder, Path(cache))
                rates[name] = round(len(sample[8:]) / (time.perf_counter() - started), 1)
    if rates:
        rates["both, one after the other"] = round(1 / sum(1 / rate for rate in rates.values()), 1)
    return rates


def peers(script: Path, dataset: str) -> dict[str, dict[str, float]]:
    ran = subprocess.run([sys.executable, str(script), dataset, "--json"], capture_output=True, text=True, check=True)
    return dict(json.loads(ran.stdout.strip().splitlines()[-1])["peers"])


def ratios(mine: dict[str, Any], theirs: dict[str, dict[str, float]]) -> dict[str, Any]:
    found = {}
    for what, peer in (
        ("ndcg@10", "ndcg@10"),
        ("hr@10", "hr@10"),
        ("candidate_recall@50", "recall@50"),
        ("recall@50", "recall@50"),
    ):
        best = max(theirs, key=lambda name: theirs[name][peer])
        found[f"{what} / {peer}"] = {
            "riffle": mine[what],
            "best_peer": best,
            "peer": theirs[best][peer],
            "ratio": round(mine[what] / max(theirs[best][peer], 1e-9), 3),
        }
    return found


def same_bytes(corpus: Corpus, learned: Learned, options: argparse.Namespace) -> dict[str, Any]:
    """Train a second time and compare the releases' names, which hold the hash of their contents."""
    again = train_release(corpus, options.share, settings(options.seed, quick=options.quick), options.cache, say)
    with tempfile.TemporaryDirectory() as folder:
        names = {made.write(Path(folder), {}).name for made in (learned, again)}
        files = [manifest.files for manifest in list_releases(Path(folder))]
    differing = sorted({name for one in files for name in one if any(one[name] != other.get(name) for other in files)})
    return {"same": len(names) == 1, "differing_files": differing}


def mean_of(measured: list[Measurement]) -> Measurement:
    """The first measurement with each query's values replaced by the mean over all. For comparisons only, not for display."""
    values = {name: np.mean([one.values[name] for one in measured], axis=0) for name in measured[0].values}
    return replace(measured[0], values=values)


def without(corpus: Corpus, modality: str) -> Corpus:
    """Remove from all items `text` (titles and texts) or `image`."""
    less: dict[str, Any] = {"title": "", "text": ""} if modality == "text" else {"image": None}
    return replace(corpus, items=[replace(item, **less) for item in corpus.items])


def ablations(
    corpus: Corpus, plan: EvaluationPlan, measured: Measurement, options: argparse.Namespace
) -> tuple[dict[str, Any], list[Measurement]]:
    """Contribution of text and of image, each beside the other and alone. `measured`: with both modalities, first seed."""

    every: list[Measurement] = []

    def less(*modalities: str) -> Measurement:
        there, found = corpus, [] if modalities else [measured]
        for modality in modalities:
            there = without(there, modality)
        label = f"without {' and '.join(modalities)}" if modalities else measured.label
        for seed in range(options.seed + len(found), options.seed + options.seeds):
            seeded = argparse.Namespace(**{**vars(options), "seed": seed})
            found.append(run(there, replace(plan, parity=0), f"{label}, seed {seed}" if seed else label, seeded)[0])
        every.extend(found)
        return replace(mean_of(found), label=label)

    both, no_text, no_image, neither = less(), less("text"), less("image"), less("text", "image")
    pairs = {
        "text, beside images": (both, no_text),
        "image, beside texts": (both, no_image),
        "text alone": (no_image, neither),
        "image alone": (no_text, neither),
        "both": (both, neither),
    }
    effects = {
        name: {
            **{what: more.against(without_it, what).to_json() for what in ("ndcg@10", "hr@10", "mrr", "recall@50")},
            **{f"cold {what}": more.against(without_it, what, COLD).to_json() for what in ("hr@10", "mrr", "recall@50")},
        }
        for name, (more, without_it) in pairs.items()
    }
    values = {
        one.label: {"ndcg@10": one.interval("ndcg@10").to_json(), "cold_hr@10": one.interval("hr@10", COLD).to_json()}
        for one in (neither, no_text, no_image, both)
    }
    return {"seeds": options.seeds, "effects": effects, "measured": values}, every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--peers", type=Path, help="script of the classical peers, run on the same dataset")
    parser.add_argument("--share", type=float, default=SHARE, help="part of the events to train on")
    parser.add_argument("--queries", type=int, help="ask only that many, evenly spread")
    parser.add_argument("--quick", action="store_true", help="train with fewer passes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each, for the ablations")
    parser.add_argument("--twice", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/riffle/vectors").expanduser())
    parser.add_argument("--out", type=Path, help="folder for measurements and the report")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.seeds < 1 or (options.seeds > 1 and not options.ablations):
        parser.error("--seeds says how often each of --ablations is trained: 1 or more, with --ablations")

    threads()
    corpus, plan = open_corpus(options.dataset), EvaluationPlan(options.share, options.queries, PARITY)
    measured, learned, facts = run(corpus, plan, "text and image", options)
    means = {name: round(float(values.mean()), 4) for name, values in measured.values.items()}
    out: dict[str, Any] = {
        "dataset": corpus.name,
        "queries": len(measured),
        **means,
        "cold": {
            "queries": int(measured.within(COLD).sum()),
            "hr@10": measured.interval("hr@10", COLD).to_json(),
            **content_alone(corpus, plan, learned, measured),
        },
        **facts,
        "training_seconds": round(sum(s for part, s in learned.seconds.items() if not part.startswith("encode")), 1),
        "encoding_items_per_s": encoding_rate(corpus),
    }
    if options.peers:
        say("peers", 0, 1)
        out["peers"] = peers(options.peers, options.dataset)
        if options.queries is None and options.share == SHARE:
            out["ratios"] = ratios(means, out["peers"])
    if options.twice:
        out["same_seed"] = same_bytes(corpus, learned, options)
    every = [measured]
    if options.ablations:
        out["ablations"], less = ablations(corpus, plan, measured, options)
        every = less
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        for one in every:
            one.save(options.out / f"{one.label.replace(',', '').replace(' ', '-')}.json")
        (options.out / "quality.html").write_text(html_report(every), encoding="utf-8")
    if options.json:
        print(json.dumps(out))
        return
    for name, value in out.items():
        print(f"{name:24s}", value if not isinstance(value, dict) else "")
        for inner, figure in value.items() if isinstance(value, dict) else ():
            print(f"    {inner:28s}", figure)


if __name__ == "__main__":
    main()
