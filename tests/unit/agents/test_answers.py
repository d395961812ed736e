"""Whether a part answers that it is alive, against real servers."""

from __future__ import annotations

import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from certificates import Authority
from conftest import free_port

from agents.processes import PartProcess
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


def part(tmp_path: Path, address: str) -> PartProcess:
    return PartProcess("worker", Daemon("it", tmp_path / "pid", tmp_path / "log"), (), Settings(home=tmp_path), address, ())


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
    assert part(tmp_path, f"http://127.0.0.1:{server.server_port}").answers() is False


def test_one_that_is_stopped_or_gone_does_not_answer(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", HANGS, str(port)], stderr=subprocess.DEVNULL)
    try:
        found = part(tmp_path, f"http://127.0.0.1:{port}")
        assert wait_until(lambda: found.answers() is True, 30)
        process.send_signal(signal.SIGSTOP)
        assert found.answers() is False
        process.send_signal(signal.SIGCONT)
        assert wait_until(lambda: found.answers() is True, 30)
    finally:
        process.kill()
        process.wait()
    assert found.answers() is False


def test_a_part_without_an_interface_is_not_asked(tmp_path: Path) -> None:
    assert part(tmp_path, "").answers() is None
