"""Settings of HTTP that cannot work are refused before anything is started, and named by doctor."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from streams.embedded.process import riffle


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RIFFLE_HTTP_TOKENS_FILE": "{home}/nowhere"}, ("RIFFLE_HTTP_TOKENS_FILE", "nowhere")),
        ({"RIFFLE_HTTP_CERT_FILE": "{home}/nowhere.pem"}, ("RIFFLE_HTTP_CERT_FILE", "nowhere.pem")),
        ({"RIFFLE_HTTP_CERT_FILE": "{home}/text.pem"}, ("RIFFLE_HTTP_CERT_FILE", "text.pem")),
        ({"RIFFLE_WEB_HOST": "203.0.113.1"}, ("RIFFLE_WEB_HOST=203.0.113.1", "RIFFLE_HTTP_TOKENS_FILE")),
    ],
)
@pytest.mark.parametrize("command", ["up", "doctor"])
def test_it_is_refused_at_once(tmp_path: Path, command: str, variables: dict[str, str], said: tuple[str, ...]) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    given = {name: value.format(home=tmp_path) for name, value in variables.items()}
    environment = {**os.environ, "RIFFLE_HOME": str(tmp_path / "home"), "RIFFLE_WEB_PORT": "1", **given}
    done = subprocess.run(riffle(command), env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert all(part in done.stdout + done.stderr for part in said), done.stdout + done.stderr
    assert not list((tmp_path / "home").rglob("*.pid")), "nothing was started"
