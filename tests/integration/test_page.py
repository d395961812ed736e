"""The web page in a real browser, on a running worker: it shows what the interface answers, and a click changes a slate.

The browser is Debian's `chromium`, or what RIFFLE_CHROMIUM names; without one these tests are skipped.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import pytest
from aiokafka import AIOKafkaProducer
from browsing import CHROMIUM, MISSING, PATIENCE_MS, Watched, watching
from playwright.async_api import Page, Route, expect

from agents.web.page_token import page_token
from schemas.kernels import partition_of
from schemas.records import Interaction, Item
from schemas.settings import Settings
from schemas.trainings import TrainingProgress
from streams.kafka.produce import produce_events, produce_items
from streams.kafka.trainings import Announcer

if TYPE_CHECKING:
    from training.release.learned import Learned

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not CHROMIUM, reason=MISSING),
]

HOSTILE = '<img src=x onerror="document.title=1">"\'&amp;</script><script>document.title=1</script>'
TITLES = {"i07": HOSTILE}
VIEWS = ("#/user/ann", "#/live", "#/why/ann", "#/pipeline/ann", "#/items/i01", "#/items/i01/edit", "#/models", "#/health")
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
START_MS = 1_700_000_000_000


@pytest.fixture
async def watched(worker: Settings) -> AsyncIterator[Watched]:
    async with watching(worker) as found:
        items = [Item(f"i{n:02d}", TITLES.get(f"i{n:02d}", f"Print no. {n}"), categories=(f"c{n % 3}",)) for n in range(40)]
        await produce_items(worker, items)
        users = ["ann", "bea", HOSTILE, *(f"u{n}" for n in range(12))]
        events = [
            Interaction(f"{user}-{n}", user, f"i{(7 * n + place) % 30:02d}", START_MS + n, "like" if n % 2 else HOSTILE[:40])
            for place, user in enumerate(users)
            for n in range(6)
        ]
        tokens = await produce_events(worker, events)
        last = {partition_of(user.encode(), worker.partitions): user for user in users}
        for partition, offset in tokens.items():
            body = {"user_id": last[partition], "after": {"partition": partition, "offset": offset}}
            async with found.http.post("/v1/recommend?deadline_ms=20000", json=body) as response:
                assert (await response.json())["degraded"] == []
        yield found


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, fetched from npm."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("axe")
    if npm is None:
        pytest.skip("there is no npm to fetch axe-core with")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), "axe-core@4"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm does not answer, so axe-core cannot be fetched")
    source = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        pytest.skip(f"axe-core cannot be fetched: {ran.stderr[-300:]}")
    return source.read_text(encoding="utf-8")


async def cards_of(page: Page) -> list[tuple[str, str, float]]:
    """Id, title and score of each card of the slate."""
    cards = page.locator(".slate > .card")
    await expect(cards.first).to_be_visible()
    found = []
    for card in await cards.all():
        title = await card.locator("h3").text_content()
        score = await card.locator("[data-score]").get_attribute("data-score")
        found.append((str(await card.get_attribute("data-item")), str(title), float(score or "nan")))
    return found


async def slate_of(watched: Watched, user_id: str) -> list[tuple[str, str, float]]:
    slate = await watched.get(f"/v1/recommend/{user_id}?k=12&deadline_ms=10000")
    titles = {item["item_id"]: item["title"] for item in (await watched.get("/v1/items?limit=100"))["items"]}
    return [(item["item_id"], titles[item["item_id"]], item["score"]) for item in slate["items"]]


async def test_the_page_shows_the_worker_and_a_click_changes_a_slate(watched: Watched) -> None:
    async with watched.page("#/user/ann") as page:
        await shows_the_slate(watched, page)
        await changes_the_slate(watched, page)
        await explains(watched, page)
        await shows_text_as_text(watched, page)
        await shows_figures(watched, page)
    async with watched.page("#/user/ann", token=False, color_scheme="dark", viewport={"width": 360, "height": 740}) as page:
        await is_read_only_dark_and_narrow(watched, page)
    async with watched.page("", token=False) as page:
        await is_used_by_keyboard(page)
    async with watched.page("", token=False) as page:
        await says_that_the_worker_is_away(watched, page)


async def shows_the_slate(watched: Watched, page: Page) -> None:
    shown, asked = await cards_of(page), await slate_of(watched, "ann")
    assert [card[:2] for card in shown] == [item[:2] for item in asked]
    assert [card[2] for card in shown] == pytest.approx([item[2] for item in asked], rel=1e-3)
    summary = await watched.get("/v1/users/ann")
    facts = dict(
        zip(await page.locator("dl dt").all_text_contents(), await page.locator("dl dd").all_text_contents(), strict=True)
    )
    assert (facts["Events"], facts["Seen items"]) == (str(summary["events"]), str(summary["seen"]))
    assert facts["like"] == str(summary["counts"]["like"])
    assert await page.locator(".timeline li").count() == len(summary["recent"])


async def changes_the_slate(watched: Watched, page: Page) -> None:
    (chosen, title, _), *_ = await cards_of(page)
    await page.get_by_role("button", name=f"Like {title}").click()
    await expect(page.locator(".took")).to_contain_text("to a new slate")
    after = await cards_of(page)
    assert chosen not in [item_id for item_id, *_ in after], "what was liked is seen"
    assert [card[:2] for card in after] == [item[:2] for item in await slate_of(watched, "ann")]
    newest = (await watched.get("/v1/users/ann"))["recent"][0]
    assert (newest["item_id"], newest["action"]) == (chosen, "like")
    await expect(page.locator(".timeline li").first).to_contain_text(title)


async def explains(watched: Watched, page: Page) -> None:
    await page.goto(f"{watched.settings.web}/#/why/ann")
    picture = page.get_by_role("img", name="retrieved")
    await expect(picture).to_be_visible()
    found = await watched.get("/v1/explain/ann?k=10")
    trace = found["trace"]
    text = str(await picture.get_attribute("aria-label"))
    assert f"{trace['passed']} passed the filters, {trace['ranked']} ranked, {trace['shown']} shown" in text
    rows = page.get_by_role("region", name="Sources").locator("tbody tr")
    shown = [await row.locator("td").all_text_contents() for row in await rows.all()]
    assert shown == [
        [s["name"], *(str(s[name]) for name in ("brought", "dropped", "passed", "alone", "ranked", "shown"))]
        for s in trace["sources"]
        if s["brought"]
    ]
    recent = (await watched.get("/v1/recent"))["requests"]
    assert {request["user_id"] for request in recent} >= {"ann"}
    await expect(page.locator(".side .hits a").first).to_be_visible()


async def shows_text_as_text(watched: Watched, page: Page) -> None:
    await page.goto(f"{watched.settings.web}/#/items/i07")
    await expect(page.locator(".detail h2").first).to_have_text(HOSTILE)
    await expect(page.get_by_text(HOSTILE[:40], exact=True).first).to_be_visible()  # the action
    await page.goto(f"{watched.settings.web}/#/items")
    await page.get_by_role("searchbox", name="Search items").fill("i07")
    await expect(page.locator(".catalogue li").first).to_contain_text(HOSTILE)
    await page.goto(f"{watched.settings.web}/#/user")
    await page.get_by_role("searchbox", name="Search users by id").fill("<img")
    await page.get_by_role("button", name=HOSTILE).click()
    await expect(page.locator(".detail h2").first).to_have_text(HOSTILE)
    await expect(page.locator(".timeline li").first).to_be_visible()
    await expect(page).to_have_title("User · Riffle")


async def shows_figures(watched: Watched, page: Page) -> None:
    await page.goto(f"{watched.settings.web}/#/live")
    rows = page.get_by_role("region", name="Partitions").locator("tbody tr")
    await expect(rows).to_have_count(watched.settings.partitions)
    live = await watched.get("/v1/live")
    assert [await row.locator("td").nth(4).text_content() for row in await rows.all()] == [
        f"{partition['applied']:,}" for partition in live["partitions"]
    ]
    names = page.locator(".panel", has=page.get_by_role("heading", name="Shown items")).locator(".bar-label")
    assert sorted(await names.all_text_contents()) == sorted(live["totals"]["shown"])
    await expect(page.locator("[data-figure=lag]")).to_have_text("0")
    await expect(page.locator("[data-figure=p50_ms]")).to_contain_text("ms")
    await page.goto(f"{watched.settings.web}/#/models")
    await expect(page.get_by_text("No release yet")).to_be_visible()
    await page.goto(f"{watched.settings.web}/#/health")
    await expect(page.get_by_text("answers requests")).to_be_visible()
    await expect(page.get_by_role("region", name="Tables").locator("tbody tr")).to_have_count(watched.settings.partitions)


async def is_read_only_dark_and_narrow(watched: Watched, page: Page) -> None:
    before = (await watched.get("/v1/users/ann"))["events"]
    await cards_of(page)
    button = page.locator(".card button").first
    await expect(button).to_be_disabled()
    refused = await page.evaluate(
        "fetch('/v1/events', {method: 'POST', body: JSON.stringify({user_id: 'ann', item_id: 'i01'})}).then((r) => r.status)"
    )
    watched.complaints.remove(next(said for said in watched.complaints if "401" in said))
    assert (refused, (await watched.get("/v1/users/ann"))["events"]) == (401, before)
    for path in VIEWS:
        await page.goto(f"{watched.settings.web}/{path}")
        await expect(page.locator(".panel, .state").first).to_be_visible()
        wide = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide == 0, f"{path} is wider than a phone"
    await page.goto(f"{watched.settings.web}/#/user/ann")
    for given, said, usable in (("not the token", "Read only", False), (page_token(watched.settings), "Changes allowed", True)):
        await page.locator("#token").click()
        await page.get_by_label("Token").fill(given)
        await page.keyboard.press("Enter")
        if not usable:  # it is known to be wrong only once it was used
            await page.get_by_role("button", name="Skip ").first.click()
            await expect(page.locator("#notice")).to_contain_text("is not valid")
            watched.complaints.remove(next(said for said in watched.complaints if "403" in said))
        await expect(page.locator("#token")).to_have_text(said)
        await expect(button).to_be_enabled(enabled=usable)
    shade = await page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(shade) < 60, "dark"


async def is_used_by_keyboard(page: Page) -> None:
    await expect(page.locator("nav a")).to_have_count(7)
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to the content"
    names = []
    for _ in range(8):
        await page.keyboard.press("Tab")
        names.append(await page.evaluate("document.activeElement.textContent"))
        outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"the focus on {names[-1]} cannot be seen"
    assert names == ["Riffle", "Live", "User", "Why", "Pipeline", "Items", "Models", "Health"]
    await page.keyboard.press("Enter")
    await expect(page.locator("h1")).to_have_text("Health")
    assert await page.evaluate("document.activeElement.id") == "view"


async def says_that_the_worker_is_away(watched: Watched, page: Page) -> None:
    await expect(page.locator(".pill").first).to_have_text("ready")
    await page.route("**/v1/**", lambda route: route.abort())
    await expect(page.locator(".pill").first).to_have_text("no answer")
    await expect(page.locator(".state.error")).to_be_visible()
    await page.unroute_all()
    await expect(page.locator(".pill").first).to_have_text("ready")
    await expect(page.locator(".state.error")).to_have_count(0)
    watched.complaints[:] = [said for said in watched.complaints if "ERR_FAILED" not in said]


async def test_the_chart_of_an_item_counts_what_the_interface_counts(watched: Watched) -> None:
    async with watched.page("#/items", token=False) as page:
        shown = page.locator("[data-totals]")
        item_id = (await slate_of(watched, "bea"))[0][0]
        await page.goto(f"{watched.settings.web}/#/items/{item_id}")
        await expect(shown).to_contain_text("shown ")
        before = await watched.get(f"/v1/items/{item_id}/history")
        event = {"user_id": "u0", "item_id": item_id, "action": "like"}
        async with watched.http.post("/v1/events", json=event) as response:
            token = (await response.json())["tokens"][0]
        async with watched.http.post("/v1/recommend?deadline_ms=20000", json={"user_id": "u0", "after": token}) as response:
            assert (await response.json())["degraded"] == []
        await slate_of(watched, "bea")
        for per, button in (("minute", "Last hour"), ("hour", "Last two days")):
            await page.get_by_role("button", name=button).click()
            await expect(page.get_by_role("img", name=f"Of the item, {button.lower()}")).to_be_visible()
            after = await watched.get(f"/v1/items/{item_id}/history?per={per}")
            sums = {"shown": sum(after["shown"]), **{name: sum(column) for name, column in after["actions"].items()}}
            assert sums["like"] == sum(before["actions"].get("like", [])) + 1
            assert sums["shown"] > sum(before["shown"])
            for name, n in sums.items():
                await expect(shown).to_contain_text(f"{name} {n}")


async def test_nothing_keeps_people_from_using_the_page(watched: Watched, axe: str) -> None:
    """axe-core finds nothing serious on any view. It runs beside the page's policy, which forbids it to load."""
    serious = []
    async with watched.page("", bypass_csp=True) as page:
        await page.evaluate(axe)
        for path, scheme in itertools.product(VIEWS, SCHEMES):
            await page.emulate_media(color_scheme=scheme)
            await page.goto(f"{watched.settings.web}/{path}")
            await expect(page.locator(".panel, .state").first).to_be_visible()
            await expect(page.locator(".state.loading")).to_have_count(0)
            found = await page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((all) => all.violations)")
            bad = [one for one in found if one["impact"] in {"serious", "critical"}]
            serious += [(path, scheme, one["id"], [node["html"] for node in one["nodes"]]) for one in bad]
    assert serious == []


