"""Settings: invalid values are refused at once, in a line that names the variable."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ConfigError
from schemas.kafka_settings import KafkaSettings
from schemas.settings import LIMITS, MIRRORS, SHARES, Settings

PORTS = ("kafka_port", "controller_port", "redis_port", "web_port")
POSITIVE = ("commit_interval_s", "archive_interval_s", "stop_timeout_s", "drain_s", "stuck_s", "session_timeout_s")
COUNTS = (
    "partitions",
    "replication",
    "cache_users",
    "cache_mb",
    "block_cache_mb",
    "shelf_items",
    "archive_rows",
    "deadline_ms",
)


def refused(**values: object) -> str:
    """Return the message with which these variables are refused."""
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({f"RIFFLE_{name.upper()}": str(value) for name, value in values.items()})
    return caught.value.message


@given(st.lists(st.integers(1, 65_535), min_size=4, max_size=4, unique=True))
def test_distinct_ports_are_taken_as_they_are(ports: list[int]) -> None:
    made = Settings.from_env({f"RIFFLE_{name.upper()}": str(port) for name, port in zip(PORTS, ports, strict=True)})
    assert [getattr(made, name) for name in PORTS] == ports


@given(st.sampled_from(PORTS), st.integers(-70_000, 0) | st.integers(65_536, 2**40))
def test_a_port_beyond_its_range_is_named(name: str, port: int) -> None:
    assert refused(**{name: port}) == f"RIFFLE_{name.upper()} must lie in 1..65535, is {port}"


@given(st.lists(st.sampled_from(PORTS), min_size=2, max_size=2, unique=True))
def test_two_ports_are_never_the_same(names: list[str]) -> None:
    message = refused(**dict.fromkeys(names, 5_000))
    assert all(f"RIFFLE_{name.upper()}" in message for name in names)


def test_ports_of_what_is_not_started_do_not_matter() -> None:
    Settings(bootstrap="kafka:9092", redis_url="redis://there", kafka_port=7000, redis_port=7000, web_port=7000)


@given(st.sampled_from(POSITIVE), st.sampled_from(["0", "-1", "nan", "inf"]))
def test_seconds_are_positive_and_finite(name: str, value: str) -> None:
    rule = "greater than 0 seconds" if value in {"0", "-1"} else "a finite number"
    assert refused(**{name: value}).startswith(f"RIFFLE_{name.upper()} must be {rule}")


@given(st.sampled_from(COUNTS), st.integers(-5, 0))
def test_counts_are_positive(name: str, value: int) -> None:
    assert refused(**{name: value}).startswith(f"RIFFLE_{name.upper()} must ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deadline_ms", "60001"),
        ("standbys", "-1"),
        ("kafka_port", "many"),
        ("log_level", "LOUD"),
        ("archive", "gs://bucket/x"),
        ("archive", "s3://"),
        ("redis_url", "localhost:6379"),
        ("redis_url", "http://localhost"),
        ("encoder", "maybe"),
        ("image_hosts", "http://media.internal"),
        ("image_hosts", "*.internal"),
    ],
)
def test_what_cannot_work_is_named(name: str, value: str) -> None:
    assert refused(**{name: value}).startswith(f"RIFFLE_{name.upper()}")


@pytest.mark.parametrize("value", ["redis://h:1/0", "rediss://h", "unix:///run/redis.sock"])
def test_any_redis_url_will_do(value: str) -> None:
    assert Settings.from_env({"RIFFLE_REDIS_URL": value}).redis == value


def test_what_may_be_written_in_several_ways() -> None:
    assert Settings.from_env({"RIFFLE_LOG_LEVEL": "warning"}).log_level == "WARNING"
    for archive in ("off", "/tmp/kept", "s3://bucket/prefix"):
        assert Settings.from_env({"RIFFLE_ARCHIVE": archive}).archive == archive


def test_folders_are_the_same_for_every_process_of_an_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker runs in the home folder, commands in the caller's folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoder").mkdir()
    given_ = {"HOME": "h", "ARCHIVE": "kept", "RELEASES": "made", "CACHE": "c", "TEXT_MODEL": "encoder"}
    made = Settings.from_env({f"RIFFLE_{name}": value for name, value in given_.items()})
    assert (made.home, made.cache) == (tmp_path / "h", tmp_path / "c")
    assert [made.archive, made.releases, made.text_model] == [str(tmp_path / name) for name in ("kept", "made", "encoder")]
    assert Settings.from_env({"RIFFLE_TEXT_MODEL": "org/model"}).text_model == "org/model"


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_home_that_cannot_be_a_folder_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    assert "RIFFLE_HOME" in refused(home=tmp_path / "file" / below)
    with pytest.raises(ConfigError, match="RIFFLE_HOME"):
        Settings(home=tmp_path / "file" / "home").make_home()


def test_unknown_variables_are_named_with_what_they_may_mean() -> None:
    given_ = {"RIFFLE_KAFKA_PROT": "1", "RIFFLE_XYZ": "2", "RIFFLE_WEB_PORT": "3", "OTHER": "4"}
    assert Settings.unknown(given_) == {"RIFFLE_KAFKA_PROT": "RIFFLE_KAFKA_PORT", "RIFFLE_XYZ": ""}
    assert Settings.unknown(Settings().environment()) == {}


def test_every_number_has_bounds() -> None:
    numbers = {name for name, kind in get_type_hints(Settings).items() if kind in {int, float}}
    assert numbers == set(LIMITS) | set(SHARES)


def test_a_number_of_seconds_has_a_maximum_if_it_is_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schemas.settings.LIMITS", {**LIMITS, "stuck_s": 60})
    assert Settings(stuck_s=60.0).stuck_s == 60.0
    with pytest.raises(ConfigError, match="at most 60 seconds, is 61"):
        Settings(stuck_s=61.0)


def test_every_setting_is_described_below_its_field() -> None:
    tree = ast.parse(Path(inspect.getfile(Settings)).read_text(encoding="utf-8"))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings").body
    described = [
        ast.unparse(field.target)
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    ]
    assert described == [field.name for field in fields(Settings)]


def test_a_mirror_that_does_not_exist_is_refused_with_those_that_do() -> None:
    message = refused(redis_url="http://h")
    assert [scheme for scheme in MIRRORS if f"{scheme}://" not in message] == []


def test_every_default_is_a_setting_that_works() -> None:
    made = Settings.from_env({})
    assert Settings.from_env(made.environment()) == made
    assert all(hasattr(made, field.name) for field in fields(Settings))


LOGIN = {"kafka_sasl_mechanism": "PLAIN", "kafka_username": "ann", "kafka_password": "pw"}


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"kafka_security": "TLS"}, ["KAFKA_SECURITY"]),
        ({"kafka_security": "ssl"}, ["KAFKA_SECURITY"]),
        ({"kafka_security": "SASL_SSL"}, ["KAFKA_SASL_MECHANISM", "KAFKA_SECURITY"]),
        ({"kafka_security": "SASL_SSL", **LOGIN, "kafka_sasl_mechanism": "GSSAPI"}, ["KAFKA_SASL_MECHANISM"]),
        ({"kafka_security": "SASL_SSL", **LOGIN, "kafka_username": ""}, ["KAFKA_USERNAME"]),
        ({"kafka_security": "SASL_SSL", **LOGIN, "kafka_password": ""}, ["KAFKA_PASSWORD", "KAFKA_PASSWORD_FILE"]),
        ({"kafka_security": "SASL_SSL", **LOGIN, "kafka_password_file": "/f"}, ["KAFKA_PASSWORD", "KAFKA_PASSWORD_FILE"]),
        ({"kafka_security": "SASL_SSL", **LOGIN, "kafka_token_provider": "m:f"}, ["KAFKA_TOKEN_PROVIDER"]),
        ({"kafka_security": "SASL_SSL", "kafka_sasl_mechanism": "OAUTHBEARER"}, ["KAFKA_TOKEN_PROVIDER"]),
        (
            {"kafka_security": "SASL_SSL", **LOGIN, "kafka_sasl_mechanism": "OAUTHBEARER", "kafka_token_provider": "m:f"},
            ["KAFKA_USERNAME", "KAFKA_SASL_MECHANISM"],
        ),
        (
            {"kafka_security": "SASL_SSL", "kafka_sasl_mechanism": "OAUTHBEARER", "kafka_token_provider": "m f()"},
            ["KAFKA_TOKEN_PROVIDER"],
        ),
        ({"kafka_security": "SSL", "kafka_key_file": "/k"}, ["KAFKA_KEY_FILE", "KAFKA_CERT_FILE"]),
        ({"kafka_security": "SSL", **LOGIN}, ["KAFKA_SASL_MECHANISM", "KAFKA_SECURITY"]),
        ({"kafka_security": "SASL_PLAINTEXT", **LOGIN, "kafka_ca_file": "/c"}, ["KAFKA_CA_FILE", "KAFKA_SECURITY"]),
        ({"kafka_ca_file": "/c"}, ["KAFKA_CA_FILE", "KAFKA_SECURITY"]),
        ({"kafka_username": "ann"}, ["KAFKA_USERNAME", "KAFKA_SECURITY"]),
    ],
)
def test_ways_to_kafka_that_contradict_themselves_are_named(values: dict[str, str], names: list[str]) -> None:
    message = refused(bootstrap="kafka:9092", **values)
    assert message.startswith("RIFFLE_KAFKA_")
    assert all(f"RIFFLE_{name}" in message for name in names)
    assert "pw" not in message


def test_the_embedded_broker_is_reached_in_plain_text_only() -> None:
    assert "RIFFLE_BOOTSTRAP" in refused(kafka_security="SSL")


def test_the_way_to_kafka_is_what_the_variables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given_ = {"BOOTSTRAP": "kafka://a:1,b:2", "KAFKA_SECURITY": "SASL_SSL", "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256"}
    files = {"KAFKA_PASSWORD_FILE": "pw", "KAFKA_CA_FILE": "ca.pem", "KAFKA_CERT_FILE": "c.pem", "KAFKA_KEY_FILE": "k.pem"}
    variables = {f"RIFFLE_{name}": value for name, value in {**given_, **files, "KAFKA_USERNAME": "ann"}.items()}
    found = Settings.from_env(variables).kafka
    assert (found.bootstrap_servers, found.security, found.username) == ("a:1,b:2", "SASL_SSL", "ann")
    folder = str(tmp_path)  # a worker runs in another one
    assert [found.password_file, found.ca_file] == [f"{folder}/pw", f"{folder}/ca.pem"]
    assert [found.cert_file, found.key_file] == [f"{folder}/c.pem", f"{folder}/k.pem"]


def test_by_default_kafka_is_reached_in_plain_text() -> None:
    found = Settings(bootstrap="h:1").kafka
    assert not found.encrypts
    assert not found.logs_in
    assert found.described() == "PLAINTEXT"


def test_every_part_of_the_way_to_kafka_is_a_setting() -> None:
    assert {f"kafka_{field.name}" for field in fields(KafkaSettings)[1:]} <= {field.name for field in fields(Settings)}


@pytest.mark.parametrize(("given", "wanted"), [("SSLL", "one of PLAINTEXT, SSL"), ("SSL", "RIFFLE_BOOTSTRAP")])
def test_a_wrong_security_protocol_is_named_before_the_embedded_broker_is(given: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Settings(kafka_security=given)
    assert wanted in refused.value.message
