"""Figures of the report as SVG text. They use the page's colours and so follow its light and dark themes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullLocator

from training.evaluation.evaluate import DEEP, K
from training.evaluation.measurement import SEGMENTS, Measurement

__all__ = ["beyond_accuracy", "by_segment", "by_source", "lost", "reliability"]

INK, MUTED, LINE = "#0a0b0c", "#6a6b6c", "#cacbcc"
SERIES = ("#a10001", "#a10002", "#a10003", "#a10004", "#a10005", "#a10006")
ENDS = ("#b10001", "#b10002", "#b10003", "#b10004", "#b10005", "#b10006")
PAGE: Mapping[str, str] = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    **{colour: f"var(--series-{n})" for n, colour in enumerate(SERIES)},
    **{colour: f"var(--end-{n})" for n, colour in enumerate(ENDS)},
}
"Placeholder colours that no figure uses otherwise, by the page's variables that replace them."

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


def _svg(figure: Figure, about: str) -> str:
    """Render the figure as an element of a page. `about` describes it in words."""
    out = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": about}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True, bbox_inches="tight")
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"font: (?:\w+ )*([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for colour, name in PAGE.items():
        text = text.replace(colour, name)
    return text.replace("<svg", f'<svg role="img" aria-label="{about}"', 1)


def _grid(width: float, height: float, rows: int, columns: int, *, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1))
    return figure, list(np.asarray(figure.subplots(rows, columns, squeeze=False, sharey=share_y)).ravel())


def by_segment(found: Sequence[Measurement], measures: Sequence[str]) -> str:
    """Plot each measure in each segment with its interval: a panel per measure, a row per segment."""
    segments = [name for name in SEGMENTS if any(bool(one.within(name).any()) for one in found)]
    with mpl.rc_context(STYLE):
        height = 0.8 + len(segments) * (0.22 + 0.16 * len(found))
        figure, panels = _grid(10.4, height, 1, len(measures), share_y=True)
        for panel, measure in zip(panels, measures, strict=True):
            for n, one in enumerate(found):
                shift = (n - (len(found) - 1) / 2) * 0.22
                for row, segment in enumerate(segments):
                    if not one.within(segment).any():
                        continue
                    interval = one.interval(measure, segment)
                    place, colour = row + shift, SERIES[n % len(SERIES)]
                    panel.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2.2, alpha=0.45)
                    panel.plot([interval.mean], [place], "o", color=colour, markersize=5.5)
            panel.set_title(measure)
            panel.grid(axis="x")
            panel.set_xlim(left=0)
            panel.spines["left"].set_visible(False)
            panel.locator_params(axis="x", nbins=4)
        panels[0].set_yticks(range(len(segments)), [segment.replace("_", ", ") for segment in segments])
        panels[0].set_ylim(len(segments) - 0.5, -0.5)
    return _svg(figure, "each measure by segment of the queries, with 95 % intervals")


def ends(one: Measurement) -> dict[str, float]:
    """Final stages of the liked items as shares of all queries, best first."""
    stages, ranks = np.asarray(one.stages, dtype=object), one.ranks
    ranked = ranks >= 0
    return {
        f"first {K}": float((ranked & (ranks < K)).mean()),
        f"rank {K + 1} to {DEEP}": float((ranked & (ranks >= K) & (ranks < DEEP)).mean()),
        f"ranked below {DEEP}": float((ranked & (ranks >= DEEP)).mean()),
        "cut by the light score": float((stages == "light_cut").mean()),
        "filtered": float(np.asarray([str(stage).startswith("filtered") for stage in stages]).mean()),
        "not retrieved": float((stages == "not_retrieved").mean()),
    }


def lost(found: Sequence[Measurement]) -> str:
    """Plot the final stages of the liked items: a bar per measurement, full if all items are shown."""
    with mpl.rc_context(STYLE):
        figure, (panel,) = _grid(10.4, 0.9 + 0.5 * len(found), 1, 1)
        for row, one in enumerate(found):
            left = 0.0
            for n, share in enumerate(ends(one).values()):
                panel.barh(row, share, left=left, height=0.62, color=ENDS[n])
                if share >= 0.035:
                    panel.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=9, color=INK)
                left += share
        for n, name in enumerate(ends(found[0])):
            panel.barh(0, 0, color=ENDS[n], label=name)
        panel.set_yticks(range(len(found)), [one.label for one in found])
        panel.set_ylim(len(found) - 0.5, -0.5)
        panel.set_xlim(0, 1)
        panel.set_xticks([])
        for side in ("left", "bottom"):
            panel.spines[side].set_visible(False)
        legend = figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9)
        for text in legend.get_texts():
            text.set_color(MUTED)
    return _svg(figure, "final stages of the liked items")


def by_source(found: Sequence[Measurement]) -> str:
    """Plot the share of queries whose liked item each source retrieved, and retrieved alone."""
    names = sorted(
        {name for one in found for row in one.sources for name in row},
        key=lambda name: -float(np.mean([name in row for row in found[-1].sources])),
    )
    with mpl.rc_context(STYLE):
        figure, panels = _grid(10.4, 0.8 + len(names) * (0.16 + 0.17 * len(found)), 1, 2, share_y=True)
        for panel, title, alone in zip(panels, ("retrieved", "retrieved by no other"), (False, True), strict=True):
            for n, one in enumerate(found):
                shift, size = (n - (len(found) - 1) / 2) * (0.8 / len(found)), 0.7 / len(found)
                shares = [np.mean([row == [name] if alone else name in row for row in one.sources]) for name in names]
                places = np.arange(len(names)) + shift
                panel.barh(places, shares, height=size, color=SERIES[n % len(SERIES)])
                for place, share in zip(places, shares, strict=True):
                    panel.text(float(share), float(place), f" {share:.1%}", va="center", fontsize=8, color=MUTED)
            panel.set_title(title)
            panel.margins(x=0.14)
            panel.set_xlim(left=0, right=max(panel.get_xlim()[1], 0.05))
            panel.set_xticks([])
            panel.spines["bottom"].set_visible(False)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
    return _svg(figure, "share of the liked items that each source retrieved")


def reliability(found: Sequence[Measurement]) -> str:
    """Plot predicted probabilities against observed frequencies on logarithmic scales; empty text without a release.

    Of slates where there are any, or else of all traffic, or else at the queries.
    """
    heads = list(dict.fromkeys(head for one in found for head in one.calibration))
    if not heads:
        return ""
    with mpl.rc_context(STYLE):
        figure, panels = _grid(min(10.4, 3.6 * len(heads)), 3.4, 1, len(heads))
        for panel, head in zip(panels, heads, strict=True):
            points = [p for one in found for p in _bins(one, head)]
            ends_at = [min(min(p[:2]) for p in points), max(max(p[:2]) for p in points)] if points else [1e-3, 1.0]
            panel.plot(ends_at, ends_at, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            for n, one in enumerate(found):
                bins = _bins(one, head)
                panel.plot(
                    [p[0] for p in bins], [p[1] for p in bins], "o-", color=SERIES[n % len(SERIES)], markersize=5, linewidth=1.4
                )
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_title(f"head “{head}”")
            panel.set_xlabel("said")
            panel.set_ylabel("came")
            panel.tick_params(labelcolor=MUTED)
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.set_minor_locator(NullLocator())
            panel.grid()
    return _svg(figure, "predicted probabilities against observed shares")


def _bins(one: Measurement, head: str) -> list[list[float]]:
    """Reliability bins of a head that logarithmic scales can show."""
    said = one.calibration.get(head, {})
    found = said.get("slates") or said.get("traffic") or said
    return [point for point in found.get("bins", ()) if point[0] > 0 and point[1] > 0]


def beyond_accuracy(found: Sequence[Measurement]) -> str:
    """Plot coverage, novelty and diversity of the slates."""
    panels_of = {
        f"coverage@{K}, share": [one.coverage() for one in found],
        f"novelty@{K}, bits": [one.interval(f"novelty@{K}").mean for one in found],
        f"diversity@{K}, 1 - cosine": [one.interval(f"diversity@{K}").mean for one in found],
    }
    with mpl.rc_context(STYLE):
        figure, panels = _grid(10.4, 0.55 + 0.3 * len(found), 1, 3, share_y=True)
        for panel, (title, values) in zip(panels, panels_of.items(), strict=True):
            panel.barh(range(len(found)), values, height=0.6, color=[SERIES[n % len(SERIES)] for n in range(len(found))])
            for row, value in enumerate(values):
                panel.text(
                    np.nan_to_num(value),
                    row,
                    f" {value:.3g}" if np.isfinite(value) else " –",
                    va="center",
                    fontsize=9,
                    color=MUTED,
                )
            panel.set_title(title)
            panel.margins(x=0.16)
            panel.set_xticks([])
            panel.spines["bottom"].set_visible(False)
        panels[0].set_yticks(range(len(found)), [one.label for one in found])
        panels[0].set_ylim(len(found) - 0.5, -0.5)
    return _svg(figure, "coverage, novelty and diversity of the slates")