async def test_an_operator_changes_items_users_and_dead_letters(watched: Watched) -> None:
    async with watched.page("#/items//new") as page:
        await puts_changes_and_withdraws_an_item(watched, page)
        await shows_the_pipeline_and_previews_rules(watched, page)
        await replays_a_dead_letter(watched, page)
        await erases_a_user(watched, page)


async def puts_changes_and_withdraws_an_item(watched: Watched, page: Page) -> None:
    item_id = HOSTILE[:60]
    for label, text in (("Id", item_id), ("Title", HOSTILE), ("Text", "first"), ("Categories", "c0 | c9"), ("Price", "7.5")):
        await page.get_by_label(label).first.fill(text)
    await page.get_by_role("button", name="Put").click()
    await expect(page.locator("#notice")).to_have_text("The catalogue has it.")
    await expect(page.locator(".detail h2").first).to_have_text(HOSTILE)
    path = f"/v1/items/{quote(item_id, safe='')}"
    put = await watched.get(path)
    assert (put["title"], put["price"], put["categories"], put["available"]) == (HOSTILE, 7.5, ["c0", "c9"], True)

    await page.get_by_role("link", name="Change", exact=True).click()
    await page.get_by_label("Text").fill("second")
    await page.get_by_label("available").uncheck()
    await page.get_by_role("button", name="Save").click()
    await expect(page.locator(".item-head")).to_contain_text("second")
    assert await watched.get(path) == {**put, "text": "second", "available": False}

    await page.get_by_role("button", name="Withdraw").click()
    await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert (await watched.get(path))["text"] == "second"
    await page.get_by_role("button", name="Withdraw").click()
    await page.get_by_role("dialog").get_by_role("button", name="Withdraw").click()
    await expect(page.locator("#notice")).to_have_text("The item is withdrawn.")
    async with watched.http.get(path) as response:
        assert response.status == 404
    # the page itself asked until it was gone
    watched.complaints[:] = [said for said in watched.complaints if "404" not in said]


