"""The chart on a real node: an event in and a slate out through the Service, while workers come, go and are lost."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from chart import tool
from node import HOST, Node, cluster_of_one
from shop import (
    SPACE,
    USERS,
    Backends,
    Load,
    ask,
    backends_at,
    found,
    install,
    installed,
    knows_all,
    like,
    ready,
    service,
    slate,
)

from streams.embedded.process import wait_until

PROGRAMS = "go", "etcd", "containerd", "runc", "buildah", "podman", "iptables", "nsenter", "ip"
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
IMAGE = "localhost/riffle-worker:0.1.0"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
pytestmark = [
    pytest.mark.skipif(bool(MISSING) or os.geteuid() != 0, reason=f"needs root, and {', '.join(MISSING) or 'nothing else'}"),
    pytest.mark.timeout(3_600),
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A cluster of one node that has the worker's image and volumes for two workers and one more."""
    if subprocess.run(["podman", "image", "exists", "localhost/riffle-worker:latest"], check=False).returncode:
        pytest.skip("localhost/riffle-worker is not built: make images")
    subprocess.run(["podman", "tag", "localhost/riffle-worker:latest", IMAGE], check=True)
    with cluster_of_one(tmp_path_factory.mktemp("node")) as made:
        made.load(IMAGE)
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE, "labels": RESTRICTED}}
        made.plane.must("create", "-f", "-", text=json.dumps(space))
        for number in range(3):
            made.volume(f"volume-{number}")
        yield made


@pytest.fixture(scope="module")
def backends(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backends]:
    """Kafka and a Redis at the node's end of the cable."""
    with backends_at(tmp_path_factory.mktemp("kafka")) as made:
        yield made


@pytest.fixture(scope="module")
def url(node: Node, backends: Backends) -> str:
    """The Service of a release with two items and users who liked the first one."""
    installed(node, backends, 1)
    found_at = service(node)
    for item in ("i1", "i2"):
        assert ask(f"{found_at}/v1/items/{item}", {"item_id": item, "title": f"print {item}"}, "PUT")[0] == 202
    assert wait_until(lambda: slate(found_at, "nobody") == ["i1", "i2"], 30), found(node)
    for user in USERS:
        assert slate(found_at, user, like(found_at, user, "i1")) == ["i2"], "a slate has no item that the user has seen"
    return found_at


def test_no_request_fails_while_workers_are_added_and_removed(node: Node, backends: Backends, url: str) -> None:
    with Load(url) as answers:
        installed(node, backends, 2)
        assert node.plane.must("get", "pods", "-n", SPACE, "--no-headers").count("1/1") == 2
        installed(node, backends, 1)
        gone = ("wait", "--for", "delete", "pod/riffle-worker-1", "-n", SPACE, "--timeout", "90s")
        node.plane.must(*gone)
    assert set(answers) == {200}, answers
    assert wait_until(lambda: knows_all(url), 60), found(node)
    installed(node, backends, 2)


def test_nothing_is_lost_with_a_worker_that_is_killed(node: Node, url: str) -> None:
    node.plane.must("delete", "pod", "riffle-worker-0", "-n", SPACE, "--grace-period", "0", "--force")
    assert wait_until(lambda: knows_all(url), 60), found(node)
    again = ("wait", "--for", "condition=Ready", "pod/riffle-worker-0", "-n", SPACE, "--timeout", "5s")
    assert wait_until(lambda: node.plane.ask(*again).returncode == 0, 180, 1), found(node)


def test_an_upgrade_replaces_the_workers_one_after_another(node: Node, backends: Backends, url: str) -> None:
    before = node.plane.must("get", "pods", "-n", SPACE, "-o", "jsonpath={.items[*].metadata.uid}").split()
    with Load(url) as answers:
        installed(node, backends, 2, {"settings": {"RIFFLE_LOG_LEVEL": "WARNING"}})
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


def stranger(node: Node, space: str) -> None:
    """A pod of a namespace that may not ask the shop, and that no policy selects."""
    spec = {
        "automountServiceAccountToken": False,
        "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sleep", "3600"]}],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stranger"}, "spec": spec}
    node.plane.must("create", "namespace", space)
    assert wait_until(lambda: node.plane.ask("get", "serviceaccount", "default", "-n", space).returncode == 0, 30)
    node.plane.must("create", "-n", space, "-f", "-", text=json.dumps(pod))
    node.plane.must("wait", "--for", "condition=Ready", "pod/stranger", "-n", space, "--timeout", "60s")


def reaches(node: Node, space: str, pod: str, host: str, port: int) -> bool:
    """Whether a program in a pod gets a connection."""
    program = f"import socket; socket.create_connection(({host!r}, {port}), 4).close()"
    ran = node.plane.ask("exec", "-n", space, pod, "--", "python", "-c", program)
    assert ran.returncode == 0 or "TimeoutError" in ran.stderr or "timed out" in ran.stderr, ran.stderr
    return ran.returncode == 0


