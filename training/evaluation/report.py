"""HTML page that compares measurements, without script or network, in light and dark themes.

The other measurements are compared with the first one, query by query.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from training.evaluation import plots
from training.evaluation.evaluate import DEEP, K
from training.evaluation.measurement import MEASURES, SEGMENTS, Measurement
from training.evaluation.ranking_metrics import Interval

__all__ = ["html_report"]

HEADLINE = (f"ndcg@{K}", f"hr@{K}", f"recall@{DEEP}", "mrr", f"candidate_recall@{DEEP}", "candidate_recall")
PLOTTED = (f"ndcg@{K}", f"hr@{K}", f"recall@{DEEP}", f"candidate_recall@{DEEP}")
TRAFFIC = {"slates": "on slates", "traffic": "on all traffic"}
"Where probabilities are compared with outcomes beside the queries, with descriptions."

CSS = """
:root { color-scheme: light dark; --page: #fbfaf8; --card: #ffffff; --ink: #1d2430; --muted: #667085; --line: #e2e5ea;
  --good: #0a7f4f; --bad: #b42318; --series-0: #7d8aa0; --series-1: #2563eb; --series-2: #d9730d; --series-3: #0a8f6a;
  --series-4: #a63fc4; --series-5: #b08900; --end-0: #4f8ef7; --end-1: #9cc2fb; --end-2: #d3e3fb; --end-3: #f6d9a8;
  --end-4: #d9d3e8; --end-5: #f0b4a6; }
@media (prefers-color-scheme: dark) { :root { --page: #12161d; --card: #1a202a; --ink: #e7ebf2; --muted: #97a3b6;
  --line: #303949; --good: #4fd39a; --bad: #ff8b7e; --series-0: #8f9db4; --series-1: #6ea1ff; --series-2: #f5a04d;
  --series-3: #42cfa3; --series-4: #d48bf0; --series-5: #e0bd4a; --end-0: #2f66c8; --end-1: #27508f; --end-2: #223a5e;
  --end-3: #7a5a22; --end-4: #4a4363; --end-5: #8a3f33; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 0 0 4px; }
p { margin: 0 0 12px; color: var(--muted); max-width: 78ch; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 22px; margin-top: 18px; }
section > p { font-size: 14px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 8px; text-align: right; border-top: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
thead th { border-top: 0; white-space: normal; vertical-align: bottom; color: var(--muted); font-weight: 600; font-size: 13px; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td b { font-weight: 650; }
small { display: block; color: var(--muted); font-size: 12px; line-height: 1.35; }
small.good { color: var(--good); } small.bad { color: var(--bad); }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
.legend { color: var(--muted); font-size: 14px; margin: 6px 0 10px; } .legend span { margin-right: 18px; white-space: nowrap; }
svg { display: block; max-width: 100%; height: auto; margin: 4px 0; } svg text { font-family: inherit; }
details summary { cursor: pointer; color: var(--muted); font-size: 14px; margin-top: 10px; }
"""


def html_report(found: Sequence[Measurement]) -> str:
    """Render the page.

    Raises:
        BadInput: the measurements have different queries.
    """
    first, last = found[0], found[-1]
    people = len(set(last.people.tolist()))
    about = f"{len(last):,} queries of {people:,} users, {last.catalogue_size:,} items. Intervals: 95 %, users resampled whole."
    held = f" Differences: to “{html.escape(first.label)}”, query by query; ± is within noise." if len(found) > 1 else ""
    parts = [
        _section("How good the slates are", "The rank in the slate of the item that the user then liked.", _headline(found)),
        _section(
            "Segments of users and items",
            "; ".join(f"{name.replace('_', ', ')}: {what}" for name, what in SEGMENTS.items() if name != "all") + ".",
            _legend(found) + plots.by_segment(found, PLOTTED) + _table(found),
        ),
        _section("Where liked items are lost", "The stage at which each liked item left the pipeline.", plots.lost(found)),
        _section(
            "What the sources retrieve",
            "Share of the queries whose liked item a source retrieved, whether or not later stages kept it.",
            _legend(found) + plots.by_source(found),
        ),
        _section(
            "Beyond accuracy",
            "Share of the catalogue that is shown, how unpopular the shown items are, and how different a slate's items are.",
            plots.beyond_accuracy(found),
        ),
    ]
    if figure := plots.reliability(found):
        parts.append(
            _section(
                "Whether probabilities are calibrated",
                "The predicted probability, in ten bins of equal size, against the observed share within the attribution "
                "window: of items of logged slates, or else of all ranked candidates on all traffic, or else at the queries. "
                "These are at liked events, around which users are more active than usual.",
                figure + _calibration(found),
            )
        )
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Quality of {html.escape(last.dataset)}</title><style>{CSS}</style></head><body><main>"
        f"<h1>Quality on {html.escape(last.dataset)}</h1><p>{about}{held}</p>{''.join(parts)}</main></body></html>\n"
    )


def _section(title: str, about: str, body: str) -> str:
    return f'<section><h2>{html.escape(title)}</h2><p>{html.escape(about)}</p><div class="wide">{body}</div></section>'


def _key(n: int) -> str:
    return f'<i class="key" style="background: var(--series-{n % len(plots.SERIES)})"></i>'


def _legend(found: Sequence[Measurement]) -> str:
    names = "".join(f"<span>{_key(n)}{html.escape(one.label)}</span>" for n, one in enumerate(found))
    return f'<div class="legend">{names}</div>'


def _headline(found: Sequence[Measurement]) -> str:
    head = "".join(f'<th title="{html.escape(MEASURES.get(name, ""))}">{_named(name)}</th>' for name in HEADLINE)
    rows = []
    for n, one in enumerate(found):
        cells = [_cell(one.interval(m), one.against(found[0], m) if n else None) for m in HEADLINE]
        title = f"{_key(n)}{html.escape(one.label)}<small>{html.escape(one.release)}</small>"
        rows.append(f"<tr><td>{title}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _named(measure: str) -> str:
    name, _, k = measure.partition("@")
    shown = {"ndcg": "NDCG", "hr": "HR", "mrr": "MRR", "recall": "Recall"}.get(name)
    return (shown or name.replace("_", " ").capitalize()) + (f"@{k}" if k else "")


def _cell(interval: Interval, difference: Interval | None = None) -> str:
    if interval.to_json() is None:
        return "–"
    text = f"<b>{interval.mean:.4f}</b><small>{interval.low:.4f} – {interval.high:.4f}</small>"
    if difference is None:
        return text
    kind = "good" if difference.low > 0 else "bad" if difference.high < 0 else ""
    return f'{text}<small class="{kind}">{difference.mean:+.4f}{"" if kind else " ±"}</small>'


def _table(found: Sequence[Measurement]) -> str:
    """Table of every measure in every segment."""
    out = []
    for n, one in enumerate(found):
        head = "".join(f'<th title="{html.escape(what)}">{_named(name)}</th>' for name, what in MEASURES.items())
        rows = []
        for segment, what in SEGMENTS.items():
            size = int(one.within(segment).sum())
            if size:
                cells = "".join(f"<td>{_cell(one.interval(measure, segment))}</td>" for measure in MEASURES)
                name = f'<td title="{html.escape(what)}">{segment.replace("_", ", ")}<small>{size:,} queries</small></td>'
                rows.append(f"<tr>{name}{cells}</tr>")
        body = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        summary = f"{_key(n)}Every figure of {html.escape(one.label)}"
        out.append(f'<details><summary>{summary}</summary><div class="wide">{body}</div></details>')
    return "".join(out)


def _calibration(found: Sequence[Measurement]) -> str:
    rows = []
    for n, one in enumerate(found):
        for head, said in one.calibration.items():
            errors = [said.get(where, {}).get("ece") for where in TRAFFIC] + [said[name] for name in ("ece", "auc", "gauc")]
            cells = "".join(f"<td>{'–' if figure is None else f'{figure:.4f}'}</td>" for figure in errors)
            rows.append(f"<tr><td>{_key(n)}{html.escape(one.label)}: {html.escape(head)}</td>{cells}</tr>")
    areas = "<th>AUC</th><th>GAUC by user</th>"
    named = "".join(f"<th>Expected calibration error, {what}</th>" for what in (*TRAFFIC.values(), "at the queries"))
    table = f"<table><thead><tr><th></th>{named}{areas}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    by_segment = _calibration_by_segment(found, f"<th></th><th>Expected calibration error</th>{areas}")
    return f"{table}{_calibration_by_decile(found)}{by_segment}"


def _calibration_by_decile(found: Sequence[Measurement]) -> str:
    """Table per measurement of predicted and observed probabilities on slates and on all traffic."""
    out = []
    for n, one in enumerate(found):
        rows = []
        for head, said in one.calibration.items():
            for where, what in TRAFFIC.items():
                for decile, (predicted, observed, size) in enumerate(said.get(where, {}).get("bins", ()), 1):
                    name = f"{html.escape(head)}, {what}, {decile}"
                    rows.append(f"<tr><td>{name}</td><td>{predicted:.4f}</td><td>{observed:.4f}</td><td>{size:,}</td></tr>")
        if rows:
            head = "<th>Head and decile</th><th>Predicted</th><th>Observed</th><th>Items</th>"
            body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            summary = f"{_key(n)}By decile: {html.escape(one.label)}"
            out.append(f'<details><summary>{summary}</summary><div class="wide">{body}</div></details>')
    return "".join(out)


def _calibration_by_segment(found: Sequence[Measurement], head: str) -> str:
    """Table per measurement that was saved with segments."""
    out = []
    for n, one in enumerate(found):
        rows = []
        for name, said in one.calibration.items():
            for segment, figures in said.get("segments", {}).items():
                areas = [_cell(Interval(*figures[area])) if figures[area] else "–" for area in ("auc", "gauc")]
                cells = "".join(f"<td>{cell}</td>" for cell in (f"{figures['ece']:.4f}", *areas))
                what = f'title="{html.escape(SEGMENTS.get(segment, ""))}"'
                rows.append(f"<tr><td {what}>{html.escape(name)}: {html.escape(segment.replace('_', ', '))}</td>{cells}</tr>")
        if rows:
            body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            summary = f"{_key(n)}By segment: {html.escape(one.label)}"
            out.append(f'<details><summary>{summary}</summary><div class="wide">{body}</div></details>')
    return "".join(out)
