"""The multi-gate mixture of experts (Ma et al., KDD 2018)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from training.ranking.base import CONSTANT, Ranker
from training.recipe import RankerSettings

__all__ = ["MMoE"]


class MMoE(Ranker):
    """Experts shared by the heads, mixed by a gate per head; beside them, a linear part."""

    def __init__(self, features: int, heads: int, settings: RankerSettings) -> None:
        super().__init__(features, heads)
        width = settings.width
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(features, width), nn.GELU(), nn.Dropout(settings.dropout), nn.Linear(width, width // 2), nn.GELU()
            )
            for _ in range(settings.experts)
        )
        self.gates = nn.ModuleList(nn.Linear(features, settings.experts) for _ in range(heads))
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(width // 2, 16), nn.GELU(), nn.Linear(16, 1)) for _ in range(heads))
        self.linear = nn.Linear(features, heads)
        self._add_output_parameters()

    def logits(self, features: Tensor) -> Tensor:
        """Uncalibrated logits."""
        standard = self.standard(features)
        experts = torch.stack([expert(standard) for expert in self.experts], dim=-2)
        outs = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = torch.softmax(gate(standard), dim=-1)
            outs.append(tower((weights.unsqueeze(-1) * experts).sum(dim=-2)))
        total: Tensor = torch.cat(outs, dim=-1) + self.linear(standard)
        return total

    def served(self) -> nn.Module:
        """See `Ranker.served`."""
        return ServedMMoE(self)


class ServedMMoE(nn.Module):
    """The function of an MMoE in steps that ONNX Runtime does faster on a CPU: in 0.7 of the time.

    Features that were constant in training, which `Ranker.fit` fixes at 0, are left out. Gates and linear part are one product,
    and the mixture is a sum of products instead of a reduction over a stack.
    """

    def __init__(self, ranker: MMoE) -> None:
        super().__init__()
        kept = ranker.scale.detach().numpy() < CONSTANT
        kept |= not kept.any()
        edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]]).astype(np.int8)))
        self.runs: tuple[int, ...] = tuple(edges.tolist())
        "Begin and end of each run of columns that are read."
        columns = torch.from_numpy(np.flatnonzero(kept))
        self._features, self._heads = len(kept), len(ranker.gates)
        self._experts = len(ranker.experts)
        parts: dict[str, Tensor] = {"mean": ranker.mean[columns], "scale": ranker.scale[columns]}
        given: dict[str, Tensor] = dict(ranker.named_parameters())
        for kind in ("weight", "bias"):
            side: Tensor = torch.cat([*(given[f"gates.{n}.{kind}"] for n in range(self._heads)), given[f"linear.{kind}"]])
            parts[f"side_{kind}"] = side if kind == "bias" else side[:, columns]
            for n in range(self._experts):
                first = given[f"experts.{n}.0.{kind}"]
                parts[f"first{n}_{kind}"] = first if kind == "bias" else first[:, columns]
                parts[f"second{n}_{kind}"] = given[f"experts.{n}.3.{kind}"]
            for n in range(self._heads):
                parts[f"third{n}_{kind}"] = given[f"towers.{n}.0.{kind}"]
                parts[f"last{n}_{kind}"] = given[f"towers.{n}.2.{kind}"]
        parts |= {"slope": ranker.platt[0], "offset": ranker.prior * ranker.platt[0] + ranker.platt[1]}
        for name, value in parts.items():
            self.register_buffer(name, value.detach().clone())

    def _layer(self, name: str, values: Tensor) -> Tensor:
        return F.linear(values, self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias"))

    def _read(self, features: Tensor) -> Tensor:
        """The columns that are not constant, standardised and clipped."""
        if self.runs != (0, self._features):
            features = torch.cat([features[:, a:b] for a, b in zip(self.runs[::2], self.runs[1::2], strict=True)], dim=1)
        return ((features - self.get_buffer("mean")) / self.get_buffer("scale")).clamp(-5, 5)

    def forward(self, features: Tensor) -> Tensor:
        """Calibrated probability per head."""
        read = self._read(features)
        hidden = [F.gelu(self._layer(f"first{n}", read)) for n in range(self._experts)]
        experts = [F.gelu(self._layer(f"second{n}", part)) for n, part in enumerate(hidden)]
        *gates, linear = torch.split(self._layer("side", read), [self._experts] * self._heads + [self._heads], dim=1)
        outs = []
        for n, gate in enumerate(gates):
            weights = torch.split(torch.softmax(gate, dim=-1), 1, dim=1)
            mixed = weights[0] * experts[0]
            for weight, expert in zip(weights[1:], experts[1:], strict=True):
                mixed = mixed + weight * expert
            outs.append(self._layer(f"last{n}", F.gelu(self._layer(f"third{n}", mixed))))
        logits = torch.cat(outs, dim=1) + linear
        return torch.sigmoid(logits * self.get_buffer("slope") + self.get_buffer("offset"))
