"""librdkafka's clients connect with every kind of security, follow changed files, and stay connected when tokens expire."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from aiokafka.errors import KafkaError
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from faust.types import TP
from native_reading import reading, until
from secured_broker import EXPIRED, KINDS, SESSION_MS, Secured

from schemas.kafka_settings import KafkaSettings
from streams.kafka.native import clients
from streams.kafka.native.producer import NativeProducer
from streams.kafka.tokens import tokens_of
from streams.kafka.topics import ensure_topics

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("kind", KINDS)
async def test_records_are_sent_and_read_with_every_kind_of_security(secured: Secured, tmp_path: Path, kind: str) -> None:
    """The sessions are shorter than the test, so that each client logs in again on its connection."""
    settings = replace(secured.by(kind, tmp_path), topic_prefix=f"native-{kind.lower()}.")
    await ensure_topics(settings)
    topic, native = settings.topic("requests"), NativeProducer(settings.kafka, clients.REPLIES)
    await native.start()
    try:
        async with reading(settings) as made:
            made.reader.read({TP(topic, 0): None})
            for n in range(2 * SESSION_MS // 250):
                await (await native.send(topic, b"%d" % n, partition=0))
                await asyncio.sleep(0.25)
            sent = 2 * SESSION_MS // 250
            await until(lambda: len(made.taken[TP(topic, 0)]) >= sent)
            assert made.offsets() == {0: list(range(sent))}
            assert not made.errors
        assert await native.look_up(topic)
    finally:
        await native.stop()
    assert EXPIRED not in secured.log.read_text()


@pytest.mark.parametrize("kind", ["PLAIN", "SCRAM-SHA-512", "OAUTHBEARER"])
async def test_a_wrong_login_is_an_error_that_names_no_secret(secured: Secured, tmp_path: Path, kind: str) -> None:
    settings = secured.by(kind, tmp_path)
    wrong = {
        "kafka_token_url": "",
        "kafka_client_id": "",
        "kafka_client_secret_file": "",
        "kafka_token_file": str(tmp_path / "t"),
    }
    (tmp_path / "t").write_text("no.such.token")
    own = wrong if kind == "OAUTHBEARER" else {"kafka_password_file": "", "kafka_password": "wrong password"}
    settings = replace(settings, **own)  # type: ignore[arg-type]
    native = NativeProducer(settings.kafka, {**clients.REPLIES, "message.timeout.ms": 1_500})
    await native.start()
    try:
        with pytest.raises(KafkaError) as caught:
            await (await native.send("any", b"v"))
    finally:
        await native.stop()
    assert "wrong password" not in str(caught.value)
    assert "no.such.token" not in str(caught.value)


async def test_a_changed_password_is_used_and_nothing_is_lost_or_read_twice(secured: Secured, tmp_path: Path) -> None:
    """The user's password changes on the broker and in the file; sessions end, so that both clients must log in anew."""
    file = tmp_path / "password"
    file.write_text("first password")
    admin = AdminClient({"bootstrap.servers": secured.settings.bootstrap_servers})

    def change(password: str) -> None:
        made = UserScramCredentialUpsertion("bob", ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4_096), password.encode())
        for done in admin.alter_user_scram_credentials([made]).values():
            done.result(10)

    await asyncio.to_thread(change, "first password")
    own = {"kafka_username": "bob", "kafka_password_file": str(file), "topic_prefix": "changed."}
    settings = replace(secured.by("SCRAM-SHA-256", tmp_path), **own)  # type: ignore[arg-type]
    await ensure_topics(settings)
    topic, native = settings.topic("requests"), NativeProducer(settings.kafka, clients.REPLIES)
    await native.start()
    try:
        async with reading(settings) as made:
            made.reader.read({TP(topic, 0): None})
            for n in range(40):
                await (await native.send(topic, b"%d" % n, partition=0))
                if n == 10:
                    await asyncio.to_thread(change, "second password")
                    file.write_text("second password")
                await asyncio.sleep(0.25)
            await until(lambda: len(made.taken[TP(topic, 0)]) >= 40)
            assert [record.value for record in made.taken[TP(topic, 0)]] == [b"%d" % n for n in range(40)]
    finally:
        await native.stop()


async def test_files_that_cannot_be_used_change_nothing(secured: Secured, tmp_path: Path) -> None:
    file = tmp_path / "client.pem"
    shutil.copy(secured.certificates / "client.pem", file)
    kafka = replace(secured.by("SSL", tmp_path), kafka_cert_file=str(file)).kafka
    files = clients.Files(kafka)
    assert not files.changed()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert not files.changed()
    file.write_bytes(whole)
    assert files.changed()
    assert not files.changed()


def test_a_token_for_amazon_is_signed_for_its_region_until_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signature is that of the AWS credentials of this process; only Amazon can verify it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    login = {"security": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER", "msk_region": "eu-west-1"}
    tokens = tokens_of(KafkaSettings("b:1", **login))
    token, expires = tokens.with_expiry()
    url = urlsplit(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode())
    query = parse_qs(url.query)
    assert url.hostname == "kafka.eu-west-1.amazonaws.com"
    assert query["Action"] == ["kafka-cluster:Connect"]
    assert query["X-Amz-Credential"][0].startswith("AKIDEXAMPLE/")
    assert expires == pytest.approx(time.time() + int(query["X-Amz-Expires"][0]), abs=5)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in url.geturl()
    assert clients._connection(KafkaSettings("b:1", **login))["oauth_cb"]("")[0] == token
