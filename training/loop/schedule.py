"""Learning-rate schedule: rises for a tenth of the steps, then falls (Smith & Topin 2018)."""

from __future__ import annotations

import torch

__all__ = ["one_cycle"]

RISE = 0.1


def one_cycle(optimizer: torch.optim.Optimizer, rate: float, steps: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """Make the schedule of a training of `steps` steps, at least 1, with maximum `rate`."""
    # a rise that ended at the first step would have length 0 and cause a division by zero
    rise = 2 * RISE if steps * RISE == 1.0 else RISE
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=rise)
