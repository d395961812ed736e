"""Errors for every kind of stdout: one sentence and an exit status, without a stack trace; no id is lost."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agents.cli.ask import print_slate
from agents.cli.screen import WIDE, plain_console, print_table
from schemas.errors import ConfigError
from schemas.settings import Settings
from streams.embedded.process import python, riffle

TITLE = "شريط [bold]x[/bold] :smile:"


def ran(tmp_path: Path, shell: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell's line in which RIFFLE stands for the command."""
    environment = {**os.environ, **Settings(home=tmp_path, web_port=1).environment(), **more}
    for name in [name for name, value in more.items() if value == "unset"]:
        del environment[name]
    line = shell.replace("RIFFLE", '"$0" "$@"')
    command = ["bash", "-c", f"set -o pipefail; {line}", *riffle()]
    return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("arguments", ["status", "status --json", "--help"])
@pytest.mark.parametrize("to", [">/dev/full", ">&-"])
def test_output_that_cannot_be_written_is_one_sentence(tmp_path: Path, arguments: str, to: str) -> None:
    done = ran(tmp_path, f"RIFFLE {arguments} {to}")
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("riffle: ")
    assert "cannot write" in line or "cannot be written" in line


@pytest.mark.parametrize("arguments", ["status", "--help"])
def test_a_reader_that_has_gone_is_no_error_to_talk_about(tmp_path: Path, arguments: str) -> None:
    done = ran(tmp_path, f"RIFFLE {arguments} | true")
    assert done.stderr == b""
    assert done.returncode in {0, 1, 141}


def test_a_closed_stderr_changes_nothing(tmp_path: Path) -> None:
    done = ran(tmp_path, "RIFFLE status --json 2>&-")
    assert done.returncode == 0
    assert json.loads(done.stdout)["ready"] is False
    assert ran(tmp_path, "RIFFLE status >&- 2>&-").returncode == 1


