"""Time until a restarted worker is ready: from the changelog alone, and with its tables kept on disk.

recover.py [--events 400000] [--users 1000000] [--items 20000] [--json]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time

from common import await_ready, fill, get, instance, stack, worker
from ingest import applied

RESTORED = re.compile(r"users-\d+ ready at offset \d+: (\d+) records from the changelog in ([\d.]+) s")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--events", type=int, default=400_000)
    options.add_argument("--users", type=int, default=1_000_000)
    options.add_argument("--items", type=int, default=20_000)
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    with stack() as running:
        settings = instance(running)
        fill(settings, asked.events, asked.users, asked.items, "even")
        log = settings.home / "worker.log"
        with worker(settings):
            while applied([settings]) < asked.events:
                time.sleep(0.1)
        ready = {}
        for what in ("from the changelog", "with tables kept"):
            if what == "from the changelog":
                shutil.rmtree(settings.data_dir / "tables")
            written = log.stat().st_size
            started = time.perf_counter()
            with worker(settings):
                await_ready(settings)
                ready[what] = round(time.perf_counter() - started, 2)
                assert get(settings, "/healthz")
            if what == "from the changelog":
                found = RESTORED.findall(log.read_bytes()[written:].decode(errors="replace"))
        records, seconds = sum(int(n) for n, _ in found), max(float(s) for _, s in found)
    out = {"records": records, "records_per_s": round(records / max(seconds, 1e-9)), "ready_s": ready}
    print(json.dumps(out) if asked.json else out)


if __name__ == "__main__":
    main()
