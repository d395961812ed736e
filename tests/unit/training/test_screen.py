"""Terminal output of the training commands."""

from __future__ import annotations

from training.cli.shared import _lines


def test_every_figure_is_on_a_line_of_its_own_below_what_it_belongs_to() -> None:
    facts = {
        "ndcg@10": 0.08204,
        "stages": {"ranked": 0.5, "lost": {}},
        "interval": (0.1, 0.25, 0.3),
        "n": 3,
        "apart": 1.79e-07,
        "bins": [[1.0, 2.0]],
    }
    assert [line.split() for line in _lines(facts)] == [
        ["ndcg@10", "0.08204"],
        ["stages"],
        ["ranked", "0.5"],
        ["lost", "{}"],
        ["interval", "0.1", "0.25", "0.3"],
        ["n", "3"],
        ["apart", "1.79e-07"],
        ["bins", "1", "values", "(--json", "shows", "them)"],
    ]
    assert [len(line) - len(line.lstrip()) for line in _lines(facts)] == [0, 0, 2, 2, 0, 0, 0, 0]


def test_figures_are_spelled_as_in_json() -> None:
    assert list(_lines({"passed": True, "ndcg@10": None, "parts": [None, 0.5]})) == [
        "passed                       true",
        "ndcg@10                      null",
        "parts                        null  0.5",
    ]
