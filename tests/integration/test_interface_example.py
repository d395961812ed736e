"""The example client in `docs/interface.md` runs unchanged."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.records import Item
from schemas.settings import Settings
from streams.kafka.produce import produce_items

pytestmark = pytest.mark.integration
PAGE = Path(__file__).resolve().parents[2] / "docs" / "interface.md"


async def test_the_example_of_the_page_runs(worker: Settings) -> None:
    import asyncio

    found = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    script = found[1].replace("127.0.0.1:19092", worker.bootstrap_servers).replace('"riffle."', f'"{worker.topic_prefix}"')
    script = script.replace("my-replies", f"{worker.topic_prefix}my-replies")
    await produce_items(worker, [Item(f"p{n:04d}", f"Print no. {n}", categories=("harbour",)) for n in range(20)])
    ran = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    slate = json.loads(ran.stdout)
    assert "error" not in slate
    assert slate["degraded"] == []
    assert slate["as_of"]["offset"] >= 0
    assert "p0012" not in {item["item_id"] for item in slate["items"]}
