"""Entry point in the container: finds the machines of the training and starts `torchrun` with the given command.

`torchrun` reads its own options from PET_… variables (PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR, …).
A Kubernetes Job and Kubeflow Trainer set them. On SageMaker they are derived from a file that describes the machines.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from schemas.errors import ConfigError
from training.launch.job import MASTER_PORT

__all__ = ["machines", "main"]

SAGEMAKER = Path("/opt/ml/input/config/resourceconfig.json")


def machines(environ: Mapping[str, str], sagemaker: Path = SAGEMAKER) -> dict[str, str]:
    """Variables that describe the other machines to `torchrun`; empty where they are already set, or there is one machine.

    Raises:
        ConfigError: SageMaker's description of the machines cannot be read.
    """
    if "PET_NNODES" in environ or not sagemaker.exists():
        return {}
    try:
        described = json.loads(sagemaker.read_bytes())
        hosts, mine = sorted(described["hosts"], key=lambda host: (len(host), host)), described["current_host"]
        rank = hosts.index(mine)
    except (ValueError, KeyError, TypeError) as exc:
        raise ConfigError("machines", f"{sagemaker} does not list its machines: {exc}") from exc
    found = {
        "PET_NNODES": str(len(hosts)),
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": hosts[0],
        "PET_MASTER_PORT": str(MASTER_PORT),
    }
    if described.get("network_interface_name"):
        found |= dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), described["network_interface_name"])
    return found


def main() -> None:
    """Replace this process by `torchrun`."""
    environment = {**os.environ, **machines(os.environ)}
    command = [sys.executable, "-m", "torch.distributed.run", "-m", "training", *sys.argv[1:]]
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell is involved


if __name__ == "__main__":
    main()
