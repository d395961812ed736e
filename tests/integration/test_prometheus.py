"""A real Prometheus scrapes a running worker: it reads every name, and answers every expression of dashboards and alerts."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from conftest import free_port

from schemas.records import Interaction, Item
from schemas.settings import Settings
from streams.kafka.produce import produce_events, produce_items

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = shutil.which("prometheus") or ""
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not PROMETHEUS, reason="there is no Prometheus: install Debian's prometheus"),
]
SECRET_USER, SECRET_ITEM = "a-user-of-mine", "an-item-of-mine"
PATIENCE_S = 60.0
WITH_TRAFFIC = {
    "Requests by outcome",
    "Time to answer",
    "Mean time of a batch by stage",
    "Candidates after each stage",
    "Memory",
}
"Panels that must show values after a few requests; others wait for failures."


@asynccontextmanager
async def prometheus(settings: Settings, folder: Path) -> AsyncIterator[str]:
    """A Prometheus with the shipped rules that scrapes the worker every second; its address."""
    rules = ROOT / "deploy" / "prometheus" / "riffle.rules.yaml"
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "riffle", "static_configs": [{"targets": [settings.web.removeprefix("http://")]}]}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address, log = f"127.0.0.1:{free_port()}", (folder / "prometheus.log").open("wb")
    command = [PROMETHEUS, f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    process = await asyncio.create_subprocess_exec(
        *command, f"--web.listen-address={address}", stdout=subprocess.DEVNULL, stderr=log
    )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        await process.wait()
        log.close()


async def ask(http: aiohttp.ClientSession, path: str, **parameters: str) -> Any:
    async with http.get(path, params=parameters) as response:
        answer = await response.json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]


async def until_scraped(http: aiohttp.ClientSession, times: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                found = (await ask(http, "/api/v1/query", query=f"count_over_time(riffle_ready[1m]) >= {times}"))["result"]
                if found:
                    return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.3)


async def test_prometheus_reads_a_worker_and_answers_every_expression(worker: Settings, tmp_path: Path) -> None:
    await produce_items(worker, [Item(f"i{n}", f"Print {n}") for n in range(20)] + [Item(SECRET_ITEM, "Mine")])
    tokens = await produce_events(worker, [Interaction("e1", SECRET_USER, SECRET_ITEM, 1_700_000_000_000, "like")])
    ((partition, offset),) = tokens.items()
    async with (
        prometheus(worker, tmp_path) as address,
        aiohttp.ClientSession(worker.web) as riffle,
        aiohttp.ClientSession(address) as http,
    ):
        body = {"user_id": SECRET_USER, "after": {"partition": partition, "offset": offset}}
        await until_scraped(http, 1)
        for _ in range(5):
            async with riffle.post("/v1/recommend?deadline_ms=20000", json=body) as response:
                assert response.status == 200
            await asyncio.sleep(0.5)
        await until_scraped(http, 6)

        (target,) = (await ask(http, "/api/v1/targets"))["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        rules = [rule for group in (await ask(http, "/api/v1/rules"))["groups"] for rule in group["rules"]]
        assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
        assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
        for rule in rules:
            await ask(http, "/api/v1/query", query=rule["query"])

        drawn = set()
        for path in sorted((ROOT / "deploy" / "grafana").glob("*.json")):
            for panel in json.loads(path.read_text())["panels"]:
                for wanted in panel.get("targets", ()):
                    expression = re.sub(r"\$(job|instance)\b", ".+", wanted["expr"]).replace("$__rate_interval", "1m")
                    found = (await ask(http, "/api/v1/query", query=expression))["result"]
                    if any(sample["value"][1] not in {"NaN", "0"} for sample in found):
                        drawn.add(panel["title"])
        assert drawn >= WITH_TRAFFIC
        (answered,) = (await ask(http, "/api/v1/query", query='sum(riffle_answer_seconds_count{interface="http"})'))["result"]
        assert answered["value"][1] == "5"

        # values of labels are bounded: no id is among them
        labels = await ask(http, "/api/v1/labels")
        values = {value for name in labels for value in await ask(http, f"/api/v1/label/{name}/values")}
        assert not {value for value in values if SECRET_USER in value or SECRET_ITEM in value}
        stages = {
            sample["metric"]["stage"]
            for sample in (await ask(http, "/api/v1/query", query="riffle_stage_seconds_count"))["result"]
        }
        assert stages == {"hydrate", "retrieve", "merge", "filter", "light", "rank", "select"}
