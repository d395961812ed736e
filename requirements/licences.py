"""Reads the licence of every pinned package from its metadata in the index, and checks it against `audit.toml`.

`python -m requirements.licences` needs the index. The tests check the file that it writes, `licences.txt`, without one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from requirements.pins import FINDING, HERE, UNANSWERED, Pin, normalised, pinned, rounds

RECORDED = HERE / "licences.txt"
INDEX_S = 600.0
HEADER = "# Written by `make audit`: each pinned version and its licence, as its metadata or audit.toml states it.\n"


class UnreadableExpression(ValueError):
    """A text that is no SPDX licence expression."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What `audit.toml` says of licences.

    allowed: SPDX identifiers, also with an exception (`Apache-2.0 WITH LLVM-exception`).
    spellings: SPDX expression by a text that metadata has in its place, in lower case.
    stated: expression by package whose metadata has none that can be read.
    exceptions: the only licence beyond the allowed ones that a package may have, by its name or a pattern (`nvidia-*`).
    """

    allowed: frozenset[str]
    spellings: Mapping[str, str]
    stated: Mapping[str, str]
    exceptions: Mapping[str, str]

    @classmethod
    def read(cls, path: Path = HERE / "audit.toml") -> Rules:
        """Read the file."""
        held = tomllib.loads(path.read_text(encoding="utf-8"))["licences"]
        only = {name: one["licence"] for name, one in held["exceptions"].items()}
        stated = {name: one["licence"] for name, one in held["stated"].items()}
        return cls(frozenset(held["allowed"]), held["spellings"], stated, only)

    def refused(self, name: str, expression: str) -> bool:
        """Whether a package of this licence may not be used."""
        excepted = (only for pattern, only in self.exceptions.items() if fnmatchcase(name, pattern))
        return expression not in excepted and not permitted(expression, self.allowed)


def permitted(expression: str, allowed: Collection[str]) -> bool:
    """Whether the licences that one may choose by an SPDX expression include one all of whose parts are allowed.

    `AND` binds more than `OR`; `A WITH B` counts as one licence.

    Raises:
        UnreadableExpression: The text is no expression.
    """
    words = re.findall(r"[()]|[^\s()]+", expression)
    at = 0

    def word() -> str:
        return words[at] if at < len(words) else ""

    def one() -> bool:
        nonlocal at
        if word() == "(":
            at += 1
            held = either()
            if word() != ")":
                raise UnreadableExpression(expression)
            at += 1
            return held
        name = word()
        if name in {"", ")", "AND", "OR", "WITH"}:
            raise UnreadableExpression(expression)
        at += 1
        if word() == "WITH":
            name = f"{name} WITH {words[at + 1] if at + 1 < len(words) else ''}"
            at += 2
            if name.endswith((" ", ")", "(", "AND", "OR", "WITH")):
                raise UnreadableExpression(expression)
        return name in allowed

    def both() -> bool:
        nonlocal at
        held = one()
        while word() == "AND":
            at += 1
            held = one() and held
        return held

    def either() -> bool:
        nonlocal at
        held = both()
        while word() == "OR":
            at += 1
            held = both() or held
        return held

    result = either()
    if at != len(words):
        raise UnreadableExpression(expression)
    return result


def licence(metadata: Mapping[str, Any], rules: Rules) -> str | None:
    """SPDX expression of a package's metadata: its expression, its short text, or its classifiers; None if none can be read.

    Several classifiers count as all of them together, because metadata does not say whether one may choose.
    """
    stated = rules.stated.get(normalised(metadata["name"]))
    if stated is not None:
        return stated
    if metadata.get("license_expression"):
        return str(metadata["license_expression"])
    text = str(metadata.get("license") or "").strip()
    if text.lower() in rules.spellings:
        return rules.spellings[text.lower()]
    known = rules.allowed | set(rules.exceptions.values())
    try:
        if len(text) < 80 and permitted(text, known):
            return text
    except UnreadableExpression:
        pass
    named = [one.removeprefix("License :: ") for one in metadata.get("classifier", []) if one.startswith("License :: ")]
    found = [rules.spellings.get(one.rsplit(" :: ")[-1].lower()) for one in named if " :: " in one]
    return " AND ".join(one for one in found if one) if found and all(found) else None


def recorded(text: str) -> dict[Pin, str]:
    """Licence by pin of the written file."""
    lines = (line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#"))
    return {Pin(*words[0].split("==", 1)): words[1] for words in lines}


def written(licences: Mapping[Pin, str]) -> str:
    """The file's text."""
    return HEADER + "".join(f"{pin} {expression}\n" for pin, expression in sorted(licences.items()))


def metadata(part: Iterable[Pin]) -> list[dict[str, Any]]:
    """Metadata of packages in the index, without installing them; wheels only, so that nothing of theirs is run.

    Raises:
        OSError: The index did not answer for all of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        listed, report = Path(folder, "list.txt"), Path(folder, "report.json")
        listed.write_text("".join(f"{pin}\n" for pin in part), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
        command += ["--ignore-requires-python", "--only-binary", ":all:", "--report", str(report), "-r", str(listed)]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INDEX_S)
        except subprocess.TimeoutExpired as late:
            raise OSError(f"no answer within {INDEX_S:.0f} s") from late
        if ran.returncode:
            raise OSError(ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else f"pip ended with {ran.returncode}")
        return [one["metadata"] for one in json.loads(report.read_text(encoding="utf-8"))["install"]]


def main() -> int:
    """Write the file and print what may not be used; returns the exit status."""
    rules, all_pins = Rules.read(), pinned()
    # a package without a wheel is stated in audit.toml, because its metadata would have to be built
    found = {pin: rules.stated[pin.name] for pin in all_pins if pin.name in rules.stated}
    unread = []
    try:
        for part in rounds(pin for pin in all_pins if pin not in found):
            for one in metadata(part):
                pin = Pin(normalised(one["name"]), one["version"])
                expression = licence(one, rules)
                if expression is None:
                    unread.append(pin)
                else:
                    found[pin] = expression
    except OSError as fault:
        print(f"licences: NOT READ: {fault}", file=sys.stderr)
        return UNANSWERED
    RECORDED.write_text(written(found), encoding="utf-8")
    refused = {pin: expression for pin, expression in found.items() if rules.refused(pin.name, expression)}
    for pin in unread:
        print(f"licences: {pin} states no licence that can be read: add it to [licences.stated] in requirements/audit.toml")
    for pin, expression in sorted(refused.items()):
        print(f"licences: {pin} is licensed under {expression}, which requirements/audit.toml does not allow")
    print(f"licences: {len(all_pins)} packages, {len(refused)} not allowed, {len(unread)} unknown")
    return FINDING if refused or unread else 0


if __name__ == "__main__":
    sys.exit(main())
