"""Checkpoints: a killed training resumes from one and gives the same result as an uninterrupted one.

A checkpoint is a folder with `tensors.safetensors` and `state.json`, which holds the former's sha256. Nothing in it is
pickled, so reading one executes no code. A folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from schemas.errors import StoreCorrupt
from training.loop.group import Group

__all__ = ["Checkpoint", "Checkpoints", "Training", "fingerprint"]

log = logging.getLogger(__name__)

TENSORS, STATE = "tensors.safetensors", "state.json"
FORMAT = 1


@dataclass(slots=True)
class Checkpoint:
    """Contents of a checkpoint."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def fingerprint(facts: Mapping[str, Any], arrays: Iterable[NDArray[Any]]) -> str:
    """Name of a training, 16 hexadecimal digits. It differs for other settings or data."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Folder of checkpoints of several trainings, each below its fingerprint. All processes of a group must have access."""

    folder: Path
    every: int = 200
    "Number of steps between two checkpoints."
    kept: int = 2
    "Number of newest checkpoints to keep. If the newest is damaged, the one before it is used."

    def write(self, training: str, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, and remove old ones beyond `kept`."""
        root = self.folder / training
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(".part-*"):  # remains of a process that was killed while writing
            shutil.rmtree(left, ignore_errors=True)
        data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
        facts = {**state, "format": FORMAT, "step": step, "sha256": hashlib.sha256(data).hexdigest()}
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=root))
        for name, content in ((TENSORS, data), (STATE, json.dumps(facts).encode())):
            with (part / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        final = root / f"step-{step:09d}"
        if final.exists():  # a damaged checkpoint of an earlier run
            shutil.rmtree(final)
        part.rename(final)
        for old in self._steps(root)[self.kept :]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    @staticmethod
    def _steps(root: Path) -> Sequence[Path]:
        return sorted(root.glob("step-*"), reverse=True)

    def newest(self, training: str) -> Checkpoint | None:
        """Newest intact checkpoint; None without one. Damaged ones are logged and skipped."""
        for folder in self._steps(self.folder / training):
            try:
                return read_checkpoint(folder)
            except StoreCorrupt as exc:
                log.warning("%s: the checkpoint before it is used", exc)
        return None

    def clear(self) -> None:
        """Remove all checkpoints, once the result is stored. Other files in the folder stay."""
        for training in self.folder.glob("[0-9a-f]" * 16):
            shutil.rmtree(training, ignore_errors=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read and check one checkpoint.

    Raises:
        StoreCorrupt: parts are missing, bytes differ from those written, or the format is another one.
    """
    try:
        data, state = (folder / TENSORS).read_bytes(), json.loads((folder / STATE).read_bytes())
        if state["format"] != FORMAT or hashlib.sha256(data).hexdigest() != state["sha256"]:
            raise StoreCorrupt("checkpoint", f"checkpoint {folder.name} is not what was written")
        return Checkpoint(int(state["step"]), load(data), state)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as exc:
        raise StoreCorrupt("checkpoint", f"checkpoint {folder.name} cannot be read: {exc}") from exc


class Training:
    """Complete state of a training: weights, optimizer, schedule, random generators, and position.

    All processes of the group write and read together. Each has its own random generators; the first one writes the file.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        rng: np.random.Generator,
        group: Group,
    ) -> None:
        self._modules = modules
        self._optimizer = optimizer
        self._schedule = schedule
        self._rng = rng
        self._group = group
        self.epoch_rng = rng.bit_generator.state
        "State of `rng` at the start of the epoch, from which the order of windows is drawn again."

    def save(self, checkpoints: Checkpoints, name: str, step: int) -> None:
        """Write the current state."""
        tensors = {
            f"{part}.{key}": value for part, module in self._modules.items() for key, value in module.state_dict().items()
        }
        state = self._optimizer.state_dict()
        for number, values in state["state"].items():
            for key, value in values.items():
                tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
        generators = {"cpu": torch.get_rng_state()}
        if self._group.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state()
        for kind, generator in generators.items():
            for rank, value in enumerate(self._group.gathered(generator)):
                tensors[f"random.{kind}.{rank}"] = value
        if self._group.first:
            facts = {
                "groups": state["param_groups"],
                "schedule": self._schedule.state_dict(),
                "rng": self._rng.bit_generator.state,
                "epoch_rng": self.epoch_rng,
            }
            checkpoints.write(name, step, tensors, facts)
        self._group.wait()

    def load(self, checkpoints: Checkpoints, name: str) -> int:
        """Restore the newest checkpoint; returns the number of steps done, 0 without one.

        Raises:
            ConfigError: the processes do not find the same checkpoint.
        """
        found = checkpoints.newest(name)
        self._group.agree("the newest checkpoint", 0 if found is None else found.step)
        if found is None:
            return 0
        for part, module in self._modules.items():
            module.load_state_dict(_below(found.tensors, part))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(found.tensors, "optimizer").items():
            number, field = key.split(".")
            state.setdefault(int(number), {})[field] = value
        self._optimizer.load_state_dict({"state": state, "param_groups": found.state["groups"]})
        self._schedule.load_state_dict(found.state["schedule"])
        torch.set_rng_state(found.tensors[f"random.cpu.{self._group.rank}"])
        if self._group.device.type == "cuda" and f"random.cuda.{self._group.rank}" in found.tensors:
            torch.cuda.set_rng_state(found.tensors[f"random.cuda.{self._group.rank}"])
        self._rng.bit_generator.state = found.state["rng"]
        self.epoch_rng = found.state["epoch_rng"]
        return found.step


def _below(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}
