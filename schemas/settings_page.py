"""The page of settings in the documentation: `python -m schemas.settings_page > docs/settings.md` writes it from the code."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

from schemas.settings import SECRETS, Settings

__all__ = ["page"]

INTRODUCTION = """# Settings

<!-- Written by `python -m schemas.settings_page > docs/settings.md`; a test fails when it is not current. -->

Each setting of the service is an environment variable, which every command and process reads once, at its start. A
value that cannot work is refused with the variable's name, and `riffle doctor` warns about an unknown `RIFFLE_`
variable. A secret is never shown and never logged; better than its variable is the file that its `_FILE` variable
names. Settings of training are in a file (`riffle train --settings`).

| variable | default | |
|---|---|---|
"""


def page() -> str:
    """Return the page as Markdown."""
    described = _descriptions()
    rows = []
    for field in fields(Settings):
        variable, text = f"RIFFLE_{field.name.upper()}", described[field.name]
        secret = " Secret." if field.name in SECRETS else ""
        rows.append(f"| `{variable}` | {_shown(field.default)} | {text}{secret} |\n")
    return INTRODUCTION + "".join(rows)


def _descriptions() -> dict[str, str]:
    """Return the text below each field."""
    tree = ast.parse(Path(inspect.getfile(Settings)).read_text(encoding="utf-8"))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == Settings.__name__).body
    found = {}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(below.value.value).split()).replace("|", "\\|")
    variables = re.compile("|".join(f"`{name}`" for name in found))
    return {name: variables.sub(lambda named: f"`RIFFLE_{named[0].strip('`').upper()}`", text) for name, text in found.items()}


def _shown(default: object) -> str:
    if isinstance(default, Path):
        text = str(default)
        home = str(Path.home())
        return f"`{'~' + text.removeprefix(home) if text.startswith(home) else text}`"
    return "" if default == "" else f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


if __name__ == "__main__":
    sys.stdout.write(page())
