"""The loop of training over many simulated days, with drift, poisoned days and quiet days.

days.py [--days 100] [--users 200] [--items 240] [--events 500] [--full-every 7] [--history 14] [--seed S] [--rivals 3]
    [--keep FOLDER] [--json]

Users have tastes that walk a little every day, and items come every day. Every tenth day is quiet, with at most 20 events.
Every ninth day is poisoned: half as many events again come from 40 users made up that day, who all like the same five items.
Each night `riffle train` runs as a command, incremental, and in full every --full-every nights and while there is no champion.
A release that the gate passes is promoted. Each next day, what serves is measured on that day's first likes of real users,
beside the --rivals releases promoted last and the newest one, whether or not it was promoted.

For each day: what happened and the reason given, NDCG@10 of what served over the last seven days, and its ratio to the release
that would have been best on these days, both on the same queries. The lowest ratio and the number of days without a reason
stand at the end. The same seed gives the same days.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from click.testing import CliRunner
from numpy.typing import NDArray
from rich.progress import Progress

from models.release.release import Release
from models.release.serving import ServingModel
from schemas.errors import RiffleError
from schemas.records import Interaction, Item
from training.cli.train import train_command
from training.data.corpus import Corpus
from training.data.events import EventFrame
from training.discount import discounts_at
from training.encoders.live import encode_catalogue
from training.evaluation.evaluate import EvaluationPlan, K
from training.loop.noise import quiet
from training.measure import measure, threads

START_MS, DAY_MS = 1_760_000_000_000, 86_400_000
POSITIVE = "action == 'like'"
WORDS = ("red", "green", "blue", "amber", "ivory", "slate", "rose", "olive")
QUIET_EVERY, POISONED_EVERY = 10, 9
MADE_UP, PUSHED = 40, 5
"Users made up for a poisoned day, and the items that they like."
WINDOW = 7
"Days over which the ratio is taken: one day has too few queries."
FEWEST_DAYS = 3
"Days with figures of both that a comparison needs, or all where there are fewer."
SETTINGS = {
    "towers": {"dimensions": 16, "blocks": 1, "epochs": 6, "batch": 16, "rate": 0.01},
    "ranker": {"width": 16, "experts": 2, "epochs": 3},
    "queries": 400,
    "neighbours": 16,
}


@dataclass(slots=True)
class World:
    """Users, items, and all that decides an event."""

    rng: np.random.Generator
    taste: NDArray[np.float64]
    "`(users, words)`."
    word: NDArray[np.int64]
    "The word of each item."
    appeal: NDArray[np.float64]
    appears: NDArray[np.int64]
    "The day on which each item comes; negative ones are there from the start."

    @classmethod
    def made(cls, users: int, items: int, days: int, seed: int) -> World:
        """Two thirds of the items are there from the start; the others come over the days."""
        rng = np.random.default_rng(seed)
        appears = np.where(np.arange(items) < items * 2 // 3, -10_000, rng.integers(1, max(days, 2), items))
        tastes = rng.normal(0.0, 1.3, (users, len(WORDS)))
        return cls(rng, tastes, rng.integers(0, len(WORDS), items), rng.gumbel(0.0, 0.7, items), appears)

    def items(self, until: int) -> list[Item]:
        """The catalogue until a day."""
        return [
            Item(f"i{n}", f"{WORDS[w]} vase no. {n}", f"made of {WORDS[w]} glass", (WORDS[w],), published_at=self._came(n))
            for n, w in enumerate(self.word.tolist())
            if self.appears[n] <= until
        ]

    def _came(self, n: int) -> int:
        return START_MS + max(int(self.appears[n]), -60) * DAY_MS

    def day(self, day: int, events: int, kind: str) -> list[Interaction]:
        """Events of a day in event-time order. Tastes walk before it."""
        self.taste += self.rng.normal(0.0, 0.12, self.taste.shape)
        wanted = {"quiet": int(self.rng.integers(0, 21))}.get(kind, events)
        there = np.flatnonzero(self.appears <= day)
        found = []
        for n, ms in enumerate(np.sort(self.rng.integers(0, DAY_MS, wanted)).tolist()):
            user = int(self.rng.integers(len(self.taste)))
            utility = self.taste[user, self.word[there]] + self.appeal[there]
            item = int(there[np.argmax(utility + self.rng.gumbel(0.0, 1.0, len(there)))])
            liked = self.rng.random() < 1 / (1 + np.exp(1.0 - self.taste[user, self.word[item]]))
            action = "like" if liked else "view"
            found.append(Interaction(f"d{day}-{n}", f"u{user}", f"i{item}", START_MS + day * DAY_MS + ms, action))
        if kind == "poisoned":
            pushed = self.rng.choice(there, PUSHED, replace=False)
            for n, ms in enumerate(np.sort(self.rng.integers(0, DAY_MS, events // 2)).tolist()):
                item, fake = f"i{pushed[n % PUSHED]}", f"fake{day}-{int(self.rng.integers(MADE_UP))}"
                found.append(Interaction(f"p{day}-{n}", fake, item, START_MS + day * DAY_MS + ms, "like"))
        return sorted(found, key=lambda event: event.event_time)


def kind_of(day: int) -> str:
    """What kind of day it is."""
    return "quiet" if day % QUIET_EVERY == QUIET_EVERY - 1 else "poisoned" if day % POISONED_EVERY == 5 else "usual"


@dataclass(slots=True)
class Loop:
    """Trains every night, and remembers what each release was worth on each day."""

    root: Path
    cache: Path
    champion: str = "none"
    ranks: dict[str, dict[int, NDArray[np.float64]]] = field(default_factory=dict)
    "By release and day: the gain of each query."
    promoted: list[str] = field(default_factory=list)
    "Releases that served, in the order of their promotions."

    def train(self, items: list[Item], events: list[Interaction], *, full: bool) -> dict[str, Any]:
        """Run `riffle train` on all events so far, promote what the gate passes, and return what happened and why."""
        folder = write(self.root / "data", items, events)
        arguments = [str(folder), "--out", str(self.root / "releases"), "--cache", str(self.cache), "--json"]
        arguments += ["--settings", str(self.root / "settings.json"), "--against", self.champion]
        incremental = not full and self.champion != "none"
        made = CliRunner().invoke(train_command, [*arguments, *(["--incremental"] if incremental else [])])
        about: dict[str, Any] = {"training": "incremental" if incremental else "full"}
        if isinstance(made.exception, RiffleError):
            return about | {"outcome": "not trained", "reason": f"{made.exception.code}: {made.exception.message}"}
        if made.exception is not None:
            raise made.exception
        told = json.loads(made.stdout.splitlines()[-1])
        if told["release"] is None:
            said = told.get("message") or f"{told['new_events']} new events, {told['needed']} are needed"
            return about | {"outcome": "skipped", "reason": f"{told['skipped']}: {said}"}
        self.ranks.setdefault(told["release"], {})
        gate = told["gate"]
        about |= {"release": told["release"], "calibration": told.get("calibration", {})}
        if not gate["passed"]:
            return about | {"outcome": "refused", "reason": "; ".join(gate["reasons"])}
        self.champion = told["release"]
        self.promoted.append(self.champion)
        better = f"NDCG@{K} {gate['ndcg@10']} against {gate['against']}, interval from {gate['difference_low']:+.4f}"
        return about | {"outcome": "promoted", "reason": better}

    def measure(self, day: int, items: list[Item], before: list[Interaction], today: list[Interaction], rivals: int) -> None:
        """Measure what serves and its rivals on the first likes of a day's real users."""
        events = EventFrame.of([*before, *today])
        corpus = Corpus("days", items, events, POSITIVE)
        plan = EvaluationPlan((len(before) + 0.5) / len(events), None, first=True)
        encode = partial(encode_catalogue, cache=self.cache / "vectors", text_model="", image_hosts="off")
        for name in dict.fromkeys([self.champion, *self.promoted[-rivals:], *list(self.ranks)[-1:]]):
            model = None if name == "none" else ServingModel(Release.open(self.root / "releases" / name), threads(1))
            figures = measure(corpus, plan, lambda *_: None, name, model, encode)[0]
            real = np.asarray([not one.user_id.startswith("fake") for one in figures.asked], np.bool_)
            gains = discounts_at(np.asarray(figures.ranks, np.int64), K)
            self.ranks.setdefault(name, {})[day] = gains[real] if len(gains) else gains

    def compared(self, day: int, served: dict[int, str]) -> dict[str, Any]:
        """NDCG@K of what served over the last days, and of the best release that was measured on these."""
        days = [d for d in range(max(0, day - WINDOW + 1), day + 1) if d in served and len(self.ranks[served[d]].get(d, ()))]
        if not days:
            return {"ndcg": None, "best": None, "ratio": None}
        ratios: dict[str, float] = {}
        for name, known in self.ranks.items():
            same = [d for d in days if len(known.get(d, ()))]
            if name == "none" or len(same) < min(FEWEST_DAYS, len(days)):
                continue
            mine, theirs = (
                float(np.concatenate([self.ranks[of][d] for d, of in zip(same, who, strict=True)]).mean())
                for who in ([served[d] for d in same], [name] * len(same))
            )
            if theirs > 0:
                ratios[name] = mine / theirs
        best = min(ratios, key=ratios.__getitem__, default=None)
        ndcg = float(np.concatenate([self.ranks[served[d]][d] for d in days]).mean())
        return {"ndcg": round(ndcg, 4), "best": best, "ratio": None if best is None else round(ratios[best], 4)}


