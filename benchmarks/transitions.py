"""CPU time of a request with and without transitions in the release, by turns on a made catalogue.

transitions.py [--items 10000] [--users 200] [--length 40] [--rounds 20]

Prints one line of JSON: median CPU milliseconds per request, alone and in batches of 8, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import made_catalogue
import numpy as np

from models.items.store import ItemStore
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.slot import ModelSlot
from models.release.serving import prepare
from models.tables.users import UserTable
from schemas.codec import decode
from schemas.records import Request
from schemas.validation import item_from

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--length", type=int, default=40, help="events per user")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    cluster = made_catalogue.clusters_of(options.items)
    items = ItemStore(1)
    for value in made_catalogue.entries(cluster)[1]:
        items.upsert(item_from(decode("item", value)[0]))
    events = made_catalogue.histories(cluster, options.users, options.length)
    users = UserTable(items, lambda keys: [None] * len(keys))
    users.apply(events)
    names = sorted({user.decode() for user in events.users})
    with tempfile.TemporaryDirectory() as folder:
        pipelines = {}
        for kind in (False, True):
            slot = ModelSlot()
            slot.swap(prepare(made_catalogue.release(Path(folder) / str(kind), cluster, transitions=kind)))
            pipelines[kind] = CandidatePipeline(items, slot=slot)
        found: dict[str, float] = {}
        for size in (1, BATCH):
            groups = [names[n : n + size] for n in range(0, len(names), size)]
            spent: dict[bool, list[float]] = {False: [], True: []}
            for round_ in range(options.rounds + 2):
                for kind, pipeline in pipelines.items():
                    began = time.process_time()
                    for group in groups:
                        requests = [Request("r", name, k=20) for name in group]
                        slates = pipeline.run(requests, users.columns(group), [None] * len(group))
                        assert not any(slate.degraded for slate in slates)
                    if round_ >= 2:  # the first ones compile and sync
                        spent[kind].append((time.process_time() - began) / len(names) * 1e3)
            without, with_them = (statistics.median(spent[kind]) for kind in (False, True))
            pairs = np.asarray(spent[True]) / np.asarray(spent[False])
            label = "alone" if size == 1 else f"batches of {size}"
            found |= {f"{label}, without": round(without, 3), f"{label}, with": round(with_them, 3)}
            found[f"{label}, ratio"] = round(float(np.median(pairs)), 4)
    print(json.dumps({"items": options.items, "ms": found}))


if __name__ == "__main__":
    main()
