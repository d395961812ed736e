"""A client closes in time, regardless of the broker's behaviour."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from aiokafka.conn import create_conn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from schemas.kafka_settings import KafkaSettings
from streams.kafka import connect
from streams.kafka.probe import API_VERSIONS

ENOUGH = 32 << 20
"Number of bytes that exceeds the buffers of any pair of sockets."


def make_certificate(folder: Path) -> Path:
    """Create a self-signed certificate of 127.0.0.1, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "broker.pem"
    file.write_bytes(key.private_bytes(*plain) + made.public_bytes(serialization.Encoding.PEM))
    return file


class Deaf:
    """A broker that answers one ApiVersions request and then stops reading. It keeps the connection open."""

    def __init__(self, certificate: Path | None) -> None:
        self._context = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            taken, _ = self._listener.accept()
            if self._context is not None:
                taken = self._context.wrap_socket(taken, server_side=True)
            self._held.append(taken)
            asked = taken.recv(1 << 16)
            body = asked[8:12] + struct.pack(">hi", 0, 1) + struct.pack(">hhh", 18, 0, 0)
            taken.sendall(struct.pack(">i", len(body)) + body)

    def close(self) -> None:
        for held in (*self._held, self._listener):
            held.close()


@pytest.fixture(params=["PLAINTEXT", "SSL"])
def deaf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Deaf, KafkaSettings]]:
    certificate = make_certificate(tmp_path) if request.param == "SSL" else None
    broker = Deaf(certificate)
    settings = KafkaSettings(bootstrap_servers=broker.address, security=request.param, ca_file=str(certificate or ""))
    yield broker, settings
    broker.close()


async def test_a_broker_that_reads_no_more_does_not_hold_up_a_close(
    deaf: tuple[Deaf, KafkaSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a limit, TLS waits 30 s for the broker's part, and plain text for as long as data waits to be sent."""
    _, settings = deaf
    monkeypatch.setattr("streams.kafka.connection.UNSENT_S", 2.0)
    host, _, port = settings.bootstrap_servers.partition(":")
    connection = await create_conn(host, int(port), **connect.security(settings))
    connection._writer.write(API_VERSIONS + bytes(ENOUGH))
    closed = connection.close()
    async with asyncio.timeout(10):
        await closed
    assert not connection.connected()


async def test_a_close_that_the_broker_takes_part_in_is_not_cut_off() -> None:
    """Pending data still arrives."""
    came = bytearray()
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readexactly(4)
        asked += await reader.readexactly(struct.unpack(">i", asked)[0])
        body = asked[8:12] + struct.pack(">hi", 0, 1) + struct.pack(">hhh", 18, 0, 0)
        writer.write(struct.pack(">i", len(body)) + body)
        came.extend(await reader.read(-1))
        writer.close()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        connection = await create_conn("127.0.0.1", server.sockets[0].getsockname()[1], security_protocol="PLAINTEXT")
        connection._writer.write(bytes(1 << 20))
        await connection.close()
        await asyncio.wait_for(ended.wait(), 10)
    assert len(came) == 1 << 20