ENCODINGS = [{"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_characters_that_the_encoding_lacks_are_replaced_and_no_id_is_lost(tmp_path: Path, encoding: dict[str, str]) -> None:
    code = """
        import click
        from agents.cli import guarded
        from agents.cli.ask import print_slate
        from agents.cli import ask
        from agents.cli.screen import plain_console
        from schemas.settings import Settings
        ask.title_of = lambda settings, item_id: "\\u0634\\u0631\\u064a\\u0637"
        item = {"item_id": "ids-stay-whole", "score": 1.0, "sources": ["popular"]}
        slate = {"user_id": "\\xe9", "items": [item], "release": "r", "arm": "default", "degraded": [], "as_of": None}
        slate["timings_ms"] = {}
        guarded(click.command(lambda: print_slate(Settings(), slate, plain_console())))
    """
    environment = {**os.environ, **Settings(home=tmp_path).environment(), **encoding}
    done = subprocess.run(
        python("-c", textwrap.dedent(code)), env=environment, capture_output=True, cwd=tmp_path, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"ids-stay-whole" in done.stdout
    if encoding != {"LC_ALL": "C"} and "POSIX" not in encoding.values():
        assert b"????" in done.stdout


@given(
    st.lists(st.tuples(st.text("abcdefgh-0123456789", min_size=1, max_size=60), st.text(max_size=40)), min_size=1, max_size=5),
    st.integers(1, 200),
)
def test_every_id_is_there_at_every_width(rows: list[tuple[str, str]], width: int) -> None:
    for names, fold in ((("item", "title"), ("item", "title")), (("letter", "key"), ())):
        out = io.StringIO()
        print_table(Console(file=out, width=width, markup=False, highlight=False), names, rows, fold=fold)
        lines = out.getvalue().splitlines()
        assert all(line == line.rstrip() for line in lines)
        found = "".join(out.getvalue().split())
        assert all(set(item_id) <= set(found) for item_id, _ in rows)
        if width >= 120:
            assert all(any(item_id in line for line in lines) for item_id, _ in rows)


@given(st.text("ab\n\r\u2028 ", max_size=12), st.text("ab\n\r\u2028 ", max_size=12))
def test_a_name_from_outside_does_not_look_like_a_line_of_the_output(item_id: str, title: str) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200, markup=False, highlight=False)
    names = ("item", "title", "why")
    print_table(console, names, [(item_id, title, "one\ntwo")], fold=names, lines=("why",))
    assert len(out.getvalue().splitlines()) == 4, "names, a rule, and a row whose own text has two lines"


@pytest.mark.parametrize("width", [1, 8, 20, 40, 80])
def test_a_slate_of_long_ids_is_whole_on_a_narrow_screen(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.cli.ask.title_of", lambda settings, item_id: TITLE)
    ids = [f"item-{n}-with-a-long-id-0123456789" for n in range(3)]
    items = [{"item_id": item_id, "score": 0.5, "sources": ["popular", "fresh"]} for item_id in ids]
    rest: dict[str, Any] = {"release": "r", "arm": "default", "degraded": [], "as_of": None, "timings_ms": {}}
    slate = {"user_id": "u", "items": items, **rest}
    out = io.StringIO()
    print_slate(Settings(), slate, Console(file=out, width=width, markup=False, emoji=False))
    if width <= 20:
        assert all(item_id in "".join(out.getvalue().split()) for item_id in ids)
    assert "arm default" not in out.getvalue()
    assert "[bold]" in "".join(out.getvalue().split()) or width == 40


def test_in_a_file_nothing_is_folded_and_markup_is_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert plain_console().width == WIDE
    print_table(plain_console(), ("id", "title"), [("i" * 300, TITLE), ("j", "bell\x07 and \x1b[31m")], fold=("id", "title"))
    text = capsys.readouterr().out
    assert ("i" * 300) in text
    assert TITLE in text
    assert "\x1b" not in text
    assert "\\u001b[31m" in text, "a title is not given to the terminal as its command"


def test_nothing_of_the_current_folder_is_imported(tmp_path: Path) -> None:
    for name in ("polars", "h2", "torch", "numpy", "agents", "training", "redis", "uvloop", "json"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w').close()\nraise SystemExit('imported from here')\n")
    environment = {**os.environ, **Settings(home=tmp_path / "home", web_port=1).resolved().environment()}
    script = shutil.which("riffle", path=str(Path(sys.executable).parent))
    assert script is not None
    for command in (
        [script, "train", "nowhere"],
        riffle("status"),
        python("-m", "agents.supervisor", "--none"),
    ):
        done = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            _, said = done.communicate(timeout=3 if "agents.supervisor" in command else 60)
        except subprocess.TimeoutExpired:  # it supervises nothing, for good
            done.terminate()
            _, said = done.communicate()
        assert "imported" not in said
        assert not (tmp_path / "imported").exists()


def test_a_user_without_a_home_directory_keeps_the_cache_in_riffles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "~")  # what expanduser gives where a user is in no list
    assert Settings.from_env({"RIFFLE_HOME": str(tmp_path)}).cache == tmp_path / "cache"
    assert Settings.from_env({"RIFFLE_HOME": str(tmp_path), "RIFFLE_CACHE": "/c"}).cache == Path("/c")
    with pytest.raises(ConfigError, match="RIFFLE_HOME begins with ~"):
        Settings.from_env({"RIFFLE_HOME": "~/riffle"})


def test_a_deleted_working_directory_is_one_sentence(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    line = f'mkdir "{gone}"; cd "{gone}"; rmdir "{gone}"; RIFFLE status --json'
    done = ran(tmp_path, line, RIFFLE_HOME=".riffle")
    assert done.returncode == 1
    (sentence,) = done.stderr.decode().splitlines()
    assert sentence.startswith("riffle: the working directory was deleted")
    assert ran(tmp_path, line.replace("--json", "")).returncode == 0, "it is not needed where every folder is absolute"
