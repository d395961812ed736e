"""Whether a part answers that it is alive, against real servers."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from certificates import Authority
from conftest import free_port

from agents.processes import PartProcess, parts_of
from schemas.settings import Settings
from streams.embedded.process import Daemon, wait_until

HANGS = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def part(tmp_path: Path, address: str, pid: int = os.getpid()) -> PartProcess:
    daemon = Daemon("it", tmp_path / "pid", tmp_path / "log")
    daemon.record(pid)
    return PartProcess("worker", daemon, (), Settings(home=tmp_path), address, ())


@pytest.fixture
def status() -> list[int]:
    return [200]


@pytest.fixture
def server(status: list[int]) -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(status[0] if self.path == "/healthz" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.mark.parametrize(("code", "alive"), [(200, True), (503, False), (500, False)])
def test_a_part_is_alive_if_its_healthz_is_200(
    tmp_path: Path, server: HTTPServer, status: list[int], code: int, alive: bool
) -> None:
    status[0] = code
    assert part(tmp_path, f"http://127.0.0.1:{server.server_port}").answers() is alive


def test_over_tls_too_whatever_the_certificate(tmp_path: Path, server: HTTPServer) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Authority(tmp_path).sign(tmp_path / "server.pem", "elsewhere.example"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    assert part(tmp_path, f"https://127.0.0.1:{server.server_port}").answers() is True
    assert part(tmp_path, f"http://127.0.0.1:{server.server_port}").answers() is not True


def test_every_part_with_an_interface_is_asked_in_its_own_way(tmp_path: Path) -> None:
    plain = Settings(home=tmp_path)
    for settings, scheme in ((plain, "http"), (replace(plain, http_cert_file="server.pem"), "https")):
        parts = {made.name: made for made in parts_of(settings, {"worker": 0, "worker-2": 7001, "ranking": 7002, "encoder": 0})}
        found = {name: made.address for name, made in parts.items() if isinstance(made, PartProcess)}
        assert found.pop("encoder") == ""
        assert {address.partition(":")[0] for address in found.values()} == {scheme}
        assert len(set(found.values())) == 3


def test_what_says_nothing_about_the_process_is_no_answer(tmp_path: Path, server: HTTPServer) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        # the port is another program's
        assert part(tmp_path, f"http://127.0.0.1:{server.server_port}", other.pid).answers() is None
        other.communicate(b"\n")
    # the machine has no longer this address (RFC 5737), and a name may take long to be looked up
    for host in ("192.0.2.1", "worker.example"):
        assert part(tmp_path, f"http://{host}:{server.server_port}").answers() is None


def test_one_that_is_stopped_or_gone_does_not_answer(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", HANGS, str(port)], stderr=subprocess.DEVNULL)
    try:
        found = part(tmp_path, f"http://127.0.0.1:{port}", process.pid)
        assert wait_until(lambda: found.answers() is True, 30)
        process.send_signal(signal.SIGSTOP)
        assert found.answers() is False
        process.send_signal(signal.SIGCONT)
        assert wait_until(lambda: found.answers() is True, 30)
    finally:
        process.kill()
        process.wait()
    assert found.answers() is None, "it has ended, as its pid says"


def test_a_part_without_an_interface_is_not_asked(tmp_path: Path) -> None:
    assert part(tmp_path, "").answers() is None
