"""`riffle train`: the folder may stand anywhere among the options of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agents.cli import release
from schemas.settings import Settings
from training.cli.train import train_command

OPTIONS = (
    ("--quick",),
    ("--positive", "action == 'like'"),
    ("--positive=value > 3",),
    ("--seed", "7"),
    ("--incremental",),
    ("--promote",),
    ("--against", "none"),
    ("--against=none",),
)


def trained_with(arguments: list[str]) -> dict[str, Any]:
    """Parameters of the training that `riffle train` starts with these arguments."""
    asked: list[list[str]] = []

    def record(_: Settings, options: list[str]) -> dict[str, Any]:
        asked.append(options)
        return {"skipped": "nothing_new"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release, "run_training", record)
        patch.setattr(release, "readiness", lambda _: {"ready": False, "release": None})
        patch.setattr(release, "_at_hand", lambda _: "the-champion")
        done = CliRunner().invoke(release.train, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (options,) = asked
    return dict(train_command.make_context("train", options).params)


@given(st.lists(st.sampled_from(OPTIONS), unique_by=lambda option: option[0].partition("=")[0]), st.data())
def test_the_folder_may_stand_anywhere_and_no_option_is_lost(options: list[tuple[str, ...]], data: st.DataObject) -> None:
    place = data.draw(st.none() | st.integers(0, len(options)))
    parts = options if place is None else [*options[:place], ("my-dataset",), *options[place:]]
    found = trained_with([argument for part in parts for argument in part])
    assert found["source"] == ("my-dataset" if place is not None else Settings.from_env().archive_target)
    given_options = {option[0].partition("=")[0]: option for option in options}
    assert found["quick"] == ("--quick" in given_options)
    assert found["incremental"] == ("--incremental" in given_options)
    assert found["seed"] == (7 if "--seed" in given_options else train_command.make_context("train", ["x"]).params["seed"])
    rule = given_options.get("--positive", ("--positive", None))
    assert found["positive"] == ("value > 3" if len(rule) == 1 else rule[1])
    compared = "--promote" in given_options and "--against" not in given_options
    assert found["against"] == ("the-champion" if compared else "none")
    assert found["follow"] == compared, "only the champion may change meanwhile"


def test_the_usage_of_a_wrong_option_is_that_of_training(tmp_path: Path) -> None:
    assert release._given([str(tmp_path), "--bogus"]) == set(), "training refuses the arguments as they were given"
