"""Container images are complete: their copied files alone suffice for their commands, in this interpreter."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from training.launch.job import COMMAND

ROOT = Path(__file__).parents[3]


def recipe(name: str) -> list[tuple[str, str]]:
    lines = (ROOT / "docker" / name).read_text(encoding="utf-8").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line and not line.startswith("#")]


def copied(name: str, into: Path) -> dict[str, str]:
    """Execute the COPY lines of the Dockerfile; returns the environment that it sets."""
    environment: dict[str, str] = {}
    for verb, rest in recipe(name):
        if verb == "COPY":
            *sources, target = rest.split()
            for source in sources:
                at = into / target / (source if target.endswith("/") else "") if target != source else into / source
                at.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, at, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copyfile(ROOT / source, at)
        elif verb == "ENV":
            environment |= dict(part.split("=", 1) for part in rest.split())
    return environment


def run(into: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(into), "PYTHONSAFEPATH": "1"}
    return subprocess.run([sys.executable, *command], cwd=into, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["Dockerfile.worker", "Dockerfile.train"])
def test_nothing_of_the_current_folder_is_imported(name: str) -> None:
    assert ("ENV", "PYTHONSAFEPATH=1") in recipe(name)


@pytest.mark.parametrize("name", ["Dockerfile.worker", "Dockerfile.train"])
def test_dependencies_are_pinned_with_hashes_and_nothing_runs_as_root(name: str) -> None:
    steps = recipe(name)
    installs = [rest for verb, rest in steps if verb == "RUN" and "pip install" in rest]
    assert len(installs) == 1
    assert "--require-hashes" in installs[0]
    (listed,) = re.findall(r"-r (\S+)", installs[0])
    pinned = (ROOT / listed).read_text(encoding="utf-8")
    assert pinned.count("--hash=sha256:") >= len(re.findall(r"^[a-z0-9].*==", pinned, re.MULTILINE)) > 0
    assert [rest for verb, rest in steps if verb == "USER"] == ["10001"]


def test_training_stands_on_a_base_that_can_be_chosen() -> None:
    """The default is Python's image, as for the worker. Machines with a special network need another; its Python must match."""
    steps = recipe("Dockerfile.train")
    assert steps[:2] == [("ARG", f"BASE={dict(recipe('Dockerfile.worker'))['FROM']}"), ("FROM", "${BASE}")]
    check = next(rest for verb, rest in steps if verb == "RUN" and "version_info" in rest)
    assert steps.index(("RUN", check)) < next(n for n, (_, rest) in enumerate(steps) if "pip install" in rest)
    program = re.fullmatch(r'python -c "([^"]+)"', check)
    assert program is not None
    this = program[1].replace("(3, 11)", f"({sys.version_info[0]}, {sys.version_info[1]})")
    assert subprocess.run([sys.executable, "-c", this], check=False).returncode == 0
    other = program[1].replace("(3, 11)", "(3, 10)")
    refused = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
    assert (refused.returncode, "Python 3.11" in refused.stderr) == (1, True)


def test_the_worker_image_holds_what_a_worker_imports_and_no_torch(tmp_path: Path) -> None:
    environment = copied("Dockerfile.worker", tmp_path)
    assert environment["PYTHONPATH"] == "/opt/riffle"
    (command,) = [json.loads(rest) for verb, rest in recipe("Dockerfile.worker") if verb == "CMD"]
    assert command == ["python", "-m", "agents.worker"]
    held = run(tmp_path, "-c", "import agents.worker, sys; print(agents.worker.__file__, 'torch' in sys.modules)")
    assert held.stdout.split() == [str(tmp_path / "agents" / "worker.py"), "False"], held.stderr
    assert "torch==" not in (ROOT / "requirements" / "serve.txt").read_text(encoding="utf-8")


def test_the_training_image_runs_what_is_launched_and_the_commands_of_the_schedule(tmp_path: Path) -> None:
    copied("Dockerfile.train", tmp_path)
    helped = run(tmp_path, "-m", COMMAND[2], "train", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "Train a release" in helped.stdout
    shim = next(rest for verb, rest in recipe("Dockerfile.train") if verb == "RUN" and "/usr/local/bin/riffle" in rest)
    program = re.search(r'exec python -c "([^"]+)"', shim)
    assert program is not None
    listed = run(tmp_path, "-c", program.group(1), "--help")
    assert listed.returncode == 0, listed.stderr
    assert {"train", "evaluate", "release"} <= set(listed.stdout.split())
