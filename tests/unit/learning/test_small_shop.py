"""A shop of 30 items and 20 users, from its folder to a release, as a separate command: its output and its quality."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from small_shop import shop, write_shop

from models.release.release import Release
from training.evaluation.bounds import LEAVE_LAST_OUT, STANDARD

SAID = re.compile(r"the newest events are too few to judge by: .*|[a-z ,ONX-]+: \d+ %")
"Lines that a training writes if stderr is not a terminal: the reason for the protocol, and its progress."


@pytest.mark.slow
def test_a_small_shop_gets_a_release_that_is_judged_by_everybodys_last_like(vectors: Path, tmp_path: Path) -> None:
    items, events = shop(seed=2)
    folder = write_shop(tmp_path / "shop", items, events, images=3)
    palette = Image.new("P", (40, 40))
    palette.putpalette(bytes(range(256)) * 3)
    palette.save(folder / "p01.png", transparency=bytes(range(200)))  # PIL warns of such a file when it is decoded
    command = [sys.executable, "-m", "training", "train", str(folder), "--out", str(tmp_path / "releases"), "--json"]
    ran = subprocess.run(
        [*command, "--cache", str(vectors.parent)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert [line for line in ran.stderr.splitlines() if not SAID.fullmatch(line)] == [], (
        "nothing that libraries say of themselves"
    )
    facts = json.loads(ran.stdout)
    manifest = Release.open(Path(facts["folder"])).manifest
    for gate in (facts["gate"], manifest.metrics["gate"]):
        assert gate["protocol"] == LEAVE_LAST_OUT
        assert STANDARD.last <= gate["people"] <= 20
        assert gate["people"] == gate["queries"] == facts["after"]["queries"] == facts["before"]["queries"]
        low, high = gate["interval"]
        assert low < gate["ndcg@10"] - gate["against"] < high
        assert gate["passed"] == (low > 0 and gate["chance"] <= (1 - STANDARD.level) / 2) == (not gate["reasons"])
    assert facts["events"] == manifest.trained_events < len(events)
    assert facts["after"]["ndcg@10"] > facts["before"]["ndcg@10"], "as of most such shops (docs/decisions/0033)"
