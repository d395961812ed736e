"""Options of the training commands, passed to each command as one dataclass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from schemas.click_types import Whole
from training.environment import TrainingSettings
from training.recipe import KINDS, LearnSettings
from training.settings_file import read_settings

__all__ = ["LEARNING", "SHARED", "WRITTEN", "LearningOptions", "SharedOptions", "chosen", "gathered", "vectors_in"]

DEFAULT_CACHE = "~/.cache/riffle"
WRITTEN = click.Path(dir_okay=False, writable=True, path_type=Path)
Option = Callable[[Callable[..., None]], Callable[..., None]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedOptions:
    """Options of every command that trains, by name."""

    source: str
    ranker: str | None
    settings: Path | None
    checkpoints: str
    image_hosts: str
    newest: int
    positive: str | None
    text_model: str
    seed: int
    cache: str
    as_json: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningOptions(SharedOptions):
    """Options that `train` and `evaluate` share."""

    fp16: bool
    quick: bool


SHARED: tuple[Option, ...] = (
    click.option("--ranker", type=click.Choice(KINDS), help="Kind of ranker; default: mmoe."),
    click.option(
        "--settings",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="JSON file of settings, as `riffle tune` writes it.",
    ),
    click.option("--checkpoints", default="", help="Folder of checkpoints, from which a killed training continues."),
    click.option(
        "--image-hosts",
        default=lambda: TrainingSettings.from_env().image_hosts,
        help="Hosts whose images are fetched although their addresses are not public; off: no image is fetched by URL.",
    ),
    click.option(
        "--newest",
        default=0,
        type=Whole(0),
        help="Read only the newest N events, and as many impressions: memory grows with them. 0: all.",
    ),
)
"Options of every command that trains: ranker, settings file, checkpoints, image hosts, number of events."
LEARNING: tuple[Option, ...] = (
    *SHARED,
    click.option("--fp16", is_flag=True, help="Export graphs in half precision, for GPUs."),
    click.option("--positive", help="Rule over event columns for liked events, such as \"action == 'like'\"."),
    click.option(
        "--text-model",
        default=lambda: TrainingSettings.from_env().text_model,
        help="Folder or hub name of a text encoder; default: the packaged MiniLM.",
    ),
    click.option("--seed", default=0, show_default=True, type=Whole(0)),
    click.option("--quick", is_flag=True, help="Fewer epochs: a release of slightly lower quality in a third of the time."),
    click.option("--cache", default=DEFAULT_CACHE, show_default=True, help="Folder of encoded item vectors."),
    click.option("--json", "as_json", is_flag=True, help="End with one line of JSON."),
)
"Options of the commands that train a release."


def gathered(kind: Callable[..., T], *options: Option) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Decorate a function of one argument as a command whose option values are passed as `kind`, a dataclass.

    `options` are added below those of the decorators above it. `kind` needs a field for each parameter of the command.
    """

    def decorate(command: Callable[[T], None]) -> Callable[..., None]:
        @wraps(command)
        def called(**given: Any) -> None:
            command(kind(**given))

        decorated: Callable[..., None] = called
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def chosen(settings: LearnSettings, options: SharedOptions) -> LearnSettings:
    """Apply the options to the settings: first the settings file, then the single options.

    Raises:
        ConfigError: the file holds an unknown name or an invalid value.
    """
    if options.settings is not None:
        settings = read_settings(options.settings, settings)
    if options.ranker is not None:
        settings = replace(settings, ranker=replace(settings.ranker, kind=options.ranker))
    if options.checkpoints:
        settings = replace(settings, checkpoints=options.checkpoints)
    if options.image_hosts:
        settings = replace(settings, image_hosts=options.image_hosts)
    if isinstance(options, LearningOptions) and options.fp16:
        settings = replace(settings, half=True)
    return settings


def vectors_in(options: SharedOptions) -> Path:
    """Folder of encoded item vectors."""
    return Path(options.cache).expanduser() / "vectors"
