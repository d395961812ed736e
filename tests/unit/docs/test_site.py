"""The documentation's site: its generated pages are current, its links hold, and every page can be reached."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agents.cli import COMMANDS
from agents.cli.commands_page import page as commands_page
from schemas.settings import Settings
from schemas.settings_page import page as settings_page

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"


@pytest.mark.parametrize(
    ("name", "made", "how"),
    [
        ("settings.md", settings_page, "python -m schemas.settings_page > docs/settings.md"),
        ("commands.md", commands_page, "python -m agents.cli.commands_page > docs/commands.md"),
    ],
)
def test_generated_pages_are_current(name: str, made: object, how: str) -> None:
    assert callable(made)
    assert (DOCS / name).read_text(encoding="utf-8") == made(), how


def test_every_setting_and_every_command_is_described() -> None:
    shown = settings_page()
    for variable in Settings().environment():
        assert f"| `{variable}` |" in shown
    for name in COMMANDS:
        assert f"\n## riffle {name}\n" in commands_page()


def built(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(root / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The files of which the site is built."""
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("schemas", "deploy"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".terraform"))
    return tmp_path


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(copied: Path) -> None:
    done = built(copied)
    assert done.returncode == 0, done.stdout + done.stderr
    start = (copied / "site" / "index.html").read_text(encoding="utf-8")
    assert "Two commands" in start
    assert 'src="https://' not in start
    assert 'rel="stylesheet" href="https://' not in start
    for page in ("deploy", "terraform", "changes", "settings", "commands", "decisions", "runbooks/RiffleLag"):
        assert (copied / "site" / page / "index.html").exists()
    assert 'href="../deploy/#' in (copied / "site" / "metrics" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "text"),
    [("docs/limits.md", "[gone](nowhere.md)"), ("README.md", "[gone](docs/interface.md#nowhere)"), ("docs/new.md", "# New")],
)
def test_a_link_that_leads_nowhere_or_a_page_that_nothing_leads_to_is_found(copied: Path, page: str, text: str) -> None:
    with (copied / page).open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")
    assert built(copied).returncode != 0


def test_every_decision_and_runbook_is_listed_on_a_page() -> None:
    for folder in ("decisions", "runbooks"):
        listed = (DOCS / folder / "README.md").read_text(encoding="utf-8")
        missing = [file.name for file in (DOCS / folder).glob("*.md") if file.name != "README.md" and file.name not in listed]
        assert missing == []


def test_the_navigation_names_each_page_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page for part in yaml.safe_load(text)["nav"] for page in _pages(part)]
    assert len(set(pages)) == len(pages)


def _pages(part: object) -> list[str]:
    if isinstance(part, dict):
        return [page for value in part.values() for page in _pages(value)]
    if isinstance(part, list):
        return [page for value in part for page in _pages(value)]
    return [str(part)]
