"""A producer on librdkafka whose broker is not there: the future of each record ends, whatever happens to files in between."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka.errors import KafkaError
from confluent_kafka import KafkaError as NativeError
from confluent_kafka import KafkaException
from native_reading import until

from schemas.errors import ConfigError
from schemas.kafka_settings import KafkaSettings
from streams.kafka.native import clients, producer
from streams.kafka.native.producer import NativeProducer

TIMEOUT_MS = 1_500
HANGS_S = 60.0
"Seconds after which a test fails that waits for something."


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine on which nobody listens, and that nobody else gets."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def kafka(closed_port: int, tmp_path: Path) -> KafkaSettings:
    file = tmp_path / "password"
    file.write_text("first")
    login = {"security": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "username": "ann", "password_file": str(file)}
    return KafkaSettings(f"127.0.0.1:{closed_port}", **login)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten what is waited for. A client that stops gives up long before its records time out."""
    for name, seconds in (("CLOSE_S", 0.1), ("IDLE_S", 0.05), ("RETRY_S", 0.2), ("LATE_S", 0.5)):
        monkeypatch.setattr(producer, name, seconds)


@asynccontextmanager
async def started(kafka: KafkaSettings, timeout_ms: int = TIMEOUT_MS) -> AsyncIterator[NativeProducer]:
    native = NativeProducer(kafka, {**clients.REPLIES, "message.timeout.ms": timeout_ms})
    await native.start()
    try:
        yield native
    finally:
        await native.stop()


async def sent(native: NativeProducer, count: int = 20) -> list[asyncio.Future[None]]:
    return [await native.send("replies", b"%d" % n, b"key") for n in range(count)]


def write(kafka: KafkaSettings, password: str) -> None:
    Path(kafka.password_file).write_text(password)


async def rotated(native: NativeProducer, kafka: KafkaSettings, password: str) -> None:
    """Change the file, and wait until another client is used."""
    before = native._producer
    write(kafka, password)
    await until(lambda: native._producer is not before)


async def all_fail(futures: list[asyncio.Future[None]]) -> None:
    async with asyncio.timeout(HANGS_S):
        found = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(one) for one in found if not isinstance(one, KafkaError)] == []


@pytest.mark.parametrize("rotations", [1, 3])
async def test_records_that_are_queued_when_the_files_change_end(kafka: KafkaSettings, rotations: int) -> None:
    async with started(kafka) as native:
        futures = await sent(native)
        for n in range(rotations):
            await rotated(native, kafka, f"password {n}")
            futures += await sent(native)
        await all_fail(futures)
        await until(lambda: not native._former)
        assert native._in_flight == 0


async def test_a_former_client_that_reports_nothing_in_time_is_made_to(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer, "LATE_S", -600.0)
    async with started(kafka, timeout_ms=600_000) as native:
        futures = await sent(native)
        await rotated(native, kafka, "second")
        # the present client has them now, once
        await until(lambda: not native._former)
        assert not any(future.done() for future in futures)
        assert len(native._producer) >= len(futures), "and reports of errors"
        await rotated(native, kafka, "third")
        await all_fail(futures)


async def test_records_end_when_the_producer_stops(kafka: KafkaSettings) -> None:
    async with started(kafka, timeout_ms=600_000) as native:
        futures = await sent(native)
        await rotated(native, kafka, "second")
        futures += await sent(native)
    assert all(future.done() for future in futures)
    await all_fail(futures)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("invalid_setting", "RIFFLE_KAFKA_CERT_FILE cannot be used", "kafka_cert_file"),
        KafkaException(NativeError(NativeError._INVALID_ARG, "no certificate")),
    ],
)
async def test_a_client_that_cannot_be_created_anew_leaves_the_present_one_and_is_tried_again(
    kafka: KafkaSettings, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create, tries = clients.producer, list[int]()

    def fails_twice(*given: object) -> object:
        tries.append(1)
        if len(tries) <= 2:
            raise error
        return create(*given)  # type: ignore[arg-type]

    async with started(kafka) as native:
        before, futures = native._producer, await sent(native)
        monkeypatch.setattr(clients, "producer", fails_twice)
        write(kafka, "second")
        await until(lambda: bool(tries))
        assert native._producer is before
        futures += await sent(native)
        await all_fail(futures)
        await until(lambda: native._producer is not before)
    assert len(tries) == 3
    assert caplog.text.count("the present one is used") == 2
    assert "second" not in caplog.text
