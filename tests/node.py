"""One node of Kubernetes in a network namespace of this machine: containerd, kubelet, kube-proxy, network policies. As root."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from control_plane import CACHE, HERE, SERVICES, ControlPlane, built, compiled, control_plane

from streams.embedded.process import wait_until

NETWORK = "10.89.7"
HOST, NODE = f"{NETWORK}.1", f"{NETWORK}.2"
"Addresses of this machine and of the node on the cable between them."
PODS = "10.244.0.0/24"
NAMESPACE, CABLE = "riffle-node", "riffle0"
PAUSE = "localhost/riffle-pause:1"
CHANGED = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
"Settings of the machine that the kubelet changes."
READY_S = 120.0


def command(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command; its errors are shown when it fails."""
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not check or ran.returncode == 0, f"{' '.join(words)}: {ran.stderr}"
    return ran


def inside(*words: str) -> tuple[str, ...]:
    """The command in the node's network. `ip netns exec` would hide the mounts of cgroups."""
    return "nsenter", f"--net=/run/netns/{NAMESPACE}", *words


@contextmanager
def cable() -> Iterator[None]:
    """A network namespace that a cable connects to this machine, which sends what is for Services into it."""
    command("ip", "netns", "delete", NAMESPACE, check=False)
    command("ip", "link", "delete", CABLE, check=False)
    command("ip", "netns", "add", NAMESPACE)
    try:
        command("ip", "link", "add", CABLE, "type", "veth", "peer", "name", "eth0", "netns", NAMESPACE)
        command("ip", "address", "add", f"{HOST}/24", "dev", CABLE)
        command("ip", "link", "set", CABLE, "up")
        for words in (
            ("ip", "link", "set", "lo", "up"),
            ("ip", "address", "add", f"{NODE}/24", "dev", "eth0"),
            ("ip", "link", "set", "eth0", "up"),
            ("ip", "route", "add", "default", "via", HOST),
            ("sysctl", "-qw", "net.ipv4.ip_forward=1"),
        ):
            command(*inside(*words))
        command("ip", "route", "add", SERVICES, "via", NODE)
        yield
    finally:
        command("ip", "link", "delete", CABLE, check=False)
        command("ip", "netns", "delete", NAMESPACE, check=False)


@contextmanager
def settings_kept() -> Iterator[None]:
    """Settings of the machine are put back at the end."""
    before = {name: Path("/proc/sys", name).read_text() for name in CHANGED}
    try:
        yield
    finally:
        for name, text in before.items():
            Path("/proc/sys", name).write_text(text)


