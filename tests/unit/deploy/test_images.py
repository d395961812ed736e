"""The container images are complete: their copied files alone suffice for their commands, in this interpreter."""

from __future__ import annotations

import fnmatch
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
LISTS = ("serve", "ranking-gpu", "train")
"Lists of packages of which `docker/build` makes images."


def recipe() -> list[tuple[str, str]]:
    """The steps of the Dockerfile, each on one line."""
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.split()[0], re.sub(r"\s+", " ", line.split(maxsplit=1)[1])) for line in lines if line]


def copied(into: Path) -> dict[str, str]:
    """Execute the COPY lines of files of the repository; returns the environment that the image sets."""
    environment: dict[str, str] = {}
    for verb, rest in recipe():
        if verb == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                at = (
                    into / target.removeprefix("/opt/riffle/") / (source if target == "./" else "")
                    if target != source
                    else into / source
                )
                at.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, at, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    at.mkdir(exist_ok=True) if target.endswith("bin/") else None
                    shutil.copy(ROOT / source, at)
        elif verb == "ENV":
            environment |= dict(part.split("=", 1) for part in rest.split())
    return environment


def run(into: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(into), "PYTHONSAFEPATH": "1"}
    return subprocess.run([sys.executable, *command], cwd=into, env=environment, capture_output=True, text=True, check=False)


def test_nothing_of_the_current_folder_is_imported() -> None:
    assert ("ENV", "PYTHONSAFEPATH=1") in recipe()


@pytest.mark.parametrize("name", [*LISTS, "sbom"])
def test_packages_are_pinned_with_hashes(name: str) -> None:
    pinned = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    assert pinned.count("--hash=sha256:") >= len(re.findall(r"^[a-z0-9].*==", pinned, re.MULTILINE)) > 0
    installs = [rest for verb, rest in recipe() if verb == "RUN" and "pip install" in rest]
    assert all("--require-hashes" in install for install in installs)
    listed = {found for install in installs for found in re.findall(r"-r requirements/(\S+)\.txt", install)}
    assert listed == {"${LIST}", "sbom"}


def test_the_last_stage_installs_nothing_and_nothing_runs_as_root() -> None:
    steps = recipe()
    last = max(n for n, (verb, _) in enumerate(steps) if verb == "FROM")
    made = [rest for verb, rest in steps[last:] if verb == "RUN"]
    assert [re.match(r"useradd .*--uid 10001 ", rest) is not None for rest in made] == [True]
    assert [rest for verb, rest in steps if verb == "USER"] == ["10001"]


def test_both_stages_stand_on_a_base_that_can_be_chosen_and_must_have_the_right_python() -> None:
    steps = recipe()
    assert steps[0] == ("ARG", "BASE=python:3.11-slim")
    assert [rest.split()[0] for verb, rest in steps if verb == "FROM"] == ["${BASE}"] * 2
    check = next(rest for verb, rest in steps if verb == "RUN" and "version_info" in rest)
    assert steps.index(("RUN", check)) < next(n for n, (_, rest) in enumerate(steps) if "pip install" in rest)
    program = re.fullmatch(r'python -c "([^"]+)"', check)
    assert program is not None
    this = program[1].replace("(3, 11)", f"({sys.version_info[0]}, {sys.version_info[1]})")
    assert subprocess.run([sys.executable, "-c", this], check=False).returncode == 0
    other = program[1].replace("(3, 11)", "(3, 10)")
    refused = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
    assert (refused.returncode, "Python 3.11" in refused.stderr) == (1, True)


def test_loops_are_compiled_for_the_processor_for_which_they_are_looked_up() -> None:
    """Numba's cache counts only for the processor that it was made for. Both stages name it by the same arguments."""
    steps = recipe()
    arguments = [rest for verb, rest in steps if verb == "ARG" and rest.startswith("CPU")]
    assert len(arguments) == 4
    assert arguments[:2] == arguments[2:]
    (warmed,) = [rest for verb, rest in steps if verb == "RUN" and "models.warm" in rest]
    environment = {name for verb, rest in steps if verb == "ENV" for name in rest.split() if name.startswith("NUMBA_CPU")}
    assert environment == {"NUMBA_CPU_NAME=${CPU}", "NUMBA_CPU_FEATURES=${CPU_FEATURES}"}
    assert all(name in warmed for name in environment)


