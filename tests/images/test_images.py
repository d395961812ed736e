"""The images run hardened: as another user, without capabilities, read-only, in 4 GiB. `make images` comes first."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from conftest import free_port

from agents.worker import RANKING as RANKING_ROLE
from schemas.records import Item
from schemas.settings import Settings
from streams.embedded.process import wait_until
from streams.kafka.produce import produce_items
from streams.kafka.topics import ensure_topics

TAG = os.environ.get("TAG", "latest")
RANKING = "python", "-m", "agents.worker", "--role", RANKING_ROLE
USER = 54_321
"A user that the image does not know."
# a user without CAP_SYS_RESOURCE cannot raise limits, and podman would try; crun needs cgroups of version 2
ENGINE = "podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs"
HARDENED = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", f"{USER}:{USER}", "--memory", "4g"),
    *("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"),
)
READY_S = 120.0
COMPILERS = "gcc", "cc", "g++", "clang", "make", "ld", "pip", "java", "redis-server"
pytestmark = pytest.mark.skipif(
    shutil.which("podman") is None or shutil.which("runc") is None, reason="no podman and runc here"
)


def image(name: str) -> str:
    """The name of a built image; skips the test if it was not built."""
    full = f"localhost/{name}:{TAG}"
    if subprocess.run(["podman", "image", "exists", full], check=False).returncode:
        pytest.skip(f"{full} is not built: make images")
    return full


def ran(name: str, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command in a hardened container without a network."""
    whole = [*ENGINE, "run", "--rm", "--network", "none", *HARDENED, *options, image(name), *command]
    return subprocess.run(whole, capture_output=True, text=True, check=False)


@contextmanager
def running(name: str, settings: Settings, *command: str, ends: bool = False) -> Iterator[Callable[[], str]]:
    """A hardened container on this machine's network, with a volume of its own; yields a function that returns its log.

    At the end it is stopped, unless it `ends` by itself, and must exit with status 0.
    """
    container = f"riffle-test-{settings.web_port}-{len(command)}"
    environment = settings.environment() | {"RIFFLE_HOME": "/var/lib/riffle", "RIFFLE_CACHE": "/var/lib/riffle/cache"}
    for name_of_folder in ("RIFFLE_ARCHIVE", "RIFFLE_RELEASES"):
        environment.pop(name_of_folder, None)
    options = [part for variable, value in environment.items() for part in ("--env", f"{variable}={value}")]
    mount = "type=tmpfs,tmpfs-size=2g,tmpfs-mode=1777,destination=/var/lib/riffle"
    full = image(name)
    log = settings.home / f"{container}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *ENGINE,
                "run",
                "--rm",
                "--name",
                container,
                "--network",
                "host",
                *HARDENED,
                "--mount",
                mount,
                *options,
                full,
                *command,
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield (
            lambda: log.read_text(errors="replace") if process.poll() is None else f"ended:\n{log.read_text(errors='replace')}"
        )
        if not ends:
            subprocess.run([*ENGINE, "stop", "--time", "40", container], capture_output=True, check=True)
        assert process.wait(10) == 0, log.read_text(errors="replace")[-4_000:]
    finally:
        subprocess.run([*ENGINE, "rm", "--force", "--ignore", container], capture_output=True, check=False)
        process.wait(30)


def asked(url: str, body: object = None, method: str = "POST") -> tuple[int, Any]:
    """Status and JSON of a request; status 0 without an answer."""
    sent = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, sent, method="GET" if body is None else method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, None


def items_of(answer: tuple[int, Any]) -> list[str] | None:
    """Items of a slate; None for another answer."""
    return [placed["item_id"] for placed in answer[1]["items"]] if answer[0] == 200 else None


def wait_ready(url: str, log: Callable[[], str]) -> None:
    assert wait_until(lambda: asked(url)[0] == 200 or log().startswith("ended"), READY_S), (asked(url), log()[-4_000:])
    assert asked(url)[0] == 200, log()[-4_000:]


