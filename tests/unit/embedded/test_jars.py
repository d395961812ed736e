"""The broker's jars are fetched once, whole, however many processes want them."""

from __future__ import annotations

import os
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schemas.errors import NotReady
from streams.embedded.jars import class_path, has_class_path


class Maven:
    """Stands in for jgo, which takes every file that it finds for a whole one and fails if another process writes the same."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.fetches = 0
        self._busy = threading.Lock()

    def build(self, endpoint: str, cache_dir: Path) -> types.SimpleNamespace:
        assert endpoint
        assert not cache_dir.exists()
        assert self._busy.acquire(blocking=False), "two fetch at once"
        try:
            self.fetches += 1
            jar = Path(os.environ["M2_REPO"]) / "kafka.jar"
            assert not jar.exists(), "a file that was left behind counts as whole"
            jar.parent.mkdir(parents=True)
            jar.write_bytes(b"half")
            if self.fails:
                message = "connection lost"
                raise RuntimeError(message)
            jar.write_bytes(b"whole")
            return types.SimpleNamespace(all_jars=[jar])
        finally:
            self._busy.release()


def maven(monkeypatch: pytest.MonkeyPatch, made: Maven) -> Maven:
    for name in ("JAVA_HOME", "PATH", "M2_REPO"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    module = types.ModuleType("jgo")
    module.build = made.build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jgo", module)
    return made


def test_those_who_want_the_jars_at_once_fetch_them_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = maven(monkeypatch, Maven())
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(class_path, [tmp_path / "cache"] * 16))
    assert made.fetches == 1
    assert [Path(path).read_bytes() for path in paths] == [b"whole"]


def test_what_a_failed_fetch_left_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    maven(monkeypatch, Maven(fails=True))
    with pytest.raises(NotReady, match="connection lost"):
        class_path(tmp_path)
    assert not has_class_path(tmp_path)
    maven(monkeypatch, Maven())
    assert Path(class_path(tmp_path)).read_bytes() == b"whole"
    assert has_class_path(tmp_path)


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    maven(monkeypatch, Maven())
    (tmp_path / "file").write_text("")
    with pytest.raises(NotReady, match="RIFFLE_CACHE"):
        class_path(tmp_path / "file" / "cache")