def test_a_worker_imports_only_what_the_image_holds_and_neither_torch_nor_the_embedded_servers(tmp_path: Path) -> None:
    environment = copied(tmp_path)
    assert environment["PYTHONPATH"] == "/opt/riffle"
    assert ("CMD", json.dumps(["python", "-m", "agents.worker"])) in recipe()
    removed = re.search(
        r"pip uninstall --yes (.*?) *$", next(rest for verb, rest in recipe() if "pip uninstall --yes j" in rest)
    )
    assert removed is not None
    unwanted = ["torch", *removed[1].split()]
    look = (
        f"import agents.worker, agents.cli.doctor, sys; print(agents.worker.__file__, *sys.modules.keys() & {set(unwanted)!r})"
    )
    held = run(tmp_path, "-c", look)
    assert held.stdout.split() == [str(tmp_path / "agents" / "worker.py")], held.stderr
    for name in ("serve", "ranking-gpu"):
        assert "torch==" not in (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")


def test_the_training_image_runs_what_is_launched_and_the_commands_of_the_schedule(tmp_path: Path) -> None:
    copied(tmp_path)
    helped = run(tmp_path, "-m", COMMAND[2], "train", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "Train a release" in helped.stdout
    program = re.search(r'exec python -c "([^"]+)"', (tmp_path / "bin" / "riffle").read_text(encoding="utf-8"))
    assert program is not None
    listed = run(tmp_path, "-c", program.group(1), "--help")
    assert listed.returncode == 0, listed.stderr
    assert {"train", "evaluate", "release"} <= set(listed.stdout.split())


def test_the_bill_of_materials_gets_the_installed_packages_of_debian(tmp_path: Path) -> None:
    """What `dpkg-query` prints, of which a package that was removed keeps a line."""
    (tmp_path / "dpkg-query").write_text(
        "#!/bin/sh\nprintf 'libc6\\t2.36-9\\tamd64\\tinstalled\\nold\\t1\\tall\\tconfig-files\\n'\n", encoding="utf-8"
    )
    (tmp_path / "dpkg-query").chmod(0o755)
    bill = tmp_path / "sbom.json"
    bill.write_text(json.dumps({"components": [{"name": "numpy"}]}), encoding="utf-8")
    command = [sys.executable, str(ROOT / "docker" / "materials.py"), str(bill)]
    subprocess.run(command, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True)
    debian = {"type": "library", "name": "libc6", "version": "2.36-9", "purl": "pkg:deb/debian/libc6@2.36-9?arch=amd64"}
    assert json.loads(bill.read_text(encoding="utf-8"))["components"] == [{"name": "numpy"}, debian]


def test_what_is_copied_is_not_ignored() -> None:
    lines = (ROOT / "docker" / "ignored").read_text(encoding="utf-8").split()
    kept = [line[1:] for line in lines if line.startswith("!")]
    for verb, rest in recipe():
        if verb == "COPY" and not rest.startswith("--from"):
            assert all(any(fnmatch.fnmatch(source, pattern) for pattern in kept) for source in rest.split()[:-1]), rest


def test_the_entrypoint_seeds_a_folder_that_any_user_can_write(tmp_path: Path) -> None:
    """The copied loops are in NUMBA_CACHE_DIR, and the command's arguments and status are its own."""
    script = (
        (ROOT / "docker" / "entrypoint").read_text(encoding="utf-8").replace("/opt/riffle/compiled", str(tmp_path / "built"))
    )
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "loop.nbi").touch()
    (tmp_path / "entrypoint").write_text(script, encoding="utf-8")
    command = ["sh", str(tmp_path / "entrypoint"), "sh", "-c", 'ls "$NUMBA_CACHE_DIR"; echo "$1"; exit 3', "", "a b"]
    into = {"PATH": os.environ["PATH"], "NUMBA_CACHE_DIR": str(tmp_path / "cache" / "loops")}
    ran = subprocess.run(command, env=into, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (3, "loop.nbi\na b\n")
    refused = subprocess.run(
        command, env={**into, "NUMBA_CACHE_DIR": "/proc/loops"}, capture_output=True, text=True, check=False
    )
    assert (refused.returncode, "mount a writable folder" in refused.stderr) == (78, True)
