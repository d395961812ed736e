"""Images that a catalogue refers to by URL: fetched once, within limits, and stored as files.

Only http and https, and only public or named hosts, are allowed. Bytes, seconds and requests are limited. Images that cannot be
fetched are counted by reason, and their items are treated as having none.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from yarl import URL

from models.dataset.images import begins_as_image
from training.encoders.addresses import NotPublic, PublicResolver

__all__ = ["OFF", "Limits", "WebImages"]

log = logging.getLogger(__name__)

OFF = "off"
CHUNK = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = {"User-Agent": "riffle-images", "Accept": "image/*", "Accept-Encoding": "identity"}
MISSES = ("timeout", "unreachable", "server_error")
"Failures that concern the host rather than the image."
ANY_HOST = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on fetching."""

    bytes: int = 10 << 20
    "Largest size of one image, bytes."
    seconds: float = 5.0
    "Longest time for one image, seconds, from the host lookup to the last byte, redirects included."
    parallel: int = 8
    "Number of images fetched at once."
    redirects: int = 3
    "Maximum number of redirects for one image."
    misses: int = 5
    "Number of consecutive failures after which a host is given up."
    all_misses: int = 25
    "Number of consecutive failures over all hosts after which every host is given up, because the network is down."
    given_up_s: float = 600.0
    "Seconds until a host that was given up, or an image that failed, is tried again."
    kept_s: float = 7 * 86_400.0
    "Seconds until an image is fetched again; until that succeeds, the old one is used."


STANDARD = Limits()