@pytest.mark.parametrize("name", ["riffle-worker", "riffle-ranking-gpu", "riffle-train"])
def test_an_image_has_labels_a_bill_of_materials_and_neither_compiler_nor_login(name: str) -> None:
    described = json.loads(subprocess.run(["podman", "image", "inspect", image(name)], capture_output=True, check=True).stdout)[
        0
    ]
    labels = described["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.revision"] not in {"", "unknown"}
    assert described["Config"]["User"] == "10001"
    listed = ran(name, "cat", "/opt/riffle/sbom.cdx.json")
    listed_parts = json.loads(listed.stdout)["components"]
    materials = {part["name"] for part in listed_parts}
    held = ran(name, "python", "-c", "from importlib import metadata as m; print(*{d.name for d in m.distributions()})").stdout
    packages = {package.lower().replace("_", "-") for package in held.split()}
    assert packages <= {material.lower().replace("_", "-") for material in materials}
    assert {"numpy", "aiokafka"} <= packages
    base = ran(name, "dpkg-query", "--show", "--showformat=${Package}=${Version}\\n").stdout.split()
    of_debian = {f"{part['name']}={part['version']}" for part in listed_parts if part.get("purl", "").startswith("pkg:deb/")}
    assert set(base) == of_debian
    assert any(one.startswith("libc6=") for one in base)
    found = ran(name, "sh", "-c", f"for p in {' '.join(COMPILERS)}; do command -v $p; done; true")
    assert (found.returncode, found.stdout) == (0, ""), found


@pytest.mark.parametrize("name", ["riffle-worker", "riffle-ranking-gpu", "riffle-train"])
def test_the_compiled_loops_of_the_image_are_used_by_any_user(name: str) -> None:
    """Nothing is compiled at the start: the cache that a process ends with is the one that it began with."""
    count = "find /opt/riffle/compiled -type f | wc -l; python -m models.warm; find $NUMBA_CACHE_DIR -type f | wc -l"
    warmed = ran(name, "sh", "-c", count)
    assert warmed.returncode == 0, warmed.stderr
    built, used = map(int, warmed.stdout.split())
    assert built == used > 50


def test_without_a_folder_to_write_to_the_image_says_so() -> None:
    refused = ran("riffle-worker", options=("--read-only-tmpfs=false",))
    assert (refused.returncode, "mount a writable folder" in refused.stderr) == (78, True), refused


def test_a_hardened_worker_becomes_ready_takes_an_event_and_answers(fresh: Settings) -> None:
    with running("riffle-worker", fresh) as log:
        wait_ready(f"{fresh.web}/readyz", log)
        assert asked(f"{fresh.web}/v1/items/i1", {"item_id": "i1", "title": "A print"}, "PUT")[0] == 202
        ask_bob = f"{fresh.web}/v1/recommend/bob?deadline_ms=10000"
        assert wait_until(lambda: items_of(asked(ask_bob)) == ["i1"], 30), log()[-4_000:]
        status, taken = asked(f"{fresh.web}/v1/events", {"user_id": "ann", "item_id": "i1", "action": "like"})
        assert status == 202, taken
        (token,) = taken["tokens"]
        after = f"{token['partition']}:{token['offset']}"
        own = asked(f"{fresh.web}/v1/recommend/ann?after={after}&deadline_ms=10000")
        assert items_of(own) == [], "a slate has no item that the user has seen"


def test_a_hardened_ranking_process_ranks_for_a_hardened_worker(fresh: Settings) -> None:
    remote = replace(fresh, ranking="remote", rank_port=free_port())
    with running("riffle-worker", remote) as log, running("riffle-worker", remote, *RANKING) as ranking_log:
        wait_ready(f"{remote.web}/readyz", log)
        wait_ready(f"http://127.0.0.1:{remote.rank_port}/readyz", ranking_log)


def test_a_hardened_encoder_encodes_what_is_in_the_catalogue_and_ends(fresh: Settings) -> None:
    """It has no network but Kafka's: its text model comes with the image."""
    asyncio.run(_with_an_item(fresh))
    with running("riffle-train", fresh, "riffle", "encode", "--once", "--json", ends=True) as log:
        assert wait_until(lambda: log().startswith("ended"), READY_S), log()[-4_000:]
        counters = json.loads(log().splitlines()[-1])
        assert counters["encoded"] == 1, counters


async def _with_an_item(settings: Settings) -> None:
    await ensure_topics(settings)
    await produce_items(settings, [Item("i1", "A print of a fox")])
