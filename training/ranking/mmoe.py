"""The multi-gate mixture of experts (Ma et al., KDD 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.ranking.base import Ranker
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
