"""A worker is refused in one sentence where another one runs."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import pytest
from conftest import free_port

from agents.partitions.ownership import require_free
from schemas.errors import NotReady
from schemas.settings import Settings
from streams.embedded.process import serving


def test_a_home_with_a_worker_and_a_taken_port_are_named(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, web_port=free_port()).resolved()
    require_free(settings)
    serving(settings).record(os.getpid(), "http://127.0.0.1:7")
    with (settings.data_dir / "tables" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(NotReady) as refused:
            require_free(settings)
    assert f"process {os.getpid()}, http://127.0.0.1:7" in refused.value.message
    assert "riffle up --workers 2" in refused.value.message
    require_free(settings)
    with socket.create_server(("127.0.0.1", settings.web_port)), pytest.raises(NotReady, match="RIFFLE_WEB_PORT"):
        require_free(settings)
    require_free(settings)
