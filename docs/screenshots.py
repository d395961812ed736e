"""Take the pictures of the web page and of the terminal from a running worker with data.

Needs Chromium, and the development packages.

Example: RIFFLE_HOME=.riffle .venv/bin/python docs/screenshots.py u0421 p0892 --all
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.text import Text

from agents.web.page_token import page_token
from schemas.settings import Settings

IMAGES = Path(__file__).with_name("images")
TERMINAL = Path(__file__).with_name("slate.svg")
COLUMNS = 112
COLOURS = 256
"Number of colours of a picture, so that it is small."
SETTLED_MS = 2_500
WIDE, PHONE = {"width": 1360, "height": 850}, {"width": 390, "height": 844}


def main() -> None:
    """Write `slate.svg` and `page.png`, the user's slate after a like, and with `--all` one picture of each view."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("user", help="a user with some events, to whom a like is added")
    parser.add_argument("item")
    parser.add_argument("--all", action="store_true", help="every view, and some dark and narrow")
    parser.add_argument("--out", type=Path, default=IMAGES)
    asked = parser.parse_args()
    settings, chromium = Settings.from_env(), os.environ.get("RIFFLE_CHROMIUM") or shutil.which("chromium")
    asked.out.mkdir(parents=True, exist_ok=True)
    terminal(settings, asked.user, asked.item)
    with sync_playwright() as playwright:
        # --no-sandbox because it may run as root in a container
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        take(browser, settings, f"#/user/{asked.user}", asked.out / "page.png", act=True)
        if asked.all:
            for name, path in {
                "live": "#/live",
                "why": f"#/why/{asked.user}",
                "pipeline": f"#/pipeline/{asked.user}",
                "items": f"#/items/{asked.item}",
                "models": "#/models",
                "health": "#/health",
            }.items():
                take(browser, settings, path, asked.out / f"{name}.png")
            take(browser, settings, f"#/user/{asked.user}", asked.out / "compare.png", compare=True)
            take(browser, settings, "#/live", asked.out / "live-dark.png", scheme="dark")
            take(browser, settings, f"#/why/{asked.user}", asked.out / "why-dark.png", scheme="dark")
            take(browser, settings, "#/pipeline", asked.out / "pipeline-dark.png", scheme="dark")
            take(browser, settings, "#/live", asked.out / "live-phone.png", size=PHONE)
            take(browser, settings, f"#/user/{asked.user}", asked.out / "user-phone.png", size=PHONE, scheme="dark")
        browser.close()


def terminal(settings: Settings, user: str, item: str) -> None:
    """Write what a terminal shows of a slate, of a like, and of the slate after it."""
    screen = Console(record=True, width=COLUMNS, force_terminal=True, file=io.StringIO())
    ask = ["riffle", "ask", user, "-k", "5"]

    def shown(command: list[str]) -> None:
        screen.print(f"[bold]$ {' '.join(command)}[/]")
        environment = {**os.environ, "COLUMNS": str(COLUMNS), "FORCE_COLOR": "1"}
        program = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
        ran = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
        screen.print(Text.from_ansi(ran.stdout))

    shown(ask)
    body = f'{{"user_id": "{user}", "item_id": "{item}", "action": "like"}}'
    screen.print(f"[bold]$ curl -X POST {settings.web.removeprefix('http://')}/v1/events -d '{body}'[/]")
    posted = urllib.request.Request(f"{settings.web}/v1/events", body.encode())
    with urllib.request.urlopen(posted) as answer:
        screen.print(Text(answer.read().decode()))
    screen.print()
    shown(ask)
    TERMINAL.write_text(screen.export_svg(title="riffle", unique_id="slate"), encoding="utf-8")


def take(
    browser: Browser,
    settings: Settings,
    path: str,
    to: Path,
    *,
    act: bool = False,
    compare: bool = False,
    scheme: str = "light",
    size: dict[str, int] = WIDE,
) -> None:
    """Take one picture; with `act`, after a like of the third item of the slate; with `compare`, of two releases."""
    context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{settings.web}/#token={page_token(settings)}")
    page.goto(f"{settings.web}/{path}")
    page.wait_for_timeout(SETTLED_MS)
    if act:
        page.locator(".card").nth(2).get_by_role("button", name="Like").click()
        page.locator(".took b").wait_for()
        page.mouse.move(0, 0)
        page.wait_for_timeout(SETTLED_MS)
    if compare:
        page.get_by_label("Release to compare with").select_option("none")
        page.locator(".ranking").last.scroll_into_view_if_needed()
        page.wait_for_timeout(SETTLED_MS)
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(to, optimize=True)
    context.close()


if __name__ == "__main__":
    main()
