"""A schema registry may be down, slow or invalid: records wait a bounded time, none is refused, and all recovers."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from fakes import RegistryServer, registry_server

from schemas.codec import Framing, decode, encode, look_up, schema_text
from schemas.columns import decode_interactions
from schemas.errors import BadEvent, ConfigError, NotReady
from schemas.registry import ConfluentRegistry

EVENT = {"event_id": "e", "user_id": "u", "item_id": "i", "event_time": 5}
INTERACTION = 1
FAILURES = {
    "html": "is not a schema registry",
    "odd": "is not a schema registry",
    "list": "is not a schema registry",
    "huge": "is not a schema registry",
    "hang": "no whole answer within 0.2 s",
    "drip": "no whole answer within 0.2 s",
    "silent": "cannot be reached",
    "500": "status 500",
    "500 <html>oops</html>": "status 500",
    '500 {"error_code": 50001, "message": "backend store"}': "backend store",
    "503": "status 503",
    "302": "status 302",
    "404 <html>nginx</html>": "status 404",
    '404 {"error_code": 404, "message": "HTTP 404 Not Found"}': "status 404",
    "401": "set user and password",
    '403 {"error_code": 40301, "message": "denied"}': "set user and password",
}


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with registry_server() as running:
        yield running


@pytest.fixture
def registry(server: RegistryServer) -> Iterator[ConfluentRegistry]:
    made = ConfluentRegistry(server.url, attempt_s=30.0, wait_s=0.4, first_retry_s=0.02, unknown_s=30.0)
    yield made
    made.close()


def framed(schema_id: int = INTERACTION) -> bytes:
    return b"\x00" + schema_id.to_bytes(4, "big") + encode("interaction", EVENT)[10:]


async def test_a_sound_registry_is_asked_once_and_both_ways(server: RegistryServer, registry: ConfluentRegistry) -> None:
    value = framed()
    await asyncio.gather(registry.answered(1), registry.answered("interaction"), registry.answered("slate"))
    for _ in range(3):
        await look_up(registry, [value], [()])
        assert decode("interaction", value, (), registry)[0]["item_id"] == "i"
        await registry.ready({"interaction", "slate"})
        assert (registry.id_of("interaction"), registry.id_of("slate")) == (1, 4)
    assert encode("interaction", EVENT, Framing.CONFLUENT, registry) == value
    assert set(server.calls.values()) == {1}
    assert registry.trouble() == ""


@pytest.mark.parametrize("mood", FAILURES)
async def test_whatever_it_answers_the_record_is_kept_for_later_and_its_neighbours_are_read(
    server: RegistryServer, mood: str
) -> None:
    attempt_s = 0.2 if mood in {"hang", "drip"} else 30.0
    registry = ConfluentRegistry(server.url, attempt_s=attempt_s, wait_s=0.2, first_retry_s=0.02)
    server.mood = mood
    values = [encode("interaction", EVENT), framed(), b'{"user_id":"u","item_id":"i","event_time":5}', framed(2)]
    headers = [(), (), [("content-type", b"application/json")], ()]
    await look_up(registry, values, headers)
    decoded = decode_interactions(values, [b"u"] * 4, headers, range(4), registry)
    assert decoded.columns.offset.tolist() == [0, 2]
    assert [(bad.index, bad.code) for bad in decoded.bad] == [(1, "registry_unavailable"), (3, "registry_unavailable")]
    trouble = ""
    async with asyncio.timeout(60):
        while not trouble:
            await asyncio.sleep(0.01)
            trouble = registry.trouble()
    assert FAILURES[mood] in trouble
    server.mood = "sound"
    server.released.set()
    async with asyncio.timeout(60):
        await asyncio.gather(
            *map(
                registry.answered,
                (
                    INTERACTION,
                    2,
                ),
            )
        )
    registry.close()
    assert registry.trouble() == ""
    healed = decode_interactions(values, [b"u"] * 4, headers, range(4), registry)
    assert [bad.code for bad in healed.bad] == ["unknown_schema"], "an event is no item"


async def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and never listens
        registry = ConfluentRegistry(f"http://127.0.0.1:{held.getsockname()[1]}", wait_s=0.1, first_retry_s=0.02)
        trouble = ""
        async with asyncio.timeout(60):
            while not trouble:
                await look_up(registry, [framed()], [()])
                await asyncio.sleep(0.01)
                trouble = registry.trouble()
        with pytest.raises(NotReady, match="cannot be reached"):
            decode("interaction", framed(), (), registry)
        registry.close()


async def test_one_of_several_addresses_is_enough(server: RegistryServer) -> None:
    with registry_server(mood="hang") as hangs, registry_server(mood="500") as fails:
        urls = f"{hangs.url}, {fails.url},{server.url}"
        registry = ConfluentRegistry(urls, attempt_s=0.2, wait_s=30)
        await registry.answered(INTERACTION)
        assert registry.schema_of(INTERACTION) == schema_text("interaction")
        registry.close()


async def test_an_unknown_id_is_a_bad_record_and_is_asked_for_again_later(
    server: RegistryServer, registry: ConfluentRegistry
) -> None:
    await registry.answered(9)
    for _ in range(3):
        await look_up(registry, [framed(9)], [()])
        with pytest.raises(BadEvent) as refused:
            decode("interaction", framed(9), (), registry)
        assert refused.value.code == "unknown_schema"
    assert server.calls["/schemas/ids/9"] == 1
    assert registry.trouble() == ""
    server.schemas += ["{}"] * 5 + [schema_text("interaction")]
    registry._unknown.clear()  # as when its time is over
    await registry.answered(9)
    assert decode("interaction", framed(9), (), registry)[0]["item_id"] == "i"


@pytest.mark.parametrize("text", ["nonsense", "{}", '"null"', '{"type": "record"}', "[" * 100_000, '{"type": "array"}'])
async def test_a_registered_schema_that_is_none_is_a_bad_record(
    server: RegistryServer, registry: ConfluentRegistry, text: str
) -> None:
    server.schemas[0] = text
    await registry.answered(1)
    with pytest.raises(BadEvent) as refused:
        decode("interaction", framed(), (), registry)
    assert refused.value.code == "unknown_schema"


async def test_while_it_is_in_trouble_nobody_waits(server: RegistryServer, registry: ConfluentRegistry) -> None:
    server.mood = "500"
    await registry.ready({1})
    for n in range(2, 1_000):
        await registry.ready({n, "item"})  # 0.4 s each would be longer than a test may take
        with pytest.raises(NotReady):
            registry.schema_of(n)
    assert len(registry._asked) <= 256
    server.mood = "sound"
    await asyncio.wait_for(registry.answered(1), 30)


async def test_the_event_loop_goes_on_while_the_registry_hangs(server: RegistryServer, registry: ConfluentRegistry) -> None:
    server.mood = "hang"
    turns, waiting = 0, asyncio.create_task(registry.ready({1, "item"}))
    while not waiting.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 20
    before = time.perf_counter()
    with pytest.raises(NotReady):
        registry.schema_of(77)
    assert time.perf_counter() - before < 0.1, "no call waits"


async def test_many_threads_ask_for_one_schema_once(server: RegistryServer, registry: ConfluentRegistry) -> None:
    def ask() -> None:
        asyncio.run(registry.answered(1))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.schema_of(1) == schema_text("interaction")
    assert server.calls["/schemas/ids/1"] == 1


def test_a_registry_closed_while_it_connects_leaves_nothing_open_or_never_awaited(server: RegistryServer) -> None:
    for n in range(60):
        registry = ConfluentRegistry(server.url)
        for key in range(1, 6):
            with pytest.raises(NotReady):
                registry.schema_of(key)
        time.sleep(n % 30 / 1000)
        registry.close()
    gc.collect()  # a coroutine or a socket that was left warns now, and warnings are errors


async def test_no_proxy_of_the_environment_is_used(
    server: RegistryServer, registry: ConfluentRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:1" if name.lower() == "all_proxy" else "http://127.0.0.1:1")
    await registry.answered(1)
    assert registry.schema_of(1) == schema_text("interaction")


async def test_a_password_is_sent_and_never_said(server: RegistryServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    registry = ConfluentRegistry(server.url.replace("//", "//me:s%40cret@"), attempt_s=0.2, wait_s=0.4, first_retry_s=0.02)
    await registry.answered(1)
    assert server.logins == {"Basic bWU6c0BjcmV0"}
    said = []
    for n, mood in enumerate(FAILURES):
        server.mood = mood
        await registry.ready({100 + n})
        said.append(registry.trouble())
        with pytest.raises(NotReady) as refused:
            registry.schema_of(100 + n)
        said.append(refused.value.message)
    registry.close()
    server.released.set()
    assert not [text for text in (*said, caplog.text) if "s%40cret" in text or "s@cret" in text or "cret" in text]


@pytest.mark.parametrize(
    "url",
    ["registry:8081", "ftp://h", "http://", "http://me:cret@", "https://me:cret@h:port", "http://h,", "http://[::1", "mock://"],
)
def test_an_address_that_is_none_is_refused_without_what_it_holds(url: str) -> None:
    with pytest.raises(ConfigError, match="RIFFLE_REGISTRY_URL must be") as refused:
        ConfluentRegistry(url)
    assert "cret" not in str(refused.value)
    assert refused.value.__cause__ is None
