"""Learning from slates that another system showed, on hotel searches with known preferences, prices and position bias.

shown.py [--searches 9000] [--users 600] [--cities 15] [--seed S] [--slates N] [--ranked PERSONAL] [--floor P] [--quick]
    [--write FOLDER]

A person has a usual price, tastes among amenities, and cities that they search in. A search shows 25 hotels of a city in the
order of another system, which knows how good hotels are, with noise, and with --ranked also in part what the person likes. The
person looks at position p with probability 0.3 + 0.7 exp(-p / 5), independently, likes each hotel or not, and clicks one of
the hotels that they looked at and like, if there is one.

Trains on the first 80 % of the clicks with their searches, and re-ranks the later searches. Prints one line of JSON: MRR and
NDCG of the clicked hotel among the shown ones by the pipeline, in the shown order, by likes per impression and by popularity,
and with the true preferences; the measured position bias with the true one; the
calibration on all later searches; CPU seconds. --write only writes the dataset there.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from models.release.serving import ServingModel
from training.data.corpus import open_corpus
from training.data.slates.examination import Examination
from training.encoders.live import encode_catalogue
from training.evaluation.evaluate import EvaluationPlan
from training.measure import measure, threads, train_release
from training.recipe import LearnSettings, RankerSettings, TowerSettings

SHARE = 0.8
TRAFFIC = 2_000
"Number of later searches, clicked or not, on which probabilities are compared with outcomes."
SHOWN = 25
HOTELS = 40
"Hotels of a city."
AMENITIES = ("pool", "spa", "gym", "beach", "parking", "breakfast", "bar", "kitchen", "garden", "pets", "quiet", "view")
DAYS = 60
START_MS = 1_700_000_000_000


def looked_at(position: np.ndarray, floor: float) -> np.ndarray:
    """The true probability that a position is looked at, 0 is first. `floor`: that of the last positions."""
    probability: np.ndarray = floor + (1 - floor) * np.exp(-position / 5.0)
    return probability


@dataclass(slots=True)
class World:
    """Hotels and people, with all that decides a click."""

    city: np.ndarray
    quality: np.ndarray
    log_price: np.ndarray
    amenity: np.ndarray
    "Whether each hotel has each amenity: `(hotels, amenities)`."
    usual: np.ndarray
    "Usual log price of each person."
    taste: np.ndarray
    "Worth of each amenity to each person: `(people, amenities)`."
    cities: np.ndarray
    "Cities that each person searches in: `(people, 6)`."

    @classmethod
    def made(cls, people: int, cities: int, rng: np.random.Generator) -> World:
        """Draw a world."""
        n = cities * HOTELS
        city = np.repeat(np.arange(cities), HOTELS)
        quality = rng.normal(size=n)
        log_price = np.log(90) + rng.normal(scale=0.25, size=cities)[city] + 0.2 * quality + rng.normal(scale=0.45, size=n)
        amenity = rng.random((n, len(AMENITIES))) < 0.3
        usual = np.log(90) + rng.normal(scale=0.5, size=people)
        taste = np.where(rng.random((people, len(AMENITIES))) < 0.25, 1.6, 0.0) * rng.choice(
            [1.0, -0.5], (people, 12), p=[0.8, 0.2]
        )
        chance = 1.0 / np.arange(1, cities + 1) ** 0.5
        visited = np.stack([rng.choice(cities, min(6, cities), replace=False, p=chance / chance.sum()) for _ in range(people)])
        return cls(city, quality, log_price, amenity, usual, taste, visited)

    def liking(self, person: int, hotels: np.ndarray) -> np.ndarray:
        """Log odds that the person likes each hotel, once they look at it."""
        far = np.abs(self.log_price[hotels] - self.usual[person])
        odds: np.ndarray = -2.2 + 0.8 * self.quality[hotels] - 2.5 * far + self.amenity[hotels] @ self.taste[person]
        return odds


@dataclass(slots=True)
class Searches:
    """What was shown and clicked, in time order."""

    rows: list[tuple[str, str, int, str, str, int]] = field(default_factory=list)
    truth: list[tuple[str, list[float], list[float], int]] = field(default_factory=list)
    "Of each search with a click: request, log odds and log examination by position, and the clicked position."


def searches(world: World, options: argparse.Namespace, rng: np.random.Generator) -> Searches:
    """Draw the searches."""
    n, personal = options.searches, options.ranked
    made, look = Searches(), looked_at(np.arange(SHOWN), options.floor)
    times = START_MS + np.sort(rng.integers(0, DAYS * 86_400_000, n))
    for number, time_ms in enumerate(times.tolist()):
        person = int(rng.integers(len(world.usual)))
        city = int(rng.choice(world.cities[person]))
        there = np.flatnonzero(world.city == city)
        order = world.quality[there] + personal * world.liking(person, there) + rng.normal(scale=1.0, size=len(there))
        shown = there[np.argsort(-order)[:SHOWN]]
        liking = world.liking(person, shown)
        clickable = np.flatnonzero((rng.random(SHOWN) < look) & (rng.random(SHOWN) < 1 / (1 + np.exp(-liking))))
        request, user = f"q{number}", f"u{person}"
        made.rows += [(user, f"h{hotel}", time_ms, "impression", request, p) for p, hotel in enumerate(shown.tolist())]
        if len(clickable):
            p = int(rng.choice(clickable))
            made.rows.append((user, f"h{shown[p]}", time_ms + 20_000, "click", request, p))
            made.truth.append((request, liking.tolist(), np.log(look).tolist(), p))
    return made


def write(folder: Path, world: World, made: Searches) -> None:
    """Write a dataset folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["user_id", "item_id", "event_time", "action", "request_id", "position"]
    pl.DataFrame(made.rows, schema=names, orient="row").write_parquet(folder / "events.parquet")
    tags = [
        "|".join([f"city{c}", *np.asarray(AMENITIES)[has].tolist()]) for c, has in zip(world.city, world.amenity, strict=True)
    ]
    ids = [f"h{n}" for n in range(len(world.city))]
    prices = np.exp(world.log_price).round(2)
    pl.DataFrame({"item_id": ids, "title": [""] * len(ids), "categories": tags, "price": prices}).write_parquet(
        folder / "items.parquet"
    )
    (folder / "dataset.toml").write_text('name = "hotels"\npositive = "action == \'click\'"\n', encoding="utf-8")


