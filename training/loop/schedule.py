"""The learning rate over a training: up for a tenth of the steps, then down (Smith & Topin 2018)."""

from __future__ import annotations

import torch

__all__ = ["one_cycle"]

RISE = 0.1


def one_cycle(optimizer: torch.optim.Optimizer, rate: float, steps: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """The schedule of a training of `steps` steps, at least 1, with `rate` at its highest."""
    # a rise that ends with the very first step would divide by its length of 0
    rise = 2 * RISE if steps * RISE == 1.0 else RISE
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=rise)
