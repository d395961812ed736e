"""etcd and the API server of Kubernetes, built once into a cache folder, and run on ports of the system's choice."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from chart import tool
from conftest import free_port

from schemas.settings import Settings
from streams.embedded.process import wait_until

HERE = Path(__file__).resolve().parent / "cluster"
SOURCE = HERE / "kubernetes"
CACHE = Settings().resolved().cache / "cluster"
READY_S = 120.0
SERVICES = "10.96.0.0/16"
"Addresses of Services."


def built() -> Path:
    """Build all parts of Kubernetes as one program, unless it is cached: ten minutes of processor time, 3 GB of build cache."""
    (version,) = re.findall(r"k8s\.io/kubernetes v(\d+)\.(\d+)\.(\d+)", (SOURCE / "go.mod").read_text())
    at = "k8s.io/component-base/version"
    stamps = {"gitVersion": f"v{'.'.join(version)}", "gitMajor": version[0], "gitMinor": version[1]}
    return compiled(SOURCE, " ".join(f"-X {at}.{name}={value}" for name, value in stamps.items()))


def compiled(source: Path, flags: str = "") -> Path:
    """Build a Go program into the cache, unless this state of its sources is there."""
    sources = b"".join((source / name).read_bytes() for name in ("main.go", "go.mod", "go.sum"))
    program = CACHE / f"{source.name}-{hashlib.sha256(sources).hexdigest()[:12]}"
    if not program.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = program.with_suffix(".part")
        command = ["go", "build", "-trimpath", "-ldflags", f"-s -w {flags}", "-o", str(part), "."]
        subprocess.run(command, cwd=source, check=True)
        part.replace(program)
    return program


def flags(options: Mapping[str, str]) -> list[str]:
    """Options of a command line."""
    return [f"--{name}={value}" for name, value in options.items()]


def definitions() -> list[Path]:
    """Fetch the definitions that `crds.txt` lists, as Go modules; each must have the hash that is written there."""
    found = []
    for line in (HERE / "crds.txt").read_text().splitlines():
        if not line.startswith("#"):
            module, version, wanted, inside = line.split()
            ran = subprocess.run(["go", "mod", "download", "-json", f"{module}@{version}"], capture_output=True, check=True)
            fetched = json.loads(ran.stdout)
            assert fetched["Sum"] == wanted, (module, fetched["Sum"])
            found += sorted(
                path for path in (Path(fetched["Dir"]) / inside).glob("*.yaml") if path.name != "kustomization.yaml"
            )
    return found


class ControlPlane:
    """A cluster without nodes in a folder."""

    def __init__(self, home: Path, address: str = "127.0.0.1") -> None:
        self.home, self.address, self.port = home, address, free_port()
        self.config = home / "admin.conf"
        self._processes: list[tuple[str, subprocess.Popen[bytes], IO[bytes]]] = []

    def run(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Run a part in the background until `stop`, with a log of its own."""
        log = (self.home / f"{name}.log").open("wb")
        process = subprocess.Popen(command, cwd=self.home, stdout=log, stderr=subprocess.STDOUT)
        self._processes.append((name, process, log))
        return process

    def start(self) -> None:
        """Start etcd and the API server; returns when it is ready."""
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        etcd = {
            "data-dir": "etcd",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
        }
        self.run("etcd", "etcd", "--unsafe-no-fsync", *flags(etcd))
        token, key = secrets.token_hex(16), str(self.home / "accounts.key")
        (self.home / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        server = {
            "etcd-servers": client,
            "secure-port": str(self.port),
            "bind-address": self.address,
            "advertise-address": self.address.replace("127.0.0.1", "127.0.0.2"),  # loopback's first cannot be advertised
            "cert-dir": "certificates",
            "token-auth-file": "tokens.csv",
            "authorization-mode": "Node,RBAC",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": key,
            "service-account-signing-key-file": key,
            "service-cluster-ip-range": SERVICES,
            "kubelet-preferred-address-types": "InternalIP",
        }
        self.run("kube-apiserver", str(built()), "kube-apiserver", *flags(server))
        cluster = {"server": f"https://{self.address}:{self.port}", "insecure-skip-tls-verify": True}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self.config.write_text(json.dumps(config))
        self.config.chmod(0o600)
        assert wait_until(lambda: self.ask("get", "--raw", "/readyz").returncode == 0 or bool(self.ended()), READY_S, 0.5), (
            self.logs()
        )
        assert not self.ended(), self.logs()

    def ended(self) -> list[str]:
        """The parts that ended."""
        return [name for name, process, _ in self._processes if process.poll() is not None]

    def logs(self) -> str:
        """The end of each part's log."""
        return "\n".join(
            f"{name}: {(self.home / f'{name}.log').read_text(errors='replace')[-2_000:]}" for name, *_ in self._processes
        )

    def ask(self, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl as an administrator."""
        whole = [tool("kubectl"), "--kubeconfig", str(self.config), *command]
        return subprocess.run(whole, input=text, capture_output=True, text=True, check=False)

    def must(self, *command: str, text: str = "") -> str:
        """Run kubectl as an administrator; it must succeed. Returns its output."""
        ran = self.ask(*command, text=text)
        assert ran.returncode == 0, f"kubectl {' '.join(command)}: {ran.stderr}"
        return ran.stdout

    def stop(self) -> None:
        """Stop all parts, the last one first."""
        for _, process, log in reversed(self._processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()


@contextmanager
def control_plane(home: Path, address: str = "127.0.0.1") -> Iterator[ControlPlane]:
    """A control plane that is stopped at the end."""
    cluster = ControlPlane(home, address)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
