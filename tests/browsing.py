"""The web page of a running worker in headless Chromium: Debian's `chromium`, or what RIFFLE_CHROMIUM names."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from playwright.async_api import Browser, Page, async_playwright, expect

from agents.web.page_token import page_token
from schemas.settings import Settings

__all__ = ["CHROMIUM", "MISSING", "PATIENCE_MS", "Watched", "watching"]

CHROMIUM = os.environ.get("RIFFLE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""
MISSING = "there is no Chromium: install Debian's chromium, or name one in RIFFLE_CHROMIUM"
PATIENCE_MS = 10_000


@dataclass
class Watched:
    """A worker with data, a browser, and what the browser complained of."""

    settings: Settings
    browser: Browser
    http: aiohttp.ClientSession
    complaints: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def page(self, path: str, *, token: bool = True, **context: Any) -> AsyncIterator[Page]:
        """The page at `path`, in a browser context of its own."""
        given = await self.browser.new_context(**context)
        page = await given.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda said: self.complaints.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(self.settings.web) else self.complaints.append(asked.url))
        if token:
            await page.goto(f"{self.settings.web}/#token={page_token(self.settings)}")
            await expect(page.locator("#token")).to_have_text("Changes allowed")
        await page.goto(f"{self.settings.web}/{path}")
        try:
            yield page
        finally:
            await given.close()

    async def get(self, path: str) -> Any:
        async with self.http.get(path) as response:
            assert response.status == 200, await response.text()
            return await response.json()


@asynccontextmanager
async def watching(settings: Settings) -> AsyncIterator[Watched]:
    """A browser for the page of a worker. At the end it must have complained of nothing."""
    async with async_playwright() as playwright, aiohttp.ClientSession(settings.web) as http:
        # --no-sandbox because tests may run as root
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            found = Watched(settings, browser, http)
            yield found
            assert found.complaints == [], "no error, no violation of the policy, nothing from elsewhere"
        finally:
            await browser.close()
