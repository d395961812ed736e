"""The files of the web page, from memory. They hold no data of the worker."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from aiohttp import web

from schemas.errors import BadRequest

__all__ = ["HEADERS", "INDEX", "PageFile", "file_response", "page_files", "versioned"]

INDEX = "index.html"
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob:",  # pictures that were fetched with the token
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # checked for changes at each use, so that a new version of Riffle shows its own page
    "Cache-Control": "no-cache",
}
"Headers of every file. Nothing but this worker's own files can run, and text cannot become markup (trusted types)."


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file, with its MIME type and its entity tag."""

    body: bytes
    type: str
    etag: str

    @classmethod
    def of(cls, body: bytes, kind: str) -> PageFile:
        """Return a file of this MIME type, with a tag that follows from its bytes."""
        return cls(body, kind, hashlib.sha256(body).hexdigest()[:32])


@functools.cache
def page_files() -> Mapping[str, PageFile]:
    """Return the page's files by name; read once."""
    found = {}
    for entry in resources.files("agents.web").joinpath("page").iterdir():
        suffix = entry.name.rpartition(".")[2]
        if suffix in TYPES:
            found[entry.name] = PageFile.of(entry.read_bytes(), TYPES[suffix])
    return found


def file_response(request: web.Request, name: str) -> web.Response:
    """Return a file of the page, or 304 if the client has it.

    Raises:
        BadRequest: code `not_found`.
    """
    file = page_files().get(name)
    if file is None:
        raise BadRequest("not_found", "the page has no such file", "name")
    return versioned(request, file)


def versioned(request: web.Request, file: PageFile) -> web.Response:
    """Return a file, or 304 if the client has it."""
    headers = {**HEADERS, "ETag": f'"{file.etag}"'}
    try:
        known = {tag.value for tag in request.if_none_match or ()}
    except ValueError:
        known = set()  # unreadable, which is no reason to refuse
    if known & {file.etag, "*"}:
        return web.Response(status=304, headers=headers)
    return web.Response(body=file.body, headers={**headers, "Content-Type": file.type})
