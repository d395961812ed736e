"""Options that the commands of training share: which ranker, settings from a file, checkpoints, how many events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from schemas.click_types import Whole
from training.recipe import KINDS, LearnSettings
from training.settings_file import read_settings

__all__ = ["FP16", "MORE", "chosen", "newest", "settings_file"]


def _keep(context: click.Context, option: click.Parameter, value: Any) -> None:
    context.meta[f"training.{option.name}"] = value


MORE = (
    click.option("--ranker", type=click.Choice(KINDS), expose_value=False, callback=_keep, help="mmoe without it."),
    click.option(
        "--settings",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        expose_value=False,
        callback=_keep,
        help="JSON file of settings, as `riffle tune` writes it.",
    ),
    click.option(
        "--checkpoints",
        default="",
        expose_value=False,
        callback=_keep,
        help="Folder of checkpoints: a training that was killed goes on from there.",
    ),
    click.option(
        "--image-hosts",
        default="",
        envvar="RIFFLE_IMAGE_HOSTS",
        expose_value=False,
        callback=_keep,
        help="Hosts whose images are fetched though their addresses are not public; off: no image is fetched by URL.",
    ),
    click.option(
        "--newest",
        default=0,
        type=Whole(0),
        expose_value=False,
        callback=_keep,
        help="Read only so many events, the newest, and as many that say what was shown: memory grows with them. 0: all.",
    ),
)
"To be added to a command; their values do not reach it as arguments, but through `chosen` and `newest`."
FP16 = click.option(
    "--fp16", is_flag=True, expose_value=False, callback=_keep, help="Export graphs in half precision, for GPUs."
)
"Likewise, where a release is exported."


def newest() -> int:
    """How many events the running command is to read; 0 means all."""
    context = click.get_current_context(silent=True)
    return 0 if context is None else int(context.meta.get("training.newest") or 0)


def settings_file() -> Path | None:
    """The file that --settings of the running command names."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get("training.settings")


def chosen(settings: LearnSettings) -> LearnSettings:
    """The settings with what the options of the running command say; the file first, then the single options.

    Raises:
        ConfigError: the file holds what cannot be.
    """
    context = click.get_current_context(silent=True)
    given = {} if context is None else context.meta
    file, ranker = given.get("training.settings"), given.get("training.ranker")
    if file is not None:
        settings = read_settings(file, settings)
    if ranker is not None:
        settings = replace(settings, ranker=replace(settings.ranker, kind=ranker))
    if given.get("training.checkpoints"):
        settings = replace(settings, checkpoints=given["training.checkpoints"])
    if given.get("training.image_hosts"):
        settings = replace(settings, image_hosts=given["training.image_hosts"])
    if given.get("training.fp16"):
        settings = replace(settings, half=True)
    return settings