class _Failed(Exception):
    """Fetching failed; holds the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WebImages:
    """Files of fetched images in a folder, named by the URL's sha256. Must not be called from a running event loop."""

    def __init__(
        self, folder: Path, hosts: str = "", limits: Limits = STANDARD, clock: Callable[[], float] = time.time
    ) -> None:
        """`hosts`: comma-separated names whose addresses need not be public; `off` disables fetching."""
        self._folder = folder
        self._off = hosts.strip() == OFF
        self._allowed = frozenset(host.strip().lower() for host in hosts.split(",") if host.strip())
        self._limits = limits
        self._clock = clock
        self._failed: dict[str, float] = {}
        "By URL: time before which it is not requested again."
        self._misses: Counter[str] = Counter()
        "Number of consecutive failures by host; over all hosts under ANY_HOST."
        self._given_up: dict[str, float] = {}
        self.counters: Counter[str] = Counter()
        "`fetched`, and failures by reason: `not_public`, `http_404`, `too_large`, `timeout`, `not_an_image`, `given_up`, …"

    def content(self, url: str) -> bytes | None:
        """Return the most recently fetched image; None when there is none. Fetches nothing."""
        try:
            return self._path(url).read_bytes()
        except OSError:
            return None

    def fetch(self, urls: Iterable[str], progress: Callable[[int, int], None] | None = None) -> None:
        """Fetch missing and outdated images, as far as possible. Current ones are not requested.

        Raises:
            OSError: a file cannot be written.
        """
        now = self._clock()
        self._failed = {url: until for url, until in self._failed.items() if now < until}
        self._given_up = {host: until for host, until in self._given_up.items() if now < until}
        todo = [] if self._off else [url for url in dict.fromkeys(urls) if self._wanted(url)]
        if not todo:
            return
        before = self.counters.copy()
        asyncio.run(self._fetch_all(todo, progress or (lambda done, of: None)))  # noqa: ARG005
        lost = self.counters - before
        del lost["fetched"]
        if lost:
            reasons = ", ".join(f"{reason} {n}" for reason, n in lost.most_common())
            log.warning("%d of %d images by URL could not be fetched: %s", lost.total(), len(todo), reasons)

    def _path(self, url: str) -> Path:
        name = hashlib.sha256(url.encode(errors="replace")).hexdigest()
        return self._folder / name[:2] / name[2:]

    def _wanted(self, url: str) -> bool:
        if self._clock() < self._failed.get(url, 0.0):
            return False
        try:
            return self._clock() - self._path(url).stat().st_mtime > self._limits.kept_s
        except OSError:
            return True

    async def _fetch_all(self, urls: list[str], progress: Callable[[int, int], None]) -> None:
        resolver, limits = PublicResolver(self._allowed), self._limits
        # with a connection limit, waiting for a free connection would count towards the time of an image
        connector = aiohttp.TCPConnector(limit=0, resolver=resolver)
        timeout = aiohttp.ClientTimeout(total=limits.seconds)
        waiting, done = iter(urls), 0
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=HEADERS, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:

            async def work(waiting: Iterator[str]) -> None:
                nonlocal done
                for url in waiting:
                    await self._fetch(url, session, resolver)
                    done += 1
                    progress(done, len(urls))

            await asyncio.gather(*(work(waiting) for _ in range(min(limits.parallel, len(urls)))))

    async def _fetch(self, url: str, session: aiohttp.ClientSession, resolver: PublicResolver) -> None:
        host = ""
        try:
            target = _target(url)
            host = target.raw_host or ""
            if any(self._clock() < self._given_up.get(name, 0.0) for name in (host, ANY_HOST)):
                raise _Failed("given_up")
            content = await self._image(target, session, resolver)
        except _Failed as failed:
            self.counters[failed.reason] += 1
            self._failed[url] = self._clock() + self._limits.given_up_s
            if failed.reason != "given_up":
                self._heard(host, missed=failed.reason in MISSES)
        else:
            self._keep(url, content)
            self.counters["fetched"] += 1
            self._heard(host, missed=False)

    def _heard(self, host: str, *, missed: bool) -> None:
        for name, most in ((host, self._limits.misses), (ANY_HOST, self._limits.all_misses)):
            misses = self._misses.pop(name, 0) + 1
            if missed and misses < most:
                self._misses[name] = misses
            elif missed:
                self._given_up[name] = self._clock() + self._limits.given_up_s
                log.warning("images of %s are not requested for now: %d failed in a row", name or "all hosts", most)

    async def _image(self, target: URL, session: aiohttp.ClientSession, resolver: PublicResolver) -> bytes:
        try:
            async with asyncio.timeout(self._limits.seconds):
                for _ in range(self._limits.redirects + 1):
                    resolver.check_literal(target.raw_host or "")
                    async with session.get(target, allow_redirects=False) as response:
                        if response.status not in REDIRECTS:
                            return await self._read(response)
                        target = _redirected(target, response.headers.get("Location", ""))
        except NotPublic as exc:
            raise _Failed("not_public") from exc
        except TimeoutError as exc:
            raise _Failed("timeout") from exc
        except (aiohttp.InvalidURL, ValueError) as exc:
            raise _Failed("bad_url") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise _Failed("unreachable") from exc
        raise _Failed("redirects")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status != 200:
            raise _Failed("server_error" if response.status >= 500 else f"http_{response.status}")
        most = self._limits.bytes
        if (response.content_length or 0) > most:
            raise _Failed("too_large")
        parts, size = [], 0
        async for part in response.content.iter_chunked(CHUNK):
            parts.append(part)
            size += len(part)
            if size > most:
                raise _Failed("too_large")
        content = b"".join(parts)
        if not begins_as_image(content):
            raise _Failed("not_an_image")
        return content

    def _keep(self, url: str, content: bytes) -> None:
        path = self._path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}-{os.getpid()}.part")
        part.write_bytes(content)
        now = self._clock()
        os.utime(part, (now, now))
        part.replace(path)


def _target(url: str) -> URL:
    try:
        target = URL(url)
    except ValueError as exc:
        raise _Failed("bad_url") from exc
    if target.scheme not in {"http", "https"}:
        raise _Failed("scheme")
    if not target.raw_host or target.user is not None:
        raise _Failed("bad_url")
    return target


def _redirected(before: URL, location: str) -> URL:
    """Target of a redirect. Allows https, and http only from http."""
    try:
        target = _target(str(before.join(URL(location))))
    except ValueError as exc:
        raise _Failed("bad_url") from exc
    if before.scheme == "https" != target.scheme:
        raise _Failed("scheme")
    return target
