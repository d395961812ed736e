"""Images by URL: fetched once, within limits, from public hosts only; after a failure the item just lacks its image."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from schemas.records import Item
from training.encoders.addresses import is_public
from training.encoders.cache import encode_items
from training.encoders.image import ImageEncoder
from training.encoders.live import LiveEncoders
from training.encoders.web_images import Limits, WebImages

HOST = "127.0.0.1"
SMALL = Limits(bytes=20_000, seconds=1.0, parallel=4)


def png(colour: tuple[int, int, int] = (200, 20, 20)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (50, 80), colour).save(out, "PNG")
    return out.getvalue()


def missing(handler: BaseHTTPRequestHandler) -> None:
    handler.send_error(404)


class Site:
    """A real server that counts requests by path."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked[self.path] += 1
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    site.pages.get(self.path, missing)(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer((HOST, 0), Handler)
        self.port = self.server.server_address[1]

    def url(self, path: str, host: str = HOST) -> str:
        return f"http://{host}:{self.port}{path}"

    def serve(self, path: str, content: bytes, *, length: bool = True, status: int = 200) -> str:
        def page(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            if length:
                handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)

        self.pages[path] = page
        return self.url(path)

    def lead(self, path: str, location: str) -> str:
        def page(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("Location", location)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        self.pages[path] = page
        return self.url(path)

    def drip(self, path: str, content: bytes) -> str:
        def page(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.end_headers()
            for byte in content:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(0.05)

        self.pages[path] = page
        return self.url(path)


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    thread = Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def web(tmp_path: Path) -> WebImages:
    return WebImages(tmp_path / "images", f"media.internal, {HOST}", SMALL)


def test_an_image_by_url_has_the_vector_of_the_same_file(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    items = [
        Item("file", image=str(tmp_path / "a.png")),
        Item("web", image=site.serve("/a.png", png())),
        Item("gone", image=site.url("/gone.png")),
    ]
    encoder = ImageEncoder(WebImages(tmp_path / "images", HOST))
    vectors, present = encode_items(items, encoder, tmp_path / "cache")
    assert present.tolist() == [True, True, False]
    assert np.array_equal(vectors[0], vectors[1])
    assert encoder.counters == {"fetched": 1, "http_404": 1}
    live = LiveEncoders(tmp_path / "cache", image_hosts=HOST)
    marks = live.fingerprints([Item("x", image=items[0].image), Item("y", image=items[1].image), Item("z")])
    assert marks[0] == marks[1] != marks[2]
    (_, image), (_, none) = live.encode([items[1], items[2]])
    assert np.array_equal(image.values, vectors[0].astype(np.float16))  # type: ignore[arg-type]
    assert none.values is None
    assert live.counters == {"fetched": 1, "http_404": 1}


def test_what_is_here_is_not_asked_for_and_what_is_old_is_asked_for_again(site: Site, tmp_path: Path) -> None:
    now = [1_000_000.0]
    web = WebImages(tmp_path, HOST, SMALL, clock=lambda: now[0])
    url = site.serve("/a.png", png())
    for _ in range(3):
        web.fetch([url, url])
    again = WebImages(tmp_path, HOST, SMALL, clock=lambda: now[0])
    again.fetch([url])
    assert site.asked["/a.png"] == 1
    now[0] += SMALL.kept_s + 1
    site.serve("/a.png", png((1, 2, 3)))
    again.fetch([url])
    assert again.content(url) == png((1, 2, 3))
    now[0] += SMALL.kept_s + 1
    site.pages.clear()
    again.fetch([url])
    assert again.content(url) == png((1, 2, 3)), "the old one stays until there is another"
    assert again.counters == {"fetched": 1, "http_404": 1}


@pytest.mark.parametrize("length", [True, False])
def test_what_is_too_large_is_left_out_whether_it_says_so_or_not(site: Site, web: WebImages, length: bool) -> None:
    web.fetch([site.serve("/large", png() + bytes(SMALL.bytes), length=length)])
    assert web.counters == {"too_large": 1}


def test_what_is_no_image_is_left_out(site: Site, web: WebImages) -> None:
    urls = [site.serve("/page", b"<html>"), site.serve("/empty", b""), site.serve("/broken", png(), status=500)]
    urls += [
        "http://",
        "http://user:secret@example.org/a.png",
        "http://[::bad/a.png",
        "s3://bucket/a.png",
        "file:///etc/passwd",
    ]
    web.fetch(urls)
    assert web.counters == {"not_an_image": 2, "server_error": 1, "bad_url": 3, "scheme": 2}
    assert all(web.content(url) is None for url in urls)


def test_one_that_is_slow_costs_its_seconds_and_not_more(site: Site, web: WebImages) -> None:
    urls = [site.drip(f"/slow{n}", png()) for n in range(SMALL.parallel)]
    quick = site.serve("/quick", png())
    started = time.monotonic()
    web.fetch([*urls, quick])
    assert time.monotonic() - started < 3 * SMALL.seconds
    assert web.counters == {"timeout": SMALL.parallel, "fetched": 1}, "who waits for the slow ones has its own time"


def test_hosts_that_are_not_public_are_not_connected_to(site: Site, tmp_path: Path) -> None:
    site.serve("/a.png", png())
    hosts = (
        HOST,
        "localhost",
        "127.1",
        "0177.0.0.1",
        "2130706433",
        "0x7f000001",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "127.0.0.1.",
    )
    web = WebImages(tmp_path, "", SMALL)
    web.fetch([site.url("/a.png", host) for host in hosts])
    assert not site.asked
    assert web.counters["not_public"] + web.counters["unreachable"] + web.counters["bad_url"] == len(hosts)
    assert web.counters["not_public"] >= 7
    allowed = WebImages(tmp_path, "LOCALHOST", SMALL)
    allowed.fetch([site.url("/a.png", "localhost")])
    assert allowed.counters == {"fetched": 1}


def test_a_redirect_is_followed_within_the_same_bounds(site: Site, tmp_path: Path) -> None:
    image = site.serve("/a.png", png())
    web = WebImages(tmp_path, "localhost", SMALL)

    def lead(path: str, location: str) -> str:
        site.lead(path, location)
        return site.url(path, "localhost")

    web.fetch([lead("/good", "/a.png")])
    assert web.counters == {"fetched": 1}
    web.fetch([lead("/inside", image)])
    assert web.counters["not_public"] == 1, "only the first host is a named one"
    web.fetch([lead("/file", "file:///etc/passwd"), lead("/ftp", "ftp://example.org/a.png")])
    assert web.counters["scheme"] == 2
    web.fetch([lead("/round", "/round")])
    assert web.counters["redirects"] == 1
    assert site.asked["/round"] == SMALL.redirects + 1
    assert site.asked["/a.png"] == 1


def test_a_host_that_fails_several_times_in_a_row_is_given_up_for_a_while(site: Site, tmp_path: Path) -> None:
    now = [1_000_000.0]
    web = WebImages(tmp_path, f"localhost,{HOST}", Limits(misses=3, parallel=1), clock=lambda: now[0])
    broken = [site.serve(f"/{n}", b"", status=503) for n in range(10)]
    fine = site.serve("/a.png", png()).replace(HOST, "localhost")
    web.fetch([*broken[:2], site.url("/gone"), *broken[2:], fine])
    assert web.counters == {"server_error": 5, "http_404": 1, "given_up": 5, "fetched": 1}, "an answer of its own counts anew"
    web.fetch(broken)
    assert site.asked.total() == 7, "neither is what failed asked for again"
    now[0] += 601
    web.fetch(broken[:1])
    assert site.asked.total() == 8


def test_without_a_network_all_hosts_are_given_up(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind((HOST, 0))
        port = closed.getsockname()[1]
    hosts = [f"127.0.1.{n}" for n in range(1, 100)]
    web = WebImages(tmp_path, ",".join(hosts), Limits(all_misses=10, parallel=2))
    web.fetch([f"http://{host}:{port}/a.png" for host in hosts])
    assert web.counters["unreachable"] <= 11
    assert web.counters["unreachable"] + web.counters["given_up"] == len(hosts)


def test_switched_off_nothing_is_asked_for_and_what_is_here_stays(site: Site, web: WebImages, tmp_path: Path) -> None:
    url = site.serve("/a.png", png())
    web.fetch([url])
    off = WebImages(tmp_path / "images", "off")
    off.fetch([url, site.serve("/b.png", png())])
    assert off.content(url) == png()
    assert not off.counters
    assert site.asked.total() == 1


@given(st.ip_addresses(v=4))
def test_an_address_in_another_form_is_as_public_as_the_plain_one(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    mapped, nat64 = (ipaddress.IPv6Address(base | number) for base in (0xFFFF << 32, 0x64FF9B << 96))
    sixtofour = ipaddress.IPv6Address((0x2002 << 112) | (number << 80))
    assert {is_public(str(form)) for form in (mapped, nat64, sixtofour)} == {is_public(str(address))}


NEARBY = """fec0::1 3fff::1 168.63.129.16
127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 240.0.0.1
255.255.255.255 :: ::1 fe80::1 fe80::1%eth0 fd00::1 ff02::1 2001:0:1::1 nothing 127.1"""


@pytest.mark.parametrize("address", NEARBY.split())
def test_addresses_of_machines_nearby_are_not_public(address: str) -> None:
    assert not is_public(address)
    assert is_public("1.1.1.1")
    assert is_public("2606:4700::1111")
