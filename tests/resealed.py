"""Releases whose files were changed after they were written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from models.release.serving import prepare
from schemas.errors import ReleaseRejected


def reseal(folder: Path, **changes: Any) -> Path:
    """Rewrite the manifest to match the changed files, as anyone with write access to the folder could."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    return folder


def refused(folder: Path) -> str:
    """Return the code with which the release is refused."""
    with pytest.raises(ReleaseRejected) as caught:
        prepare(folder)
    return caught.value.code
