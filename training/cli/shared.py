"""Functions shared by the commands that train and measure: checked settings, and output of results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from models.rules import PositiveRule
from training.cli.options import LearningOptions, chosen
from training.evaluation.measurement import Measurement
from training.recipe import LearnSettings, RankerSettings, TowerSettings

__all__ = ["checked_settings", "finish", "images_of", "write_page"]


def checked_settings(options: LearningOptions) -> LearnSettings:
    """Settings from the options, with rule and settings file checked.

    Raises:
        BadInput: `--positive` is no rule.
        ConfigError: the settings file holds an unknown name or an invalid value.
    """
    if options.positive is not None:
        PositiveRule(options.positive, "--positive")
    seed = options.seed
    settings = LearnSettings(
        seed=seed, text_model=options.text_model, towers=TowerSettings(seed=seed), ranker=RankerSettings(seed=seed)
    )
    if options.quick:
        settings = replace(settings, towers=replace(settings.towers, epochs=3), queries=1_500)
    return chosen(settings, options)


def images_of(found: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Image counts in the form that commands report; empty where no image has a URL and all are usable."""
    from training.encoders.image import UNUSED  # it loads an HTTP client, which a training has loaded by then

    by_url = {reason: n for reason, n in found.items() if reason not in UNUSED}
    unused = {reason: n for reason, n in found.items() if reason in UNUSED}
    return ({"images_by_url": by_url} if by_url else {}) | ({"images_unused": unused} if unused else {})


def write_page(path: Path, found: list[Measurement]) -> None:
    """Write measurements as an HTML page."""
    from training.evaluation.report import html_report  # it loads a plotting library, which nothing else here needs

    path.write_text(html_report(found), encoding="utf-8")


def finish(facts: dict[str, Any], console: Console, *, as_json: bool) -> None:
    """Print the results: one line of JSON on stdout, or readable lines on the console."""
    if as_json:
        click.echo(json.dumps(facts))
        return
    for line in _lines(facts):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Format names and figures, one per line, nested parts indented; of a long list only its length."""
    for name, value in facts.items():
        head = f"{indent}{name:{max(28 - len(indent), 1)}s}"
        if isinstance(value, Mapping) and value:
            yield head.rstrip()
            yield from _lines(value, indent + "  ")
        elif isinstance(value, (list, tuple)) and (len(value) > 4 or any(isinstance(v, (list, tuple, dict)) for v in value)):
            yield f"{head} {len(value)} values (--json shows them)"
        elif isinstance(value, (list, tuple)):
            yield f"{head} {'  '.join(_figure(v) for v in value)}"
        else:
            yield f"{head} {_figure(value)}"


def _figure(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)
