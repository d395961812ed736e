"""A release passes the gate when everything is as it must be, and each thing that is not is told with its figure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from learning_corpus import corpus

from models.release import Release
from training.evaluate import Asked, Figures, World
from training.gate import HALF, STANDARD, judge
from training.learn import Learned
from training.parity import Modules, Parity, in_parity
from training.probe import Probed

HELD = Parity(worst=2e-7, differing=0, swapped=3, requests=1_000, rank_p99_ms=4.0, candidates=300)
NONE = np.zeros(0, np.int32)


def figures(ranks: list[int], people: int = 0) -> Figures:
    found = Figures(ranks=ranks)
    for n in range(len(ranks) if people else 0):
        probed = Probed(ranks[n], "ranked", [], 0, 0, NONE, NONE, np.zeros((0, 0), np.float32))
        none = np.zeros(0, np.bool_)
        found.asked.append(Asked(f"u{n % people}", "i", probed, False, False, (), none, 0, none.reshape(0, 0)))
    return found


def test_each_refusal_says_why_and_by_how_much() -> None:
    rng = np.random.default_rng(0)
    weak, strong = figures(rng.integers(0, 60, 400).tolist(), 40), figures(rng.integers(0, 15, 400).tolist(), 40)
    passed = judge(strong, weak, 1e-7, HELD, 20.0)
    assert passed.passed
    assert passed.to_json()["parity"]["requests"] == 1_000
    for change, word in (
        ({"worst": 3e-4}, "3.0e-04"),
        ({"differing": 2}, "2 of 1000 requests"),
        ({"rank_p99_ms": 181.25}, "181.2 ms"),
    ):
        verdict = judge(strong, weak, 1e-7, replace(HELD, **change), 20.0)
        assert not verdict.passed
        assert [word in reason for reason in verdict.reasons] == [True], verdict.reasons
    assert "5,000.0 MB" in judge(strong, weak, 0.0, HELD, 5_000.0).reasons[0]
    everything = judge(weak, weak, 1.0, replace(HELD, differing=1, rank_p99_ms=1e3), 1e6)
    assert len(everything.reasons) == 5
    assert judge(strong, weak, 1e-3, replace(HELD, worst=1e-3, differing=9), 20.0, HALF).passed
    assert not judge(strong, weak, float("nan"), HELD, 20.0).passed, "what was not measured is not fine"


def test_many_queries_of_few_people_are_not_many_proofs() -> None:
    """One person with a hundred better answers among ten who are as before proves little."""
    worse = [30] * 600
    better = [0 if n % 10 == 0 else 30 for n in range(600)]
    one_by_one = judge(figures(better), figures(worse), 0.0)
    by_person = judge(figures(better, 10), figures(worse, 10), 0.0, bounds=replace(STANDARD, level=0.95))
    assert one_by_one.difference_low > by_person.difference_low
    assert one_by_one.passed
    assert not by_person.passed


def asked_world(learned: Learned) -> tuple[World, Release, list[str]]:
    items, events = corpus()
    world = World(items)
    world.apply(events[:600])
    return world, learned.release(), sorted({event.user_id for event in events[:600]})


def test_an_exported_release_answers_as_torch_does(learned: Learned) -> None:
    world, release, people = asked_world(learned)
    assert learned.modules is not None
    found = in_parity(world, release, learned.modules, people, 80)
    assert found.requests == 80
    assert found.candidates > 10
    assert found.worst <= 1e-4
    assert found.differing == 0
    assert found.rank_p99_ms > 0


def test_a_release_whose_graphs_are_of_other_weights_is_found_out(learned: Learned) -> None:
    world, release, people = asked_world(learned)
    assert learned.modules is not None
    ranker = learned.modules.ranker
    kept = {name: value.clone() for name, value in ranker.state_dict().items()}
    try:
        with torch.no_grad():
            for value in ranker.parameters():
                value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        found = in_parity(world, release, Modules(learned.modules.user, learned.modules.item, ranker), people, 30)
    finally:
        ranker.load_state_dict(kept)
    assert found.worst > 1e-4
    assert found.differing > 0