async def shows_the_pipeline_and_previews_rules(watched: Watched, page: Page) -> None:
    await page.goto(f"{watched.settings.web}/#/pipeline/ann")
    graph = page.get_by_role("img", name="Of a request")
    await expect(graph).to_be_visible()
    sums = await watched.get("/v1/pipeline")
    slate = sums["candidates"]["select"] / sums["requests"]
    assert f"{slate:.3g} slate" in str(await graph.get_attribute("aria-label"))
    rules = {"rules": [{"name": HOSTILE[:90], "kind": "bury", "factor": 0.01, "where": {"categories": ["c1"]}}]}
    await page.get_by_label("Rules as JSON").fill(json.dumps(rules))
    await page.get_by_role("button", name="Preview").click()
    await expect(page.locator(".findings")).to_contain_text(HOSTILE[:90])
    async with watched.http.post(
        "/v1/rules/preview", json={"rules": rules, "request": {"user_id": "ann", "k": 12}}
    ) as response:
        answer = await response.json()
    for n, name in enumerate(("serving", "proposed")):
        links = page.locator(".ranking").nth(n).locator(".item-cell")
        hrefs = [str(await link.get_attribute("href")) for link in await links.all()]
        assert hrefs == [f"#/items/{item['item_id']}" for item in answer[name]["items"]]
    assert answer["serving"]["items"] != answer["proposed"]["items"]
    await page.get_by_label("Rules as JSON").fill('{"rules": [{"name": "x", "kind": "none"}]}')
    await page.get_by_role("button", name="Preview").click()
    await expect(page.locator(".state.error")).to_contain_text("refused")
    assert (await watched.get("/v1/rules"))["rules"] == [], "nothing is published"
    watched.complaints[:] = [said for said in watched.complaints if "400" not in said]


