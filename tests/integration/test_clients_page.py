"""The examples in `docs/clients.md` run unchanged, where Node and a Java with a compiler are installed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from schemas.records import Item
from schemas.settings import Settings
from streams.embedded.jars import class_path
from streams.kafka.produce import produce_items

pytestmark = pytest.mark.integration
PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
NODE = shutil.which("node")
OLDEST_NODE = 18
TIMEOUT_S = 120


def snippet(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def node() -> str:
    """Node's program; skips the test without a Node that has `fetch`."""
    if NODE is None:
        pytest.skip("Node is not installed")
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"Node is older than {OLDEST_NODE}")
    return NODE


def java() -> str:
    """A Java that compiles; skips the test without one. The runtime of the embedded broker has no compiler."""
    homes = [Path(home) / "bin" / "java" for home in (os.environ.get("JAVA_HOME"),) if home]
    for program in (*homes, shutil.which("java")):
        if program and Path(program).exists():
            listed = subprocess.run([program, "--list-modules"], capture_output=True, text=True, check=False).stdout
            modules = dict(line.partition("@")[::2] for line in listed.splitlines())
            if "jdk.compiler" in modules and int(modules["jdk.compiler"].partition(".")[0]) >= 17:
                return str(program)
    pytest.skip("no Java from 17 on with a compiler (module jdk.compiler) is installed")


@pytest.fixture
async def shop(worker: Settings) -> Settings:
    await produce_items(worker, [Item(f"p{n:04d}", f"Print no. {n}", categories=("harbour",)) for n in range(20)])
    return worker


async def run(*command: str, **environment: str) -> str:
    ran = await asyncio.to_thread(
        subprocess.run,
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def check(slate: dict[str, Any], event: str) -> None:
    assert "error" not in slate
    assert slate["user_id"] == "ann"
    assert slate["degraded"] == []
    assert slate["as_of"]["offset"] >= 0
    assert event not in {item["item_id"] for item in slate["items"]}


async def test_the_example_in_javascript_runs(shop: Settings, tmp_path: Path) -> None:
    program, text = node(), snippet("javascript")
    file = tmp_path / "ask.mjs"
    file.write_text(text.replace("http://127.0.0.1:6066", shop.web))
    check(json.loads(await run(program, str(file))), "p0012")
    file.write_text(file.read_text().replace('item_id: "p0012"', "item_id: true"))
    with pytest.raises(AssertionError, match="400 invalid_field"):
        await run(program, str(file))


async def test_the_example_in_java_runs(shop: Settings, tmp_path: Path) -> None:
    program, text = java(), snippet("java")
    text = text.replace("127.0.0.1:19092", shop.bootstrap_servers).replace('"riffle."', f'"{shop.topic_prefix}"')
    file = tmp_path / "Ask.java"
    file.write_text(text.replace("my-replies", f"{shop.topic_prefix}my-replies"))
    answer = json.loads(await run(program, "-cp", class_path(shop.cache), str(file)))
    assert answer["key"] == "ann"
    check(answer["value"], "p0012")
