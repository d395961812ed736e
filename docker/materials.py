"""Adds the packages of Debian in an image to its bill of materials: `python materials.py FILE` changes this CycloneDX file.

The tool that writes the file knows Python's packages only.
"""

import json
import subprocess
import sys
from pathlib import Path

FORMAT = "${Package}\t${Version}\t${Architecture}\t${db:Status-Status}\n"


def debian(listed: str) -> list[dict[str, str]]:
    """Components of the installed packages, from lines of `dpkg-query` in `FORMAT`."""
    found = [line.split("\t") for line in listed.splitlines()]
    return [
        {"type": "library", "name": name, "version": version, "purl": f"pkg:deb/debian/{name}@{version}?arch={architecture}"}
        for name, version, architecture, status in found
        if status == "installed"
    ]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    materials = json.loads(path.read_text(encoding="utf-8"))
    listed = subprocess.run(["dpkg-query", "--show", f"--showformat={FORMAT}"], capture_output=True, text=True, check=True)
    materials["components"] += debian(listed.stdout)
    path.write_text(json.dumps(materials, indent=1), encoding="utf-8")
