"""Options of the training commands reach their settings."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from training.cli.evaluate import EvaluateOptions, evaluate_command
from training.cli.options import LEARNING, LearningOptions, gathered
from training.cli.shared import checked_settings
from training.cli.train import TrainOptions, train_command
from training.cli.tune import TuneOptions, tune_command
from training.recipe import LearnSettings, RankerSettings, TowerSettings

STANDARD = LearnSettings()


def settings_of(*named: str) -> LearnSettings:
    found: list[LearnSettings] = []

    @click.command()
    @click.argument("source")
    @gathered(LearningOptions, *LEARNING)
    def command(options: LearningOptions) -> None:
        found.append(checked_settings(options))

    assert CliRunner().invoke(command, ["data", *named], env={"RIFFLE_TEXT_MODEL": ""}).exit_code == 0
    return found[0]


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        ((), STANDARD),
        (("--ranker", "deepfm"), replace(STANDARD, ranker=RankerSettings(kind="deepfm"))),
        (("--checkpoints", "there"), replace(STANDARD, checkpoints="there")),
        (("--image-hosts", "off"), replace(STANDARD, image_hosts="off")),
        (("--text-model", "mine"), replace(STANDARD, text_model="mine")),
        (("--fp16",), replace(STANDARD, half=True)),
        (("--quick",), replace(STANDARD, towers=TowerSettings(epochs=3), queries=1_500)),
        (("--seed", "7"), replace(STANDARD, seed=7, towers=TowerSettings(seed=7), ranker=RankerSettings(seed=7))),
    ],
)
def test_an_option_changes_its_setting_and_no_other(named: tuple[str, ...], wanted: LearnSettings) -> None:
    assert settings_of(*named) == wanted


def test_a_settings_file_is_read_and_a_single_option_goes_before_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(
        '{"ease_l2": 7.0, "unlearned_share": 0.2, "towers": {"unmet": 0.3}, "ranker": {"kind": "deepfm", "width": 8}}'
    )
    found = settings_of("--settings", str(file), "--ranker", "mmoe")
    assert (found.ease_l2, found.unlearned_share, found.towers.unmet) == (7.0, 0.2, 0.3)
    assert found.ranker == RankerSettings(kind="mmoe", width=8)


@pytest.mark.parametrize(
    ("command", "kind"),
    [(train_command, TrainOptions), (evaluate_command, EvaluateOptions), (tune_command, TuneOptions)],
)
def test_a_command_has_a_field_for_each_of_its_parameters(command: click.Command, kind: type) -> None:
    assert sorted(field.name for field in fields(kind)) == sorted(str(parameter.name) for parameter in command.params)