def test_policies_let_through_what_is_named_and_nothing_else(node: Node, backends: Backends, url: str) -> None:
    """What is refused goes through once the policies are taken away, so nothing else stands in its way."""
    stranger(node, "elsewhere")
    worker = node.plane.must("get", "pod", "riffle-worker-0", "-n", SPACE, "-o", "jsonpath={.status.podIP}")
    kafka, redis = backends.ports
    with listening() as other:
        assert reaches(node, SPACE, "riffle-worker-0", HOST, kafka)
        assert reaches(node, SPACE, "riffle-worker-0", HOST, redis)
        assert reaches(node, SPACE, "riffle-worker-1", worker, 6066), "workers ask each other"
        assert not reaches(node, SPACE, "riffle-worker-0", HOST, other), "a worker calls nothing that is not named"
        assert reaches(node, "elsewhere", "stranger", HOST, other), "the server is there"
        assert not reaches(node, "elsewhere", "stranger", worker, 6066), "a namespace that is not a client may not ask"
        unguarded = {"networkPolicy": {"enabled": False}, "settings": {"RIFFLE_HTTP_WITHOUT_TOKENS": "yes"}}
        installed(node, backends, 2, unguarded)
        assert wait_until(lambda: reaches(node, "elsewhere", "stranger", worker, 6066), 30)
        assert wait_until(lambda: reaches(node, SPACE, "riffle-worker-0", HOST, other), 30)
    installed(node, backends, 2)
    assert wait_until(lambda: not reaches(node, "elsewhere", "stranger", worker, 6066), 30)


@contextmanager
def listening() -> Iterator[int]:
    """A port at the node's end of the cable that accepts connections."""
    with socket.create_server((HOST, 0)) as server:
        yield server.getsockname()[1]


def test_a_drain_takes_one_worker_and_waits_for_its_return(node: Node, url: str) -> None:
    """The evicted worker has no other node to go to, so the disruption budget keeps the second one."""
    with Load(url) as answers:
        drain = ("drain", "node", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout", "45s")
        drained = node.plane.ask(*drain, "--pod-selector", "app.kubernetes.io/name=riffle")
        assert drained.returncode != 0
        assert "would violate the pod's disruption budget" in drained.stderr, drained.stderr
        left = [ready(node, f"riffle-worker-{number}") for number in range(2)]
        assert sorted(left) == [False, True], found(node)
        node.plane.must("uncordon", "node")
        assert wait_until(lambda: ready(node, "riffle-worker-0") and ready(node, "riffle-worker-1"), 180, 1), found(node)
    assert set(answers) == {200}, answers
    assert wait_until(lambda: knows_all(url), 60), found(node)


def test_a_worker_that_is_killed_at_its_limit_of_memory_stops_the_update_and_the_other_answers(
    node: Node, backends: Backends, url: str
) -> None:
    """The rest of the update waits for the first pod, and the way back needs no help."""
    with Load(url) as answers:
        small = {"worker": {"resources": {"requests": {"memory": "64Mi"}, "limits": {"memory": "96Mi"}}}}
        assert install(node, backends, 2, small, wait_s=60).returncode != 0
        ends = "jsonpath={.status.containerStatuses[0]['state','lastState'].terminated.reason}"
        killed = node.plane.must("get", "pod", "riffle-worker-1", "-n", SPACE, "-o", ends)
        assert "OOMKilled" in killed, (killed, found(node))
        assert ready(node, "riffle-worker-0"), found(node)
        installed(node, backends, 2)
    assert set(answers) == {200}, answers
    assert wait_until(lambda: knows_all(url), 60), found(node)


def test_a_worker_without_its_volume_gets_its_rows_from_the_changelogs(node: Node, url: str) -> None:
    """As the page on deploying says. The lost volume is not used again."""
    claim = ("get", "pvc", "state-riffle-worker-0", "-n", SPACE, "-o", "jsonpath={.spec.volumeName}")
    before = node.plane.must(*claim)
    with Load(url) as answers:
        node.plane.must("delete", "-n", SPACE, "pvc/state-riffle-worker-0", "pod/riffle-worker-0")
        assert wait_until(lambda: ready(node, "riffle-worker-0"), 240, 1), found(node)
    assert node.plane.must(*claim) != before
    assert set(answers) == {200}, answers
    assert wait_until(lambda: knows_all(url), 60), found(node)


def test_volumes_outlive_the_release(node: Node, url: str) -> None:
    subprocess.run(
        [tool("helm"), "uninstall", "riffle", "-n", SPACE, "--wait", "--kubeconfig", str(node.plane.config)], check=True
    )
    assert node.plane.must("get", "pvc", "-n", SPACE, "--no-headers").count("Bound") == 2
