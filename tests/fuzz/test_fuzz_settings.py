"""Fuzzers of operator input: environment variables and options are accepted as written, or refused with their name."""

from __future__ import annotations

import importlib
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import click
import pytest
from click.testing import CliRunner
from fuzzing import fuzz, must_find
from hypothesis import given
from hypothesis import strategies as st

from agents.cli import COMMANDS
from schemas.click_types import Number, Whole
from schemas.errors import ConfigError
from schemas.settings import URLS, Settings

KINDS = get_type_hints(Settings)
NAMES = [field.name for field in fields(Settings)]
SECRET = "hunter2hunter2"
ODD_NUMBERS = [
    "",
    " 5",
    "5 ",
    "5\n",
    "+5",
    "1_000",
    "٣",
    "１",
    "nan",
    "NaN",
    "inf",
    "-0",
    "1e3",
    "1e999",
    "0x1f",
    "1,5",
    "²",
    "--1",
    "5.0",
]
NUMBERS = st.sampled_from(ODD_NUMBERS) | st.integers(-(2**70), 2**70).map(str) | st.floats().map(str)
# the system allows neither NUL nor characters that cannot be encoded; invalid UTF-8 arrives as lone surrogates
CHARACTERS = st.characters(exclude_characters="\x00", exclude_categories=["Cs"]) | st.integers(0xDC80, 0xDCFF).map(chr)
TEXTS = st.text(CHARACTERS, max_size=40) | st.sampled_from(
    ["x" * 70_000, "/" + "y" * 300, "~nobody/x", "~", "..", "a,b", "off", "a b"]
)
LOGINS = st.sampled_from(
    [
        f"{scheme}{user}:{SECRET}@{host}"
        for scheme in ("redis://", "http://", "kafka://", "s3://", "gs://", "", "://", "redis:/")
        for user in ("", "u", "a b")
        for host in ("h", "h:1", "h:99999/0?x=1", "")
    ]
) | st.sampled_from([f"redis://h/?password={SECRET}", f"https://h?token={SECRET}&x", f"http://h/ ?access_token={SECRET}"])
WORDS = st.sampled_from(
    ["auto", "on", "INFO", "debug", "127.0.0.1", "::1", "h:9092", "kafka://h:1,i:2", "riffle.", "s3://b/p", "redis://h"]
)
FOLDERS = ("home", "cache", "releases", "text_model")
"Settings whose text is the name of a folder, which messages may show."


def _variables(name: str) -> st.SearchStrategy[tuple[str, str]]:
    values = NUMBERS | TEXTS | WORDS
    return st.tuples(st.just(f"RIFFLE_{name.upper()}"), values if name in FOLDERS else values | LOGINS)


ENVIRONMENTS = st.lists(st.sampled_from(NAMES).flatmap(_variables), max_size=4).map(dict)
Read = Callable[[Mapping[str, str]], Settings]


def reads_settings(read: Read, environment: Mapping[str, str]) -> None:
    try:
        found = read(environment)
    except ConfigError as exc:
        assert any(name in exc.message for name in environment), exc.message
        assert SECRET not in exc.message
        assert exc.message.isprintable()
        return
    # without a scheme RIFFLE_ARCHIVE is also the name of a folder
    assert SECRET not in repr(found) or "://" not in environment.get("RIFFLE_ARCHIVE", "")
    for name in NAMES:
        text = environment.get(f"RIFFLE_{name.upper()}", "")
        value = getattr(found, name)
        if text and KINDS[name] is int:
            assert str(value).lstrip("-") == text.removeprefix("-").lstrip("0") or value == 0
        elif text and KINDS[name] is float:
            assert set(text) <= set(string.digits + "-+.eE")
    assert Settings.from_env(found.environment(secrets=True)) == found


@fuzz
@given(ENVIRONMENTS)
def test_any_environment_is_settings_or_one_line_that_names_the_variable(environment: dict[str, str]) -> None:
    reads_settings(Settings.from_env, environment)


