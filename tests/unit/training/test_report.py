"""The page that compares measurements: self-contained, without scripts, and with the right figures."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from learning_corpus import POSITIVE, corpus

from models.items.store import text_vector
from models.rules import PositiveRule
from training.cli.report import report_command
from training.evaluation.evaluate import evaluate
from training.evaluation.measurement import Catalogue, Measurement
from training.evaluation.plots import ends
from training.evaluation.report import html_report

VOID = {"meta", "link", "br", "img", "path", "use"}


@pytest.fixture(scope="module")
def pair() -> list[Measurement]:
    """A measurement, and one of the same queries in which every third item is one rank better."""
    items, events = corpus(2, n_items=120, n_users=20)
    figures = evaluate(items, events, PositiveRule(POSITIVE))
    counts = np.bincount([int(e.item_id[1:]) for e in events[:720]], minlength=len(items))
    catalogue = Catalogue([i.item_id for i in items], counts, np.stack([text_vector(i) for i in items]))
    plain = Measurement.of(figures, catalogue, "before $x$ <b>", "glass & co", "none")
    bins = [[0.01, 0.02, 50], [0.1, 0.09, 50]]
    said = {"positive": {"ece": 0.01, "auc": 0.8, "gauc": None, "bins": bins}}
    better = replace(plain, label="after", release="r-1", calibration=said, values={**plain.values})
    better.values["ndcg@10"] = plain.values["ndcg@10"] + 0.1 * (np.arange(len(plain)) % 3 == 0)
    return [plain, better]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.met: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.met.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.met.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_runs_nothing_and_fetches_nothing(pair: list[Measurement]) -> None:
    page = html_report(pair)
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not {tag for tag, _ in tags.met} & {"script", "link", "img", "iframe", "object"}
    for _, attributes in tags.met:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"href", "xlink:href", "src"}:
                assert value is not None
                assert value.startswith("#")
    assert not re.search(r"@import|url\((?!#)", page)
    assert page == html_report(pair), "the same measurements give the same page"
    assert "before $x$ &lt;b&gt;" in page
    assert "<b>after" not in page


def test_the_page_says_what_was_measured(pair: list[Measurement]) -> None:
    page = html_report(pair)
    gain = pair[1].against(pair[0], "ndcg@10")
    assert f"<b>{pair[1].interval('ndcg@10').mean:.4f}</b>" in page
    assert f'class="good">{gain.mean:+.4f}<' in page
    assert f"{len(pair[0])} queries" in page
    assert page.count("<svg") == 5
    assert html_report(pair[:1]).count("<svg") == 4, "without probabilities there is no reliability to draw"
    colours = set(re.findall(r"#[0-9a-f]{6}", page[page.index("</style>") :]))
    assert not {c for c in colours if c.startswith(("#a1000", "#b1000"))}, "stand-ins are replaced"


def test_every_liked_item_ends_once(pair: list[Measurement]) -> None:
    assert sum(ends(pair[0]).values()) == pytest.approx(1.0)


def test_the_command_compares_saved_measurements(pair: list[Measurement], tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{n}.json") for n in range(2)]
    for path, one in zip(paths, pair, strict=True):
        one.save(Path(path))
    out = tmp_path / "page.html"
    ran = CliRunner().invoke(report_command, [*paths, "--out", str(out)], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert out.read_text(encoding="utf-8") == html_report(pair)


def test_a_browser_shows_it_within_its_width_and_without_complaint(pair: list[Measurement], tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here")
    from playwright.sync_api import sync_playwright

    (tmp_path / "page.html").write_text(html_report(pair), encoding="utf-8")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        said: list[str] = []
        inks = set()
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1180, "height": 900}, color_scheme=scheme)
            page.on("console", lambda message: said.append(message.text))
            page.goto(f"file://{tmp_path}/page.html")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.locator("svg").count() == 5
            assert all(box is not None and box["height"] > 60 for box in (s.bounding_box() for s in page.locator("svg").all()))
            inks.add(page.evaluate("getComputedStyle(document.querySelector('svg text')).fill"))
        browser.close()
    assert said == []
    assert len(inks) == 2, "figures follow light and dark"


def test_saved_measurements_of_one_kind_are_told_apart_by_their_files(pair: list[Measurement], tmp_path: Path) -> None:
    saved = [tmp_path / f"{name}.json" for name in ("spring", "autumn")]
    for path in saved:
        replace(pair[0], label="with a release").save(path)
    made = CliRunner().invoke(report_command, [*map(str, saved), "--out", str(tmp_path / "p.html")])
    assert made.exit_code == 0, made.output
    page = (tmp_path / "p.html").read_text()
    assert "spring" in page
    assert "autumn" in page
    assert "with a release" not in page
