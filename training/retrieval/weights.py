"""Trainable weights of a release: stored beside the serving files, read to continue training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models.release.release import WEIGHTS, Release
from schemas.errors import BadDataset
from training.recipe import TowerSettings
from training.retrieval.towers import ItemTower, UserTower

__all__ = ["Champion", "Start", "warm_start", "weights_of"]

OF_ITEMS = ("ids.weight", "id_bias.weight")
Start = Callable[[UserTower, ItemTower], None]
"Initialises the towers' weights before training."


def weights_of(user: UserTower, item: ItemTower, settings: TowerSettings) -> bytes:
    """Serialise both towers' weights as a file of a release. It holds tensors and settings, no executable code."""
    parts = {"user": user.state_dict(), "item": item.state_dict()}
    tensors = {f"{part}.{name}": tensor.contiguous() for part, state in parts.items() for name, tensor in state.items()}
    return save(tensors, metadata={"towers": json.dumps(asdict(settings), sort_keys=True)})


@dataclass(frozen=True, slots=True)
class Champion:
    """A release whose training an update continues."""

    release: Release
    weights: Mapping[str, Tensor]
    settings: TowerSettings

    @classmethod
    def open(cls, folder: Path) -> Champion:
        """Verify and read a release with its weights.

        Raises:
            ReleaseRejected: the release does not match its manifest.
            BadDataset: it contains no weights, or unreadable ones.
        """
        release = Release.open(folder)
        if WEIGHTS not in release.manifest.files:
            raise BadDataset("no_weights", f"release {release.name} has no weights to continue from: train in full")
        try:
            with safe_open(folder / WEIGHTS, "pt") as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            settings = TowerSettings(**json.loads(metadata["towers"]))
        except (SafetensorError, KeyError, ValueError, TypeError) as exc:
            raise BadDataset("no_weights", f"weights of release {release.name} cannot be read: {exc}") from exc
        return cls(release, weights, settings)


def warm_start(champion: Champion, item_ids: Sequence[str]) -> Start:
    """Make a `Start` with the champion's weights for towers over `item_ids`. New items start from their content alone."""
    place = {name: n for n, name in enumerate(champion.release.item_ids)}
    old = torch.tensor([place.get(name, -1) for name in item_ids])

    def start(user: UserTower, item: ItemTower) -> None:
        parts: dict[str, dict[str, Tensor]] = {"user": {}, "item": {}}
        for name, tensor in champion.weights.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        user.load_state_dict(parts["user"])
        known = old >= 0
        for name in OF_ITEMS:
            theirs = parts["item"][name]
            mine = torch.zeros(len(item_ids), theirs.shape[1])
            if name == "ids.weight":
                mine[:] = parts["item"]["no_id"]
            mine[known] = theirs[old[known]]
            parts["item"][name] = mine
        item.load_state_dict(parts["item"])

    return start