def write(folder: Path, items: list[Item], events: list[Interaction]) -> Path:
    """Write a dataset folder."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = ("item_id", "title", "text", "published_at")
    rows = [{**{name: getattr(item, name) for name in columns}, "categories": list(item.categories)} for item in items]
    pl.DataFrame(rows).write_parquet(folder / "items.parquet")
    names = ("event_id", "user_id", "item_id", "event_time", "action")
    pl.DataFrame([{name: getattr(event, name) for name in names} for event in events]).write_parquet(folder / "events.parquet")
    (folder / "dataset.toml").write_text(f'name = "days"\npositive = "{POSITIVE}"\n', encoding="utf-8")
    return folder


def simulated(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Run all days."""
    world = World.made(options.users, options.items, options.days, options.seed)
    (root / "settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    loop = Loop(root, Path("~/.cache/riffle").expanduser())
    history = [event for day in range(-options.history, 0) for event in world.day(day, options.events, "usual")]
    served: dict[int, str] = {}
    days: list[dict[str, Any]] = []
    with Progress(disable=not sys.stderr.isatty()) as shown:
        task = shown.add_task("days", total=options.days)
        for day in range(options.days):
            items = world.items(day - 1)
            night = loop.train(items, history, full=day % options.full_every == 0)
            kind = kind_of(day)
            today = world.day(day, options.events, kind)
            served[day] = loop.champion
            if today:
                loop.measure(day, world.items(day), history, today, options.rivals)
            days.append({"day": day, "kind": kind, "events": len(today), **night, "serves": loop.champion})
            days[-1] |= loop.compared(day, served)
            history += today
            shown.advance(task)
            said = f"{night['training']:11s} {night['outcome']:11s} ratio {days[-1]['ratio']}  {night['reason']}"
            print(f"{day:3d} {kind:8s} {said}", file=sys.stderr, flush=True)
    ratios = [one["ratio"] for one in days if one["ratio"] is not None]
    return {
        "days": days,
        "outcomes": dict(Counter(one["outcome"] for one in days)),
        "without_reason": sum(not one["reason"] for one in days),
        "lowest_ratio": min(ratios, default=None),
        "days_below_0.97": sum(ratio < 0.97 for ratio in ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=100)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--items", type=int, default=240)
    parser.add_argument("--events", type=int, default=500)
    parser.add_argument("--full-every", type=int, default=7)
    parser.add_argument("--history", type=int, default=14, help="days of events before the first night")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rivals", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="an empty folder for data and releases")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        root = options.keep or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        found = simulated(options, root)
    if not options.json:
        del found["days"]
    print(json.dumps(found) if options.json else json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