def of_truth(made: Searches, share: float) -> dict[str, dict[str, float]]:
    """MRR on the last part of the searches by the true preferences, with and without the true position bias."""
    last = made.truth[int(len(made.truth) * share) :]
    found: dict[str, list[float]] = {"preferences": [], "preferences_and_bias": [], "shown": []}
    for _, liking, look, clicked in last:
        likes = np.log(1 / (1 + np.exp(-np.asarray(liking))))
        for name, score in (("preferences", likes), ("preferences_and_bias", likes + look), ("shown", -np.arange(SHOWN))):
            found[name].append(1.0 / (1 + int((score > score[clicked]).sum())))
    return {"mrr": {name: round(float(np.mean(values)), 4) for name, values in found.items()}}


def recovered(examination: Examination | None, floor: float) -> dict[str, Any]:
    """The measured curve beside the true one, and at how many positions the interval holds the true value."""
    if examination is None or examination.low is None or examination.high is None:
        return {"measured": False}
    true = np.log(looked_at(np.arange(len(examination.low)), floor))
    inside = (examination.low <= true) & (true <= examination.high)
    inside[0] = True
    error = examination.log[: len(true)] - true
    return {
        "choices": examination.choices,
        "inside": int(inside[1:].sum()),
        "of": len(true) - 1,
        "mean_error_of_log": round(float(error[1:].mean()), 3),
        "curve": np.exp(examination.log[: len(true)]).round(3).tolist(),
        "true": np.exp(true).round(3).tolist(),
        "half_width_of_log": ((examination.high - examination.low) / 2).round(3).tolist(),
    }


def settings(options: argparse.Namespace) -> LearnSettings:
    """Standard settings, or those of `riffle train --quick`."""
    seed = options.seed
    made = LearnSettings(seed=seed, towers=TowerSettings(seed=seed), ranker=RankerSettings(seed=seed))
    made = made if options.slates is None else replace(made, shown_slates=options.slates)
    return replace(made, towers=replace(made.towers, epochs=3), queries=1_500) if options.quick else made


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train and re-rank on one dataset."""
    since, part = time.process_time(), [""]

    def report(name: str, done: int, of: int) -> None:  # noqa: ARG001
        if name != part[0]:
            part[0] = name
            print(f"{time.process_time() - since:7.1f} {name}", file=sys.stderr, flush=True)

    corpus = open_corpus(str(folder))
    threads()
    cache = Path("~/.cache/riffle/vectors").expanduser()
    learned = train_release(corpus, SHARE, settings(options), cache, report)
    trained = time.process_time() - since
    model, encode = ServingModel(learned.release(), threads()), partial(encode_catalogue, cache=cache)
    plan = EvaluationPlan(SHARE, 1_500, shown=True, traffic=TRAFFIC)
    figures, _ = measure(corpus, plan, report, "evaluation", model, encode, learned)
    without = measure(corpus, plan, report, "without a release", None, encode)[0]
    assert figures.lists is not None
    assert without.lists is not None
    lists = figures.lists.to_json(learned.examination)
    mrr = {name: value[0] for name, value in lists["mrr"].items()}
    others = {name: value for name, value in mrr.items() if name not in ("riffle", "as_shown")}
    quality = figures.to_json()
    return {
        "clicks": len(corpus.events),
        "shown_slates": lists,
        "mrr_without_release": without.lists.to_json()["mrr"]["riffle"][0],
        "mrr_over_shown": {name: round(mrr[name] / mrr["shown"], 3) for name in mrr if name != "shown"},
        "as_shown_over_best_other": round(mrr.get("as_shown", 0.0) / max(others.values()), 3),
        "retrieval": {name: quality[name] for name in ("ndcg@10", "hr@10", "queries")},
        "calibration": {
            "held_out": learned.measured["calibration"],
            "on_slates": figures.slates.to_json(figures.heads),
            "on_traffic": {head: told["ece"] for head, told in figures.traffic.to_json(figures.heads).items()},
        },
        "learned_slates": learned.measured["logged_slates"],
        "position_bias": recovered(learned.examination, options.floor),
        "training_cpu_s": round(trained, 1),
        "cpu_s": round(time.process_time() - since, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=9_000)
    parser.add_argument("--users", type=int, default=600)
    parser.add_argument("--cities", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slates", type=int, help="learn from that many slates at most")
    parser.add_argument("--floor", type=float, default=0.3, help="probability that the last positions are looked at")
    parser.add_argument("--ranked", type=float, default=0.0, help="weight of the person's liking in the shown order")
    parser.add_argument("--quick", action="store_true", help="train with fewer passes")
    parser.add_argument("--write", type=Path, help="only write the dataset there")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    world = World.made(options.users, options.cities, rng)
    made = searches(world, options, rng)
    if options.write is not None:
        write(options.write, world, made)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), world, made)
        found = measured(Path(folder), options)
    print(json.dumps({**found, "true": of_truth(made, SHARE)}))


if __name__ == "__main__":
    main()
