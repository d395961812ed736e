"""The learning rate, for trainings of any length."""

from __future__ import annotations

import pytest
import torch

from training.loop.schedule import one_cycle


@pytest.mark.parametrize("steps", range(1, 41))
def test_it_rises_and_falls_whatever_the_number_of_steps(steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = one_cycle(optimizer, 0.5, steps), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < steps:
            schedule.step()
    assert all(0 < rate <= 0.5 + 1e-9 for rate in rates)
    assert rates[-1] == min(rates)
    assert steps < 20 or max(rates) == pytest.approx(0.5, rel=0.1)