class Node:
    """A node of a control plane, and its containers."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane, self.home = plane, plane.home / "node"
        self._socket, self._before = self.home / "containerd.sock", _networks()

    def start(self) -> None:
        """Start what a cluster needs to run pods; returns when the node is ready."""
        for folder in ("cni", "kubelet", "volumes"):
            (self.home / folder).mkdir(parents=True)
        self._write_files()
        self.plane.run("containerd", *inside("containerd", "--config", str(self.home / "containerd.toml")))
        self._pause()
        program, config = str(built()), str(self.plane.config)
        key = str(self.plane.home / "accounts.key")
        self.plane.run(
            "kube-controller-manager",
            *(program, "kube-controller-manager", "--kubeconfig", config, "--service-account-private-key-file", key),
            *("--leader-elect=false", "--secure-port=0", "--node-monitor-grace-period=40s"),
        )
        self.plane.run(
            "kube-scheduler", program, "kube-scheduler", "--kubeconfig", config, "--leader-elect=false", "--secure-port=0"
        )
        self.plane.run(
            "kubelet",
            *inside(program, "kubelet", "--kubeconfig", config, "--config", str(self.home / "kubelet.json")),
            *("--root-dir", str(self.home / "kubelet"), "--hostname-override", "node", "--node-ip", NODE),
            *("--node-labels", "topology.kubernetes.io/zone=a"),
        )
        self.plane.run("kube-proxy", *inside(program, "kube-proxy", "--config", str(self.home / "proxy.json")))
        self._enforce_policies()
        ready = ("wait", "--for", "condition=Ready", "node/node", "--timeout", "5s")
        assert wait_until(lambda: self.plane.ask(*ready).returncode == 0 or bool(self.plane.ended()), READY_S, 0.5), (
            self.plane.logs()
        )
        assert not self.plane.ended(), (self.plane.ended(), self.plane.logs())

    def ctr(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run containerd's client among the containers of Kubernetes."""
        return command("ctr", "--address", str(self._socket), "--namespace", "k8s.io", *words, check=check)

    def load(self, image: str) -> None:
        """Copy an image of this machine's store to the node."""
        archive = self.home / "image.tar"
        archive.unlink(missing_ok=True)
        command("podman", "save", "--quiet", "--format", "docker-archive", "--output", str(archive), image)
        self.ctr("images", "import", str(archive))
        archive.unlink()

    def volume(self, name: str) -> None:
        """Give the cluster a volume on this machine."""
        folder = self.home / "volumes" / name
        folder.mkdir()
        on_node = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node"]}]}
        spec = {
            "capacity": {"storage": "20Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "local",
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [on_node]}},
        }
        made = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}
        self.plane.must("create", "-f", "-", text=json.dumps(made))

    def end(self) -> None:
        """End the containers that are left, and remove their networks."""
        for task in self.ctr("tasks", "list", "--quiet", check=False).stdout.split():
            self.ctr("tasks", "kill", "--signal", "SIGKILL", task, check=False)
        for mount in sorted(_mounts(self.home), reverse=True):
            command("umount", "--lazy", mount, check=False)
        for name in _networks() - self._before:
            command("ip", "netns", "delete", name, check=False)

    def _enforce_policies(self) -> None:
        """Let the enforcer of network policies decide on each new connection of a pod, but not on those of the node itself.

        Its own rules need nftables' queue, which not every kernel has; their sync fails there, and these decide alike.
        """
        rules = [("-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT")]
        rules += [("-m", "owner", "--uid-owner", "0", "-j", "ACCEPT")]
        rules += [(end, PODS, "-j", "NFQUEUE", "--queue-num", "100") for end in ("-s", "-d")]
        for rule in rules:
            command(*inside("iptables", "-t", "mangle", "-A", "POSTROUTING", *rule))
        self.plane.run("policies", *inside(str(compiled(HERE / "policies")), "node", str(self.plane.config)))

    def _pause(self) -> None:
        work = self.home / "pause"
        work.mkdir()
        command(
            "env",
            "CGO_ENABLED=0",
            "go",
            "build",
            "-C",
            str(HERE / "pause"),
            "-ldflags",
            "-s -w",
            "-o",
            str(work / "pause"),
            ".",
        )
        (work / "Dockerfile").write_text('FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n')
        command("buildah", "bud", "--quiet", "--isolation", "chroot", "--tag", PAUSE, str(work))
        assert wait_until(lambda: self.ctr("version", check=False).returncode == 0, READY_S, 0.5), self.plane.logs()
        self.load(PAUSE)

    def _write_files(self) -> None:
        (self.home / "containerd.toml").write_text(
            f"""version = 2
root = "{self.home}/containerd"
state = "{self.home}/state"
[grpc]
address = "{self._socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{self.home}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""
        )
        bridge = {
            "type": "bridge",
            "bridge": "pods",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.home / "addresses"),
                "ranges": [[{"subnet": PODS}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        network = {
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}],
        }
        (self.home / "cni" / "10-pods.conflist").write_text(json.dumps(network))
        kubelet = {
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "failSwapOn": False,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "evictionHard": {"nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "enforceNodeAllocatable": [],
        }
        (self.home / "kubelet.json").write_text(json.dumps(kubelet))
        unset = {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
        proxy = {
            "kind": "KubeProxyConfiguration",
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "clientConnection": {"kubeconfig": str(self.plane.config)},
            "mode": "iptables",
            "clusterCIDR": PODS,
            "hostnameOverride": "node",
            "conntrack": unset,
        }
        (self.home / "proxy.json").write_text(json.dumps(proxy))


def _networks() -> set[str]:
    return {path.name for path in Path("/run/netns").glob("cni-*")}


def _mounts(below: Path) -> list[str]:
    return [
        line.split()[1]
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if line.split()[1].startswith(f"{below}/")
    ]


@contextmanager
def cluster_of_one(home: Path) -> Iterator[Node]:
    """A cluster with a node that is ready; all of it is ended at the end."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with settings_kept(), cable(), control_plane(home, HOST) as plane:
        node = Node(plane)
        try:
            node.start()
            yield node
        finally:
            node.end()
