"""Builds the documentation's site from the files as they lie in the repository, where links between them work, too.

Files outside of this folder that are worth reading become pages; links to them are adapted. Links to other files, such as
schemas, become plain text. Called by mkdocs (`mkdocs.yml`).
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
ADDED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "deploy/README.md": "deploy.md",
    "deploy/terraform/README.md": "terraform.md",
}
"Page of each file that lies elsewhere."
LINK = re.compile(r"(?P<text>!?\[(?:[^\]\[]|\[[^\]]*\])*\])\((?P<path>[^)\s#:]*)(?P<part>#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of `ADDED` that exist."""
    for path, page in ADDED.items():
        if (ROOT / path).exists():
            files.append(File.generated(config, page, content=adapted((ROOT / path).read_text(encoding="utf-8"), path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:  # noqa: ARG001
    """Adapt the links of a page of this folder."""
    return markdown if page.file.generated_by else adapted(markdown, f"docs/{page.file.src_uri}")


def adapted(markdown: str, path: str) -> str:
    """Return the text of the file `path` with links that hold in the site."""
    here = posixpath.dirname(_page_of(path) or "")

    def link(found: re.Match[str]) -> str:
        if not found["path"]:
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), found["path"]))
        page = _page_of(target)
        if page is None:
            # one that does not exist stays, and is reported
            return found["text"].removeprefix("!")[1:-1] if (ROOT / target).exists() else found[0]
        return f"{found['text']}({posixpath.relpath(page, here or '.')}{found['part'] or ''})"

    return LINK.sub(link, markdown)


def _page_of(path: str) -> str | None:
    """Return where a file is in the site; None if it is not there."""
    if path in ADDED:
        return ADDED[path] if (ROOT / path).exists() else None
    if not path.startswith("docs/") or path.endswith(".py"):
        return None
    file = ROOT / path
    if file.is_dir():
        path = f"{path}/README.md"
    return path.removeprefix("docs/") if (ROOT / path).is_file() else None