async def replays_a_dead_letter(watched: Watched, page: Page) -> None:
    settings = watched.settings
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers)
    await producer.start()
    try:
        headers = [("content-type", b"application/json")]
        await producer.send_and_wait(settings.topic("interactions"), HOSTILE.encode(), key=b"<b>ann", headers=headers)
    finally:
        await producer.stop()
    await until_unusable(watched, 1)
    await page.goto(f"{settings.web}/#/health")
    letter = page.locator(".letters li").first
    async with asyncio.timeout(3 * PATIENCE_MS / 1000):  # it is visible when its transaction is committed
        while not await letter.is_visible():
            await page.get_by_role("button", name="Refresh").click()
            await asyncio.sleep(0.5)
    await letter.locator("summary").click()
    await expect(letter.locator("b")).to_have_text("<b>ann")
    await expect(letter.locator("pre")).to_have_text(HOSTILE)
    await letter.get_by_role("button", name="Replay").click()
    await expect(page.locator("#notice")).to_contain_text("1 produced again")
    await until_unusable(watched, 2)


async def until_unusable(watched: Watched, many: int) -> None:
    """Wait until so many events were not JSON."""
    async with asyncio.timeout(2 * PATIENCE_MS / 1000):
        while True:
            if (await watched.get("/v1/live"))["totals"]["dead_letters"].get("not_json", 0) >= many:
                return
            await asyncio.sleep(0.1)


