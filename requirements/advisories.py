"""Asks PyPI's database of advisories about every pinned version, by pip-audit.

`python -m requirements.advisories` needs the network. A package for which the database gives no answer counts as not audited.
pip-audit itself exits with 0 then, even if the index is a mirror without any advisories.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from requirements.pins import FINDING, HERE, UNANSWERED, Pin, normalised, pinned, rounds

ASK_S = 900.0


@dataclass(slots=True)
class Answers:
    """Answers of the database.

    found: identifiers of advisories by pin, an empty list for a version without one.
    unanswered: reason by pin.
    """

    found: dict[Pin, list[str]] = field(default_factory=dict)
    unanswered: dict[Pin, str] = field(default_factory=dict)

    def add(self, part: Iterable[Pin], report: Mapping[str, Any]) -> None:
        """Add pip-audit's report on a part of the pins. A pin that it does not name is unanswered."""
        entries = {normalised(entry["name"]): entry for entry in report.get("dependencies", [])}
        for pin in part:
            entry = entries.get(pin.name, {})
            if "vulns" in entry and entry.get("version") == pin.version:
                self.found[pin] = [vulnerability["id"] for vulnerability in entry["vulns"]]
            else:
                self.unanswered[pin] = entry.get("skip_reason", "not in the report")

    def open(self, accepted: Mapping[str, str]) -> dict[Pin, list[str]]:
        """Advisories that nobody has accepted, by pin."""
        left = {pin: [one for one in ids if one not in accepted] for pin, ids in self.found.items()}
        return {pin: ids for pin, ids in left.items() if ids}


def accepted(path: Path = HERE / "audit.toml") -> dict[str, str]:
    """Reason by identifier of the advisories that do not concern Riffle."""
    held: dict[str, str] = tomllib.loads(path.read_text(encoding="utf-8"))["advisories"]
    return held


def ask(part: Iterable[Pin]) -> dict[str, Any]:
    """pip-audit's report on a part of the pins.

    Raises:
        OSError: It gave none, as without a network.
    """
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "list.txt")
        listed.write_text("".join(f"{pin}\n" for pin in part), encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(listed), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--desc", "off", "--progress-spinner", "off"]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ASK_S)
            report: dict[str, Any] = json.loads(ran.stdout)
        except subprocess.TimeoutExpired as late:
            raise OSError(f"no answer within {ASK_S:.0f} s") from late
        except ValueError as none:
            raise OSError(ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else "no report") from none
        return report


def summary(answers: Answers, reasons: Mapping[str, str]) -> tuple[list[str], int]:
    """What is printed, and the exit status: a finding counts before a missing answer."""
    left = answers.open(reasons)
    lines = [f"advisories: {pin}: {', '.join(ids)}" for pin, ids in sorted(left.items())]
    total = len(answers.found) + len(answers.unanswered)
    lines.append(f"advisories: {total} packages, {len(left)} with advisories, {len(answers.unanswered)} not answered")
    if answers.unanswered:
        pin, reason = next(iter(sorted(answers.unanswered.items())))
        lines.append(f"advisories: NOT AUDITED: the database gave no answer for {len(answers.unanswered)}; {pin}: {reason}")
    return lines, FINDING if left else UNANSWERED if answers.unanswered else 0


def main() -> int:
    """Print what the database says; returns the exit status."""
    answers = Answers()
    for part in rounds(pinned()):
        try:
            answers.add(part, ask(part))
        except OSError as fault:
            answers.unanswered |= dict.fromkeys(part, str(fault))
    lines, status = summary(answers, accepted())
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
