"""The packages that the lists in `requirements/` pin."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
FINDING, UNANSWERED = 1, 75
"Exit statuses: something was found; something could not be asked (EX_TEMPFAIL)."


class Pin(NamedTuple):
    """One version of a package; the name is normalised as PEP 503 says."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def normalised(name: str) -> str:
    """The name of a package as an index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(texts: Iterable[str]) -> list[Pin]:
    """Each pinned version of the lists once, sorted."""
    return sorted({Pin(normalised(name), version) for text in texts for name, version in PINNED.findall(text)})


def pinned(folder: Path = HERE) -> list[Pin]:
    """Each version that any list of the folder pins."""
    return pins(
        path.read_text(encoding="utf-8") for path in folder.glob("*.txt") if "--hash=sha256:" in path.read_text("utf-8")
    )


def rounds(all_pins: Iterable[Pin]) -> list[list[Pin]]:
    """Divide the pins so that no part has two versions of a package, which one list cannot hold."""
    parts: list[dict[str, Pin]] = []
    for pin in all_pins:
        part = next((part for part in parts if pin.name not in part), None)
        if part is None:
            parts.append({pin.name: pin})
        else:
            part[pin.name] = pin
    return [list(part.values()) for part in parts]
