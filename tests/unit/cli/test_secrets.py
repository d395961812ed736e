"""No output of any command holds the password of a URL in the settings."""

from __future__ import annotations

import os
import subprocess
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

from agents.cli import guarded, operate
from agents.cli.doctor import doctor
from agents.cli.topics import topics
from schemas.errors import ConfigError
from schemas.settings import FILES, SECRETS, URLS, Settings
from streams.embedded.process import riffle

SECRET = "p%40ssw0rd"
PLAIN = "p@ssw0rd"
TOKEN = "riffle_ssw0rd"
WITH_SECRET = {
    "redis_url": f"redis://:{SECRET}@127.0.0.1:1/0",
    "registry_url": f"http://ann:{SECRET}@127.0.0.1:1/?token={SECRET}",
    "archive": f"s3://key:{SECRET}@bucket/prefix",
    "traces": f"http://ann:{SECRET}@127.0.0.1:1",
}
REFUSED = {
    "redis_url": f"http://:{SECRET}@h",
    "registry_url": f"ftp://a:{SECRET}@h",
    "archive": f"gs://a:{SECRET}@h",
    "bootstrap": f"kafka://a:{SECRET}@h:1",
    "kafka_token_url": f"https://a:{SECRET}@h",
}


LOGIN = {
    "bootstrap": "127.0.0.1:1",
    "kafka_security": "SASL_PLAINTEXT",
    "kafka_sasl_mechanism": "PLAIN",
    "kafka_username": "ann",
    "kafka_password": PLAIN,
    "http_token": TOKEN,
}


TOKENS = {
    "bootstrap": "127.0.0.1:1",
    "kafka_security": "SASL_PLAINTEXT",
    "kafka_sasl_mechanism": "OAUTHBEARER",
    "kafka_token_url": "http://127.0.0.1:1/token",
    "kafka_client_id": "ann",
    "kafka_client_secret": PLAIN,
}


def with_all(settings: Settings, values: Mapping[str, str]) -> Settings:
    """These settings, by their names, in place of the others."""
    return replace(settings, **cast("dict[str, Any]", values))


