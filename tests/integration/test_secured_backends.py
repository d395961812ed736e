"""Redis with an access control list and TLS, the schema registry with a login and TLS, S3 over TLS: files are read again."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from certificates import Authority
from conftest import free_port
from fakes import registry_server
from mirror_contract import keeps
from werkzeug.serving import make_server

from models.archive.target import S3Folder
from schemas.errors import ConfigError, TransientError
from schemas.registry import ConfluentRegistry
from schemas.settings import Settings
from streams.kafka import connect
from streams.mirror.stores import answers, store_at

pytestmark = pytest.mark.integration

FIRST, SECOND = "first p@ssword", "second p@ssword"


def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@asynccontextmanager
async def encrypted(port: int, certificate: Path) -> AsyncIterator[int]:
    """A port that ends TLS before another port, because the embedded Redis has no TLS. Its certificate may change."""

    async def piped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(piped(reader, there[1]), piped(there[0], writer))

    context = server_side(certificate)

    def begin(held: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        held.context = server_side(certificate)

    context.sni_callback = begin
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture
def user(stack: Settings) -> Iterator[str]:
    """A user of the stack's Redis who may use the keys below its name only."""
    name = f"u{uuid.uuid4().hex[:8]}"
    with redis.Redis.from_url(stack.redis) as admin:
        admin.acl_setuser(name, enabled=True, passwords=[f"+{FIRST}"], keys=[f"{name}.*"], commands=["+get", "+set", "+del"])
        yield name
        admin.acl_deluser(name)


async def test_summaries_are_kept_in_redis_over_tls_by_a_user_with_few_rights(
    stack: Settings, user: str, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, password = authority.sign(tmp_path / "server.pem", "127.0.0.1"), tmp_path / "password"
    password.write_text(f"{FIRST}\n")
    async with encrypted(stack.redis_port, certificate) as port:
        settings = replace(
            stack,
            redis_url=f"rediss://127.0.0.1:{port}/0",
            redis_username=user,
            redis_password_file=str(password),
            redis_ca_file=str(authority.file),
            topic_prefix=f"{user}.",
        )
        store = store_at(settings.redis, settings.topic_prefix, settings.redis_login)
        await keeps(store)
        await answers(settings)
        for wrong in (
            {"topic_prefix": "others."},
            {"redis_username": "nobody"},
            {"redis_ca_file": str(Authority(tmp_path, "other").file)},
            {"redis_ca_file": ""},
        ):
            with pytest.raises(TransientError) as caught:
                await answers(replace(settings, **wrong))  # type: ignore[arg-type]
            assert FIRST not in str(caught.value)
        await answers(settings)


async def test_a_changed_password_and_authority_of_redis_are_used(stack: Settings, user: str, tmp_path: Path) -> None:
    authority, password = Authority(tmp_path), tmp_path / "password"
    certificate = authority.sign(tmp_path / "server.pem", "127.0.0.1")
    password.write_text(FIRST)
    async with encrypted(stack.redis_port, certificate) as port:
        settings = replace(
            stack,
            redis_url=f"rediss://127.0.0.1:{port}/0",
            redis_username=user,
            redis_password_file=str(password),
            redis_ca_file=str(authority.file),
        )
        store = store_at(settings.redis, f"{user}.", settings.redis_login)
        try:
            await store.write({"ann": b"1"})
            with redis.Redis.from_url(stack.redis) as admin:
                admin.acl_setuser(user, enabled=True, reset_passwords=True, passwords=[f"+{SECOND}"])
                admin.execute_command("CLIENT", "KILL", "USER", user)
            with pytest.raises(TransientError):
                await store.read("ann")
            password.write_text(SECOND)
            assert await store.read("ann") == b"1"
            # a new authority, as when a private one is replaced
            renewed = Authority(tmp_path, "renewed")
            renewed.sign(tmp_path / "server.pem", "127.0.0.1")
            authority.file.write_bytes(renewed.file.read_bytes())
            assert await store.read("ann") == b"1"
            password.unlink()
            with pytest.raises(TransientError, match="RIFFLE_REDIS_PASSWORD_FILE"):
                await store.read("ann")
        finally:
            await store.close()


async def test_the_registry_is_verified_and_gets_the_login_of_now(tmp_path: Path) -> None:
    authority, password = Authority(tmp_path), tmp_path / "password"
    context = server_side(authority.sign(tmp_path / "server.pem", "127.0.0.1"))
    password.write_text(FIRST)
    with registry_server(context) as server:
        settings = Settings(
            home=tmp_path,
            registry_url=server.url,
            registry_username="ann",
            registry_password_file=str(password),
            registry_ca_file=str(authority.file),
        )
        registry = connect.registry(settings)
        assert isinstance(registry, ConfluentRegistry)
        try:
            await registry.ready([1])
            assert "interaction" in registry.schema_of(1).lower()
            first = set(server.logins)
            password.write_text(SECOND)
            await registry.ready([2])
            assert registry.schema_of(2)
            assert len(server.logins - first) == 1
            assert not server.logins & {""}
        finally:
            registry.close()
        server.logins.clear()
        unverified = connect.registry(replace(settings, registry_ca_file=""))
        assert isinstance(unverified, ConfluentRegistry)
        try:
            await unverified.ready([3], 1.0)
            assert "cannot be reached" in unverified.trouble()
            assert SECOND not in unverified.trouble()
            assert not server.logins, "a server that is not verified gets no password"
        finally:
            unverified.close()


@contextmanager
def s3_over_tls(certificate: Path) -> Iterator[str]:
    from moto.server import DomainDispatcherApplication, create_backend_app

    app, context = DomainDispatcherApplication(create_backend_app), server_side(certificate)
    server = make_server("127.0.0.1", free_port(), app, threaded=True, ssl_context=context)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


def test_an_archive_in_s3_is_verified_by_the_authorities_that_boto3_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from botocore.exceptions import SSLError

    authority = Authority(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with s3_over_tls(authority.sign(tmp_path / "server.pem", "127.0.0.1")) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.file))
        boto3.client("s3").create_bucket(Bucket="archive")
        folder = S3Folder("archive", "p")
        folder.write("x.parquet", b"data")
        assert folder.names("") == ["x.parquet"]
        monkeypatch.setenv("AWS_CA_BUNDLE", str(Authority(tmp_path, "other").file))
        with pytest.raises(SSLError):
            S3Folder("archive", "p").names("")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"redis_username": "a"}, "RIFFLE_REDIS_USERNAME"),
        ({"redis_url": "rediss://h", "redis_username": "a"}, "RIFFLE_REDIS_USERNAME"),
        ({"redis_url": "redis://h", "redis_ca_file": "/c"}, "RIFFLE_REDIS_CA_FILE"),
        ({"redis_url": "rediss://:p@h", "redis_password_file": "/p"}, "RIFFLE_REDIS_PASSWORD_FILE"),
        ({"registry_password_file": "/p"}, "RIFFLE_REGISTRY_PASSWORD_FILE"),
        ({"registry_url": "http://h", "registry_ca_file": "/c"}, "RIFFLE_REGISTRY_CA_FILE"),
        ({"registry_url": "https://a:b@h", "registry_password_file": "/p"}, "RIFFLE_REGISTRY_PASSWORD_FILE"),
    ],
)
def test_contradictory_settings_are_refused_by_name(values: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Settings(**values)  # type: ignore[arg-type]
