"""`make setup` finds an interpreter, replaces an unusable environment, and names missing parts in one sentence.

The interpreters are scripts on a separate PATH that start this one; their differences are set at the start.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RUNS = f"{sys.version_info[0]}.{sys.version_info[1]}"
OTHER = "3.12" if RUNS != "3.12" else "3.13"


def interpreter(folder: Path, name: str, version: str = RUNS, without: str = "") -> str:
    """Create a program `name` in the folder: this interpreter, which reports `version` and cannot import `without`."""
    changes = folder / f"{name}-changes"
    changes.mkdir(parents=True)
    numbers = (*map(int, version.split(".")), 0)
    (changes / "sitecustomize.py").write_text(f"import sys\nsys.version_info = {numbers}\n" if version != RUNS else "")
    if without:
        (changes / f"{without}.py").write_text("raise ImportError")
    return program(folder, name, f'PYTHONPATH="{changes}" exec "{sys.executable}" "$@"')


def program(folder: Path, name: str, line: str) -> str:
    at = folder / name
    at.write_text(f"#!/bin/sh\n{line}\n")
    at.chmod(0o755)
    return str(at)


def find(path: Path | str, *wanted: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "requirements" / "find-python"), *wanted]
    return subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True, check=False)


def sentence(ran: subprocess.CompletedProcess[str]) -> str:
    """Return the only sentence of a failed search."""
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.fullmatch(r"Riffle.+\.\n", ran.stderr)
    return ran.stderr


def test_without_a_python_the_sentence_says_so(tmp_path: Path) -> None:
    assert "no python3 is on the PATH: install one" in sentence(find(tmp_path))
    assert "no python3 is on the PATH: install one" in sentence(find(""))


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.14"])
def test_a_python_of_another_version_is_named(tmp_path: Path, version: str) -> None:
    found = interpreter(tmp_path, "python3", version)
    assert f"but {found} is CPython {version}: install one" in sentence(find(tmp_path))
    assert f"but {found} is CPython {version}: install one" in sentence(find("", found))


def test_each_supported_version_is_taken_and_they_are_those_of_the_package(tmp_path: Path) -> None:
    found = {minor: interpreter(tmp_path, f"python3-{minor}", f"3.{minor}") for minor in range(9, 17)}
    taken = {minor for minor, path in found.items() if find("", path).returncode == 0}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">=3.{min(taken)},<3.{max(taken) + 1}"
    listed = re.findall(r"Python :: 3\.(\d+)", " ".join(project["classifiers"]))
    assert sorted(map(int, listed)) == sorted(taken) == list(range(min(taken), max(taken) + 1))


def test_a_python_without_ensurepip_is_named_with_the_package_that_brings_it(tmp_path: Path) -> None:
    found = interpreter(tmp_path, "python3", without="ensurepip")
    said = sentence(find(tmp_path))
    assert f"{found} has no ensurepip: install python{RUNS}-venv" in said
    assert f"apt install python{RUNS}-venv" in said


def test_a_program_that_is_asked_for_and_is_none_is_named(tmp_path: Path) -> None:
    interpreter(tmp_path, "python3")
    assert "PYTHON=python9 is no program" in sentence(find(tmp_path, "python9"))


def test_what_does_not_run_or_does_not_fit_is_passed_over(tmp_path: Path) -> None:
    program(tmp_path, "python3.11", "exit 127")
    interpreter(tmp_path, "python3.12", without="venv")
    (tmp_path / "python3.13").mkdir()
    fit = interpreter(tmp_path, "python3")
    assert (find(tmp_path).stdout, find(tmp_path).stderr) == (f"{fit}\n", "")


def test_the_lowest_version_comes_first_and_each_folder_is_looked_through(tmp_path: Path) -> None:
    first, second = tmp_path / "a b", tmp_path / "c"
    first.mkdir()
    program(first, "python3.11", "exit 127")
    interpreter(first, "python3.12")
    interpreter(second, "python3")
    lowest = interpreter(second, "python3.11")
    assert find(f"{first}::{second}").stdout == f"{lowest}\n"


def test_the_lists_pin_one_version_of_each_package_by_hashes_and_name_no_index() -> None:
    """A shorter list is a part of the longer ones, so that the tested versions are those that serve."""
    pins: dict[str, set[str]] = {}
    for name in ("uv", "mlflow", "serve", "tracing", "train", "dev", "bench"):
        lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        stated = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        assert all(re.match(r"[a-z0-9][a-z0-9._-]*(\[\S+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", line) for line in stated), name
        assert "://" not in "".join(lines)
        pins[name] = {line.partition(" --hash")[0].strip() for line in stated}
        assert len({pin.partition("==")[0] for pin in pins[name]}) == len(stated), name
    assert pins["serve"] < pins["train"] < pins["dev"] < pins["bench"]
    assert pins["serve"] < pins["tracing"] < pins["dev"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Create a checkout with empty lists and an environment in which they are installed."""
    at = tmp_path / "checkout"
    (at / "requirements").mkdir(parents=True)
    for script in ("setup", "find-python"):
        shutil.copy(ROOT / "requirements" / script, at / "requirements" / script)
    lists = [at / "requirements" / "uv.txt", at / "requirements" / "dev.txt", at / "pyproject.toml"]
    for one in lists:
        one.touch()
        os.utime(one, (1, 1))
    venv.create(at / ".venv", symlinks=True)
    (at / ".venv" / "lib" / f"python{RUNS}" / "site-packages" / "pip").mkdir()
    (at / ".venv" / ".setup").touch()
    return at