@fuzz
@given(st.sampled_from(URLS), LOGINS)
def test_a_login_is_kept_and_never_shown(name: str, url: str) -> None:
    reads_settings(Settings.from_env, {f"RIFFLE_{name.upper()}": url})


def _with(reader: Callable[[str], Any]) -> Read:
    """Settings whose numbers are read by another parser."""

    def read(environment: Mapping[str, str]) -> Settings:
        return Settings(partitions=reader(environment["RIFFLE_PARTITIONS"])).resolved()

    return read


def _that_repeats(environment: Mapping[str, str]) -> Settings:
    try:
        return Settings.from_env(environment)
    except ConfigError as exc:
        exc.message = f"RIFFLE_REDIS_URL is wrong: {environment.get('RIFFLE_REDIS_URL', '')}"
        raise


def test_the_fuzzer_finds_settings_that_are_read_or_told_wrongly() -> None:
    counts = st.fixed_dictionaries({"RIFFLE_PARTITIONS": NUMBERS})
    must_find(reads_settings, _with(int), counts)
    must_find(reads_settings, _with(float), counts)
    must_find(reads_settings, _that_repeats, st.fixed_dictionaries({"RIFFLE_REDIS_URL": LOGINS}))
    must_find(
        reads_settings,
        lambda environment: Settings(home=Path(environment["RIFFLE_HOME"])),
        st.fixed_dictionaries({"RIFFLE_HOME": TEXTS}),
    )


def commands() -> Iterator[tuple[str, click.Command]]:
    """Return every command and subcommand."""

    def below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            for part, inner in command.commands.items():
                yield from below(f"{name} {part}", inner)
        else:
            yield name, command

    run_by_others = {"training": ("training.cli.train", "train_command", "")}
    for name, (module, attribute, _) in {**COMMANDS, **run_by_others}.items():
        yield from below(name, getattr(importlib.import_module(module), attribute))


def test_every_option_that_is_a_number_is_read_by_the_strict_parsers() -> None:
    loose = (click.types.IntParamType, click.types.FloatParamType, click.IntRange, click.FloatRange)
    found = [
        f"{name} {parameter.opts[0]}"
        for name, command in commands()
        for parameter in command.params
        if isinstance(parameter.type, loose)
    ]
    assert found == []
    strict = [p for _, command in commands() for p in command.params if isinstance(p.type, Whole | Number)]
    assert len(strict) > 5


def reads_option(kind: Any, text: str) -> None:
    seen: list[Any] = []
    command = click.Command(
        "c",
        params=[click.Option(["--n"], type=kind)],
        callback=lambda n: seen.append(n),  # noqa: PLW0108 - click passes it by name
    )
    done = CliRunner().invoke(command, ["--n", text])
    assert done.exit_code in {0, 2}, done.output
    assert isinstance(done.exception, SystemExit | None)
    if done.exit_code == 0:
        assert set(text) <= set(string.digits + "-+.eE")
        assert not text.startswith("+")
        assert float(text) == seen[0]
        assert abs(seen[0]) <= 1_000
    else:
        assert "--n" in done.output


@fuzz
@given(st.sampled_from([Whole(-1_000, 1_000), Number(-1_000, 1_000)]), NUMBERS | TEXTS.filter(lambda text: len(text) < 1_000))
def test_any_option_is_a_number_or_a_usage_error_that_names_it(kind: click.ParamType, text: str) -> None:
    reads_option(kind, text)


def test_the_fuzzer_finds_clicks_own_numbers() -> None:
    must_find(reads_option, click.IntRange(-1_000, 1_000), NUMBERS)
    must_find(reads_option, click.FloatRange(-1_000, 1_000), NUMBERS)
    must_find(reads_option, Whole(), NUMBERS)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Whole(), "-7", -7),
        (Whole(0, 9), "007", 7),
        (Number(), "1e-05", 1e-05),
        (Number(0), "0.5", 0.5),
        (Number(), "-.5", -0.5),
    ],
)
def test_numbers_as_people_write_them(kind: click.ParamType, text: str, value: float) -> None:
    assert kind.convert(text, None, None) == value
