"""Inside the container: find out which machines train together, and start `torchrun` with the given command of training.

`torchrun` reads its own options from PET_… variables (PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR, …).
A Kubernetes Job sets them, Kubeflow Trainer does, and on SageMaker they follow from a file that describes the machines.
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
    """The variables that tell `torchrun` of the other machines; empty where the environment already does, or there are none.

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
        raise ConfigError("machines", f"{sagemaker} does not say which machines there are: {exc}") from exc
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
    """Become `torchrun`."""
    environment = {**os.environ, **machines(os.environ)}
    command = [sys.executable, "-m", "torch.distributed.run", "-m", "training", *sys.argv[1:]]
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell takes part


if __name__ == "__main__":
    main()
