"""One process of a data-parallel training that is killed once. `torchrun` runs it; see `test_tower_training.py`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tower_corpus import tower_corpus

from training.loop.checkpoints import Checkpoints
from training.loop.group import joined
from training.recipe import TowerSettings
from training.retrieval.fit_towers import train_towers

SETTINGS = TowerSettings(dimensions=8, blocks=1, epochs=2, batch=4, rate=1e-2)
KILLED_AT = 11


def main(folder: Path) -> None:
    """Train, be killed in the first life, go on in the second, then train once more without a stop."""
    torch.set_num_threads(1)
    table, content = tower_corpus()
    first_life = not list(folder.glob("ckpt/*/step-*"))
    with joined() as group:

        def progress(done: int, of: int) -> None:
            assert done < of or not first_life
            if first_life and group.rank == 1 and done == KILLED_AT:
                os.kill(os.getpid(), signal.SIGKILL)

        steps: list[int] = []
        resumed = train_towers(
            table,
            content,
            SETTINGS,
            lambda done, of: (steps.append(done), progress(done, of))[1],  # type: ignore[func-returns-value]
            checkpoints=Checkpoints(folder / "ckpt", every=4),
        )
        whole = train_towers(table, content, SETTINGS)
        weights = {f"first_step.{steps[0]}": torch.zeros(1)}
        for name, towers in (("resumed", resumed), ("whole", whole)):
            for part, tower in zip(("user", "item"), towers, strict=True):
                weights |= {f"{name}.{part}.{key}": value.contiguous() for key, value in tower.state_dict().items()}
        save_file(weights, folder / f"rank{group.rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