async def erases_a_user(watched: Watched, page: Page) -> None:
    await page.goto(f"{watched.settings.web}/#/user/bea")
    summary = await watched.get("/v1/users/bea")
    assert summary["seen_set"]["items"] == summary["seen"] > 0
    await expect(page.locator("dl").first).to_contain_text("Hidden by mistake")
    await page.get_by_role("button", name="Erase this user").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_role("button", name="Erase")).to_be_disabled()
    await dialog.get_by_role("textbox").fill("be")
    await expect(dialog.get_by_role("button", name="Erase")).to_be_disabled()
    await dialog.get_by_role("textbox").fill("bea")
    await dialog.get_by_role("button", name="Erase").click()
    await expect(page.locator("#notice")).to_have_text("The user is erased.")
    await expect(page.get_by_text("This user is not known")).to_be_visible()
    async with watched.http.get("/v1/users/bea") as response:
        assert response.status == 404
    watched.complaints[:] = [said for said in watched.complaints if "404" not in said]


async def test_an_operator_promotes_and_rolls_back_a_release(watched: Watched, learned: Learned) -> None:
    folder = watched.settings.releases_dir
    accepted = learned.write(folder, {"gate": {"passed": True, "interval": [0.01, 0.02], "queries": 90, "people": 40}})
    older = replace(learned, manifest=replace(learned.manifest, name="20200101-0123456789", trained_until_ms=1))
    refused = older.write(folder, {"gate": {"passed": False, "reasons": [HOSTILE]}})
    async with watched.page("#/models") as page:
        panel = page.locator(".panel", has=page.get_by_role("heading", name=accepted.name))
        await expect(page.locator(".panel", has=page.get_by_role("heading", name=refused.name))).to_contain_text(HOSTILE)
        for plot, (head, bins) in zip(
            await panel.locator(".square").all(), learned.measured["reliability"].items(), strict=True
        ):
            assert await plot.locator(".spot").count() == len(bins)
            off = sum(abs(b["predicted"] - b["observed"]) * b["weight"] for b in bins) / sum(b["weight"] for b in bins)
            await expect(plot.locator("figcaption")).to_have_text(f"{head}off by {100 * off:.3g} %")
        assert await page.get_by_role("button", name="Promote").count() == 1, "what the gate refused cannot be promoted"
        await panel.get_by_role("button", name="Promote").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("The gate accepted it: it is better than serving without a release")
        await expect(dialog).to_contain_text("0.01 to 0.02 (95 % interval, 90 queries of 40 users)")
        await dialog.get_by_role("button", name="Promote").click()
        await expect(panel.locator(".pill", has_text="serving").first).to_have_text("serving", timeout=60_000)
        assert (await watched.get("/readyz"))["release"] == accepted.name
        await page.get_by_role("button", name="Roll back").click()
        await page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
        await expect(panel.locator(".pill").first).to_have_text("not serving", timeout=60_000)
        assert (await watched.get("/readyz"))["release"] == "none"


