"""A tracking server whose answer never ends delays nothing."""

from __future__ import annotations

import socketserver
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest

from models.release.tracking import Tracker, Tracking
from schemas.errors import NotReady


@contextmanager
def answering(status: str, part: bytes, wait_s: float) -> Iterator[str]:
    """Address of a server that sends `part` repeatedly, `wait_s` apart, until its client disconnects."""

    class Endless(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)
            try:
                self.request.sendall(f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\r\n".encode())
                while True:
                    self.request.sendall(part)
                    time.sleep(wait_s)
            except OSError:
                pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Endless) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("status", ["200 OK", "500 Broken"])
@pytest.mark.parametrize(
    ("part", "wait_s", "timeout_s", "message"),
    [(b" " * (1 << 20), 0.0, 60.0, "larger than 8 MiB"), (b" ", 0.02, 0.1, "did not arrive whole")],
)
def test_an_answer_without_an_end_is_given_up(status: str, part: bytes, wait_s: float, timeout_s: float, message: str) -> None:
    with answering(status, part, wait_s) as address, pytest.raises(NotReady) as failed:
        Tracker(Tracking(address, timeout_s=timeout_s)).check()
    assert message in str(failed.value) if status.startswith("200") else "HTTP 500" in str(failed.value)