def held(text: str) -> bool:
    return any(part in text for part in (SECRET, PLAIN, "ssw0rd"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", web_port=1, kafka_port=2, controller_port=3, redis_port=4)


def test_every_setting_that_may_hold_a_login_is_covered() -> None:
    assert set(WITH_SECRET) | set(REFUSED) == set(URLS)


@pytest.mark.parametrize("name", WITH_SECRET)
def test_settings_are_shown_without_it(settings: Settings, name: str) -> None:
    made = with_all(settings, {name: WITH_SECRET[name]})
    assert getattr(made, name) == WITH_SECRET[name]
    for text in (repr(made), str(made), f"{made}"):
        assert not held(text)
        assert "***" in text


def test_a_password_is_shown_nowhere_and_reaches_processes_that_are_started(settings: Settings) -> None:
    made = with_all(settings, LOGIN)
    assert made.kafka.secret() == PLAIN
    assert made.http.secret() == TOKEN
    shown = f"{made} {made!r} {made.kafka} {made.http} {made.kafka.described()} {made.environment()}"
    assert not held(shown)
    assert "***" in repr(made)
    assert set(SECRETS) <= {*LOGIN, *TOKENS}
    assert Settings.from_env(made.environment(secrets=True)) == made.resolved()


def test_a_clients_secret_is_shown_nowhere(settings: Settings) -> None:
    made = with_all(settings, TOKENS)
    assert made.kafka.client_secret_now() == PLAIN
    assert not held(f"{made} {made!r} {made.kafka} {made.kafka.described()} {made.environment()}")
    assert Settings.from_env(made.environment(secrets=True)) == made.resolved()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_not_repeated(settings: Settings, name: str) -> None:
    for value in (REFUSED[name], f":{PLAIN}@h", f"redis://a b:{PLAIN}@h"):
        try:
            Settings.from_env({**settings.environment(), f"RIFFLE_{name.upper()}": value})
        except ConfigError as exc:
            assert not held(exc.message)
            assert f"RIFFLE_{name.upper()}" in exc.message


@pytest.mark.parametrize(
    ("command", "login"),
    [
        *((command, LOGIN) for command in ("status", "status --json", "doctor", "doctor --json", "up", "down", "topics")),
        *((command, TOKENS) for command in ("doctor --json", "topics", "release list")),
    ],
)
def test_no_command_prints_it(settings: Settings, command: str, login: Mapping[str, str]) -> None:
    # another's Kafka at a port where nobody listens: `up` fails after everything was looked at
    made = with_all(settings, {**WITH_SECRET, **login})
    environment = {**os.environ, **made.environment(secrets=True)}
    done = subprocess.run(riffle(*command.split()), env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert not list(made.resolved().run_dir.glob("*.pid")), "nothing was started"
    assert not held(done.stdout + done.stderr)
    for file in made.resolved().home.rglob("*"):
        if file.is_file():
            assert not held(file.read_text(errors="replace")), file


def test_what_goes_wrong_elsewhere_is_masked_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    @click.command()
    @click.option("--json", is_flag=True)
    def fails(json: bool) -> None:
        raise OSError(2, "nothing there", f"redis://:{SECRET}@h")

    monkeypatch.setattr("sys.argv", ["fails", "--json"])
    with pytest.raises(SystemExit):
        guarded(fails)
    said = capsys.readouterr()
    assert "nothing there" in said.err
    assert not held(said.err + said.out)


def test_a_redis_that_refuses_is_named_without_it(settings: Settings) -> None:
    made = replace(settings, redis_url=f"redis://:{SECRET}@127.0.0.1:1/0").resolved()
    for command in (doctor, operate.status):
        said = CliRunner().invoke(command, env=made.environment()).output
        assert not held(said)
        assert "redis://***@127.0.0.1:1/0" in said


FILE_KINDS: Mapping[str, Mapping[str, str]] = {
    "kafka_password_file": {**{k: v for k, v in LOGIN.items() if not k.endswith("password")}},
    "kafka_client_secret_file": {k: v for k, v in TOKENS.items() if not k.endswith("secret")},
    "kafka_token_file": {"bootstrap": "127.0.0.1:1", "kafka_security": "SASL_PLAINTEXT", "kafka_sasl_mechanism": "OAUTHBEARER"},
    "kafka_cert_file": {"bootstrap": "127.0.0.1:1", "kafka_security": "SSL"},
    "kafka_key_file": {"bootstrap": "127.0.0.1:1", "kafka_security": "SSL", "kafka_cert_file": "/dev/null"},
    "http_token_file": {},
    "http_tokens_file": {},
    "http_cert_file": {},
    "http_key_file": {"http_cert_file": "/dev/null"},
    "redis_password_file": {"redis_url": "redis://127.0.0.1:1/0", "redis_username": "ann"},
    "registry_password_file": {"registry_url": "http://127.0.0.1:1", "registry_username": "ann"},
}
"Settings that name a file with a secret, and what each needs beside it."


def test_every_setting_that_names_a_file_with_a_secret_is_covered() -> None:
    """Files of authorities hold none."""
    assert {name for name in FILES if not name.endswith("_ca_file")} == set(FILE_KINDS)


@pytest.mark.parametrize("name", FILE_KINDS)
def test_no_command_prints_what_a_file_holds(settings: Settings, tmp_path: Path, name: str) -> None:
    """Neither when the file can be used nor when it cannot: a secret in the wrong file is one, too."""
    file = tmp_path / "file"
    for content in (PLAIN, f"-----BEGIN PRIVATE KEY-----\n{PLAIN}\nand more\n"):
        file.write_text(content)
        made = with_all(settings, {**{k: v for k, v in FILE_KINDS[name].items() if k != "http_token"}, name: str(file)})
        for command, arguments in ((doctor, ["--json"]), (topics, ["list"])):
            done = CliRunner().invoke(command, arguments, env=made.environment(secrets=True))
            error = "".join(traceback.format_exception(done.exception)) if done.exception else ""
            assert not held(done.output + error), command.name
