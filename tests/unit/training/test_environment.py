"""The environment is read only in a few listed modules."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from schemas.errors import ConfigError
from training.environment import Launch, TrainingSettings, processes_here

ROOT = Path(__file__).resolve().parents[3]
PLACES = {
    "schemas/settings.py",
    "training/environment.py",
    "models/release/tracking.py",
    "training/launch/__main__.py",  # passes it on to torchrun
}


def reads(tree: ast.AST) -> bool:
    """Return whether a module reads variables from the environment; setting a library's variable does not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "envvar":
            return True
        if isinstance(node, ast.Attribute) and node.attr == "getenv":
            return True
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "environ"]
    set_ = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setdefault"
    ]
    return len(used) > sum(isinstance(node.func.value, ast.Attribute) for node in set_ if isinstance(node.func, ast.Attribute))


def test_training_and_models_read_the_environment_in_one_place_each() -> None:
    files = [file for package in ("schemas", "models", "training") for file in (ROOT / package).rglob("*.py")]
    found = {file.relative_to(ROOT).as_posix() for file in files if reads(ast.parse(file.read_text(encoding="utf-8")))}
    assert found == PLACES


def test_options_are_what_the_variables_say() -> None:
    given = {"RIFFLE_HOME": "h", "RIFFLE_TEXT_MODEL": "m", "RIFFLE_IMAGE_HOSTS": "off"}
    assert TrainingSettings.from_env(given) == TrainingSettings("h", "m", "off")
    assert TrainingSettings.from_env({}) == TrainingSettings() == TrainingSettings.from_env(dict.fromkeys(given, ""))


def test_a_group_is_what_torchrun_says() -> None:
    assert Launch.from_env({"WORLD_SIZE": "1", "LOCAL_RANK": "odd"}) == Launch()
    assert Launch.from_env({"WORLD_SIZE": "4", "LOCAL_RANK": "3"}) == Launch(4, 3)
    assert Launch.from_env({"WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "5"}).life == "5"
    for name, text in (("WORLD_SIZE", "0"), ("WORLD_SIZE", "two"), ("LOCAL_RANK", "-1")):
        with pytest.raises(ConfigError, match=name):
            Launch.from_env({"WORLD_SIZE": "2", name: text})
    assert processes_here({}) == 1
    with pytest.raises(ConfigError, match="LOCAL_WORLD_SIZE"):
        processes_here({"LOCAL_WORLD_SIZE": "0"})
