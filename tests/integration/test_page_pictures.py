"""Pictures of the web page in a real browser, where the interface asks for a token.

The browser is Debian's `chromium`, or what RIFFLE_CHROMIUM names; without one these tests are skipped.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient
from fakes import FakeService
from PIL import Image
from playwright.async_api import async_playwright
from serving import Served

from agents.web.access import Gate
from agents.web.access import Page as Pages
from agents.web.routes import build_app
from agents.web.tokens import Scope, line_of, new_token
from schemas.http_settings import HttpSettings
from schemas.records import Item

CHROMIUM = os.environ.get("RIFFLE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium: install Debian's chromium, or name one in RIFFLE_CHROMIUM"),
]
SHOW = """async (item_id) => {
  const { picture } = await import("/page/charts.js");
  const shown = picture({ title: "A print", has_image: true }, item_id);
  document.body.prepend(shown);
  for (;;) {
    const img = shown.querySelector("img");
    if (!img) return "tile";
    if (img.complete && img.naturalWidth) return `${new URL(img.src).protocol}${img.naturalWidth}`;
    await new Promise((done) => setTimeout(done, 20));
  }
}"""
"Shows the picture of an item; returns where it came from and its width, or `tile`."


async def test_a_picture_is_fetched_with_the_token_and_nothing_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (17, 17), "red").save(tmp_path / "i.png")
    token = new_token()
    (tmp_path / "tokens").write_text(line_of("page", [Scope.ITEMS, Scope.OPERATE, Scope.USERS], "-", token))
    service = FakeService(catalogue={"i": Item("i", image=str(tmp_path / "i.png")), "none": Item("none")})
    gate = Gate(HttpSettings(tokens_file=str(tmp_path / "tokens")), service.metrics, Pages("of the home"))
    async with TestClient(Served(build_app(service, gate=gate), service.metrics)) as client, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = await browser.new_page()
            complaints: list[str] = []
            page.on("console", lambda said: complaints.append(said.text) if "Security Policy" in said.text else None)
            await page.goto(f"{client.make_url('/')}#token={token}")
            assert await page.evaluate(SHOW, "i") == "blob:17"
            assert await page.evaluate(SHOW, "none") == "tile"
            assert complaints == []
        finally:
            await browser.close()
    assert list(service.metrics.http_refused.values()) == []
