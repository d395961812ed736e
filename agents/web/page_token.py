"""The token of a home, with which the web page reads and writes."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from schemas.settings import Settings

__all__ = ["page_token", "page_url"]

TOKEN_BYTES = 24


def page_token(settings: Settings) -> str:
    """Return the token of a home, which is created at the first call, readable by its owner only."""
    path = _path(settings)
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        pass
    settings.make_home()
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.touch(mode=0o600)
    try:
        new.write_text(secrets.token_urlsafe(TOKEN_BYTES) + "\n", encoding="ascii")
        with contextlib.suppress(FileExistsError):  # another process was faster, and its token counts
            os.link(new, path)
    finally:
        new.unlink()
    return path.read_text(encoding="ascii").strip()


def page_url(settings: Settings) -> str:
    """Return the page's address with the token in the fragment, which browsers do not send."""
    return f"{settings.web}/#token={page_token(settings)}"


def _path(settings: Settings) -> Path:
    return settings.home / "page-token"