def setup(checkout: Path, *wanted: str) -> subprocess.CompletedProcess[str]:
    """Run `setup` with an interpreter that creates environments without pip, so that a new one is recognised by its failure."""
    path = checkout.parent / "bin"
    path.mkdir(exist_ok=True)
    program(path, "python3", f'test "$1 $2" != "-m venv" || set -- "$@" --without-pip; exec "{sys.executable}" "$@"')
    environment = {"PATH": f"{path}:/usr/bin:/bin"}
    for name in ("python3.11", "python3.12", "python3.13"):
        program(path, name, 'exec "${0%/*}/python3" "$@"')
    command = ["requirements/setup", ".venv", *wanted]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def test_an_environment_that_is_set_up_is_left_alone(checkout: Path) -> None:
    for wanted in ((), ("python3",)):
        ran = setup(checkout, *wanted)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    os.utime(checkout / "pyproject.toml", (2**32, 2**32))
    again = setup(checkout)
    assert again.stdout.startswith("Installing Riffle and its packages in .venv, ")


def gone(at: Path) -> None:
    for link in (at / ".venv" / "bin").glob("python*"):
        link.unlink()
        link.symlink_to(at / "gone")


def upgraded(at: Path) -> None:
    config = at / ".venv" / "pyvenv.cfg"
    config.write_text(re.sub(r"version = \S+", "version = 3.10.4", config.read_text()))


def moved(at: Path) -> None:
    config = at / ".venv" / "pyvenv.cfg"
    config.write_text(re.sub(r"(command = .*) /\S+", r"\1 /elsewhere/.venv", config.read_text()))


def halfway(at: Path) -> None:
    (at / ".venv" / "lib" / f"python{RUNS}" / "site-packages" / "pip").rmdir()


@pytest.mark.parametrize(
    ("damage", "because"),
    [
        (gone, "its interpreter does not run"),
        (upgraded, f"its interpreter is now Python {RUNS}"),
        (moved, "it was made in /elsewhere/.venv"),
        (halfway, "it has no pip"),
    ],
)
def test_an_environment_that_cannot_be_used_is_made_anew(checkout: Path, damage: Callable[[Path], None], because: str) -> None:
    damage(checkout)
    ran = setup(checkout)
    assert ran.stdout.splitlines()[0] == f".venv is made anew, because {because}."
    assert not (checkout / ".venv" / ".setup").exists()
    assert subprocess.run([checkout / ".venv" / "bin" / "python", "-c", ""], check=False).returncode == 0


def test_an_environment_of_another_version_than_the_one_asked_for_is_made_anew(checkout: Path, tmp_path: Path) -> None:
    other = interpreter(tmp_path / "other", "python", OTHER)
    ran = setup(checkout, program(tmp_path, "python-other", f'test "$1" != -m && exec "{other}" "$@"'))
    assert ran.stdout == f".venv is made anew, because it is of Python {RUNS}.\n"


@pytest.mark.parametrize("wanted", [(), ("python9",)])
def test_an_environment_is_kept_while_nothing_can_make_it_anew(checkout: Path, wanted: tuple[str, ...]) -> None:
    gone(checkout)
    ran = subprocess.run(
        ["requirements/setup", ".venv", *wanted], cwd=checkout, env={"PATH": ""}, capture_output=True, text=True, check=False
    )
    assert "install one of them" in sentence(ran)
    assert (checkout / ".venv" / ".setup").exists()