async def steady(watched: Watched, path: str) -> Any:
    """A slate that stays the same, because the statistics of all events are known."""
    same, before = 0, (await watched.get(path))["slate"]
    async with asyncio.timeout(60):
        while same < 3:
            await asyncio.sleep(0.7)
            now = (await watched.get(path))["slate"]
            same = same + 1 if now["items"] == before["items"] else 0
            before = now
    return before


async def test_a_release_is_compared_with_what_serves_and_nothing_is_promoted(watched: Watched, learned: Learned) -> None:
    made = learned.write(watched.settings.releases_dir, {"gate": {"passed": False, "reasons": ["too few queries"]}})
    asked = "/v1/explain/ann?k=12"
    served, other = await steady(watched, asked), await steady(watched, f"{asked}&release={made.name}")
    assert (served["release"], other["release"]) == ("none", made.name)
    async with watched.page("#/user/ann") as page:
        await page.get_by_label("Release to compare with").select_option(made.name)
        sides = page.locator(".ranking")
        await expect(sides).to_have_count(2)
        for side, slate in zip(await sides.all(), (served, other), strict=True):
            shown = [await row.get_attribute("data-item") for row in await side.locator("li").all()]
            assert shown == [item["item_id"] for item in slate["items"]]
        before = {item["item_id"] for item in served["items"]}
        new = [item["item_id"] for item in other["items"] if item["item_id"] not in before]
        assert await sides.last.get_by_text("new", exact=True).count() == len(new)
        await page.get_by_label("Release to compare with").select_option("")
        await expect(sides).to_have_count(0)
        answers: list[int] = []

        async def loading_first(route: Route) -> None:
            answers.append(503 if not answers else 200)
            if answers[-1] == 503:
                error = {"code": "busy", "message": "release r is being loaded: try again", "field": None}
                await route.fulfill(status=503, json={"error": error})
            else:
                found = await (await route.fetch()).json()
                await route.fulfill(json={**found, "slate": {**found["slate"], "degraded": ["stale", "light"]}})

        await page.route("**/v1/explain/ann?*release=*", loading_first)
        await page.get_by_label("Release to compare with").select_option(made.name)
        await expect(page.locator("[data-degraded]")).to_contain_text(f"{made.name}: stale, light")
        await expect(sides).to_have_count(2)
        assert answers == [503, 200]
    (complaint,) = watched.complaints
    assert "503" in complaint
    watched.complaints.clear()
    assert (await watched.get("/readyz"))["release"] == "none"
    async with watched.http.get(f"{asked}&release=unknown") as response:
        assert (response.status, (await response.json())["error"]["field"]) == (404, "release")


