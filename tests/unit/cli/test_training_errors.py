"""Errors in a rule, a setting or the data are reported before torch is loaded, with a remedy."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from small_shop import POSITIVE, shop, write_shop

import agents
import training
from agents.cli import release
from schemas.settings import Settings
from training.data.amounts import FEWEST_EVENTS
from training.evaluation.bounds import STANDARD

PROGRAM = """
import json, sys
from click.testing import CliRunner
from training.cli.evaluate import evaluate_command
from training.cli.train import train_command
from training.cli.tune import tune_command
commands = {"train": train_command, "evaluate": evaluate_command, "tune": tune_command}
for name, *options in json.loads(sys.argv[1]):
    ran = CliRunner().invoke(commands[name], options)
    message = getattr(ran.exception, "message", ran.output)
    print(json.dumps([message, sorted({"torch", "transformers", "optuna"} & set(sys.modules))]))
"""


def errors(tmp_path: Path, *lines: list[str]) -> list[str]:
    """Return the errors of these commands, run in one process; none of them may load torch."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(lines)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [loaded for _, loaded in found] == [[] for _ in lines]
    return [message for message, _ in found]


def test_what_is_wrong_is_found_before_torch_is_loaded(tmp_path: Path) -> None:
    items, events = shop()
    good = str(write_shop(tmp_path / "good", items, events))
    few = str(write_shop(tmp_path / "few", items, events[: FEWEST_EVENTS - 10]))
    people = str(write_shop(tmp_path / "people", items, [e for e in events if int(e.user_id[1:]) < STANDARD.last - 1]))
    empty = write_shop(tmp_path / "empty", items, events)
    header = (empty / "events.csv").read_text().splitlines()[0]
    (empty / "events.csv").write_text(header + "\n")
    settings = {"layers": {"towers": {"layers": 2}}, "heads": {"heads": {"buy": 1}}, "windows": {"windows_s": {"buy": 60}}}
    for name, content in settings.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    expected = {
        ("train", good, "--positive", "acton == 1"): "there is no column acton; a rule may use action and value",
        ("evaluate", good, "--positive", "acton == 1"): "there is no column acton",
        ("tune", good, "--positive", "acton == 1"): "there is no column acton",
        ("train", good, "--positive", "action = 1"): "--positive rule 'action = 1' cannot be read",
        ("train", good, "--positive", "action == 'lik'"): "liked by the rule \"action == 'lik'\"; their actions are view (",
        ("evaluate", good, "--positive", "action == 'lik'"): "there are no queries: none of the",
        ("train", str(empty)): "events.csv holds no rows",
        ("evaluate", str(empty)): "events.csv holds no rows",
        ("train", few): f"{FEWEST_EVENTS - 10} events on items of the catalogue, {FEWEST_EVENTS} are needed",
        ("train", people): f"{STANDARD.last - 1} users liked something after their first event, {STANDARD.last} are needed",
        ("train", good, "--settings", str(tmp_path / "layers.json")): "layers.json: there is no setting 'towers.layers'",
        ("train", good, "--settings", str(tmp_path / "heads.json")): "heads.json: heads.buy: no frequent action has this name",
        ("tune", good, "--settings", str(tmp_path / "windows.json")): "windows.json: windows_s.buy: no frequent action",
        ("train", good, "--newest", "1_000"): "must be a whole number, is '1_000'",
        ("train", good, "--holdout", "nan"): "must be a finite number, is 'nan'",
        ("evaluate", good, "--share", "1e-1_0"): "must be a finite number, is '1e-1_0'",
        ("tune", good, "--trials", "٣"): "must be a whole number, is '٣'",
        ("train", good, "--incremental"): "there is no release to update: train without --incremental",
        ("train", str(tmp_path / "nowhere")): "neither a dataset folder nor an archive",
    }
    found = errors(tmp_path, *map(list, expected))
    for line, (message, wanted) in zip(expected, zip(found, expected.values(), strict=True), strict=True):
        assert wanted in message, line


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ('{"towers": {"epochs": 2.5}}', "towers.epochs must be a whole number from 1 to 1000, is 2.5"),
        ('{"towers": {"epochs": "3"}}', "towers.epochs must be a whole number from 1 to 1000, is '3'"),
        ('{"towers": {"rate": NaN}}', "NaN is not a number in JSON"),
        ('{"ease_l2": 1e400}', "ease_l2 must be a number from 0.001 to 1e+09, is Infinity"),
        (f'{{"ease_l2": 1{"0" * 400}}}', "ease_l2 must be a number"),
        ('{"seed": 1, "seed": 2}', "'seed' appears twice"),
        ('{"heads": {"like": true}}', "heads.like must be a number from -1000 to 1000, is true"),
        ('{"heads": [1]}', "heads must be an object of numbers by action"),
        ('{"half": 1}', "half must be true or false, is 1"),
        ('{"windows_s": {"like": -1}}', "windows_s.like must be a number from 0.001"),
        ("[]", "the whole must be an object, is []"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(tmp_path: Path, content: str, wanted: str) -> None:
    from schemas.errors import ConfigError
    from training.recipe import LearnSettings
    from training.settings_file import read_settings

    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(ConfigError) as refused:
        read_settings(tmp_path / "mine.json", LearnSettings())
    assert str(tmp_path / "mine.json") in refused.value.message
    assert wanted in refused.value.message


def test_help_names_the_least_that_is_needed() -> None:
    from training.cli.train import train_command

    amounts = (
        f"{FEWEST_EVENTS} events",
        f"{STANDARD.queries} first interactions with liked items by {STANDARD.people} users",
        f"{STANDARD.last} users",
    )
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    for text in (_words(release.train), _words(train_command), " ".join(readme.split())):
        for amount in amounts:
            assert amount in text


def _words(command: click.Command) -> str:
    return " ".join(command.get_help(click.Context(command)).split())


def test_no_message_offers_force() -> None:
    """No message invites operators to force a release that the gate refused; only `--help` names the option."""
    for package in (agents, training):
        assert package.__file__ is not None
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "--force" in node.value:
                    assert node.value == "--force", f"{path.name}:{node.lineno}"


def test_a_training_that_is_killed_is_said_to_be_and_one_that_reported_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(home=tmp_path)
    crash = "import sys; sys.exit(3)"
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    for program, wanted in ((killed, "ended by SIGKILL, usually because memory ran out: --newest N"), (crash, "status 3")):
        monkeypatch.setattr(release, "TRAIN", program)
        with pytest.raises(SystemExit) as ended:
            release.run_training(settings, ["nowhere"])
        assert ended.value.code != 0
        assert wanted in capfd.readouterr().err
    monkeypatch.undo()
    with pytest.raises(SystemExit):
        release.run_training(settings, [str(tmp_path / "nowhere")])
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("riffle: ")
    assert "neither a dataset folder nor an archive" in line


def test_too_little_is_told_to_who_can_go_on_without_a_release(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    items, events = shop(n_people=3)
    folder = write_shop(tmp_path / "shop", items, events)
    options = [str(folder), "--positive", POSITIVE]
    found = release.try_training(Settings(home=tmp_path / "home"), options)
    assert found["error"]["code"] in release.TOO_LITTLE
    assert len(capfd.readouterr().err.splitlines()) == 1
    with pytest.raises(SystemExit):
        release.try_training(Settings(home=tmp_path / "home"), [str(folder), "--positive", "acton == 1"])