async def test_a_training_is_shown_while_it_runs_and_when_it_has_ended(watched: Watched) -> None:
    now = TrainingProgress("20260101-000000-abcdef", host=HOSTILE[:80], started_at=START_MS, part="start")
    announcer = Announcer(watched.settings, lambda: now, watched.complaints.append)
    async with watched.page("#/models") as page:
        row = page.locator("[data-training]")
        await expect(page.get_by_role("heading", name="Trainings")).to_be_visible()
        await expect(page.locator(".panel", has_text="None reported in the last seven days")).to_have_count(1)
        announcer.start()
        await expect(row).to_have_count(1, timeout=30_000)
        await expect(row).to_contain_text(HOSTILE[:80])
        bar = row.get_by_role("progressbar", name="Training")
        assert await bar.get_attribute("aria-valuenow") is None, "the share is not known yet"
        parts = (("towers", 60.0), ("replay", 30.0), ("ranker", 30.0))
        now = replace(now, part="replay", part_share=0.5, share=0.625, left_s=45.0, parts=parts, elapsed_s=75.0)
        await expect(bar).to_have_attribute("aria-valuenow", "63", timeout=30_000)
        (said,) = (await watched.get("/v1/trainings"))["trainings"]
        assert (said["state"], said["part"], said["share"], said["left_s"]) == ("running", "replay", 0.625, 45.0)
        await expect(row).to_contain_text("replay, about 45 s left")
        widths = [await one.evaluate("element => element.style.width") for one in await row.locator(".bar-track span").all()]
        assert widths == ["100%", "50%", "0%"]
        now = replace(
            now, state="refused", share=1.0, left_s=0.0, release="20260101-0123456789", reasons=("no better", HOSTILE)
        )
        await asyncio.to_thread(announcer.stop)
        await expect(row.locator(".pill")).to_have_text("refused", timeout=30_000)
        await expect(row).to_contain_text(f"The gate refused 20260101-0123456789 after 75 s: no better; {HOSTILE}")

        async def killed(route: Route) -> None:
            found = await (await route.fetch()).json()
            silent = [{**one, "state": "silent", "share": 0.625} for one in found["trainings"]]
            await route.fulfill(json={"trainings": silent})

        await page.route("**/v1/trainings", killed)
        await page.reload()
        await expect(row.locator(".pill")).to_have_text("no report")
        await expect(row).to_contain_text("it was probably killed")
