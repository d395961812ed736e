"""Terraform without AWS: its provider is a stub that serves the real schemas, and `terraform test` mocks its answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from provider_schema import provider_version, write_schema

ROOT = Path(__file__).resolve().parents[1]
DEPLOYED = ROOT / "deploy" / "terraform"
EXAMPLE = "envs/example"
SIZES = ("small", "medium", "large")
TOOLS = Path(os.environ.get("AWS_TOOLS", Path(sys.prefix) / "aws"))
"Where `make aws` keeps checkov, the bindings of the provider, and the built stub."
STUB = ROOT / "tests" / "aws" / "stub"


def program() -> str:
    """Path of terraform or OpenTofu. Skips the test without one."""
    found = shutil.which("terraform") or shutil.which("tofu")
    if found is None:
        pytest.skip("neither terraform nor tofu is installed")
    return found


def blocks(kind: str) -> set[str]:
    """Types of the resources, or data sources, that the modules use."""
    found = (re.findall(rf'^{kind} "(\w+)"', path.read_text(), re.M) for path in DEPLOYED.rglob("*.tf"))
    return {name for names in found for name in names}


@dataclass(frozen=True, slots=True)
class Terraform:
    """Runs terraform on copies of the configuration."""

    environment: dict[str, str]

    def __call__(self, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a folder."""
        return subprocess.run(
            [program(), *command], cwd=folder, env=os.environ | self.environment, capture_output=True, text=True, check=False
        )

    def initialised(self, copied: Path, of: str = EXAMPLE) -> Path:
        """Initialise one folder of a copy of the configuration, without its backend."""
        ran = self(copied / of, "init", "-backend=false", "-no-color")
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return copied / of

    def applied(self, folder: Path, size: str) -> dict[str, Any]:
        """The state after all of the example is applied to a mocked AWS."""
        (folder / "tests").mkdir(exist_ok=True)
        shutil.copy(ROOT / "tests" / "aws" / "apply.tftest.hcl", folder / "tests")
        ran = self(folder, "test", "-json", "-verbose", f"-var-file={size}.tfvars")
        lines = [json.loads(line) for line in ran.stdout.splitlines()]
        assert ran.returncode == 0, [line["diagnostic"] for line in lines if line["type"] == "diagnostic"]
        (state,) = (line["test_state"] for line in lines if line["type"] == "test_state")
        return dict(state)


def terraform(work: Path) -> Terraform:
    """Build the stub, unless it is newer than its source, and serve it to terraform. Skips without Go or the bindings."""
    wheels = list((TOOLS / "wheels").glob("cdktf_cdktf_provider_aws-*.whl"))
    if not wheels or not shutil.which("go"):
        pytest.skip("needs Go, and the bindings of the provider: make aws")
    (wheel,) = wheels
    program()
    version = provider_version(wheel)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    built = TOOLS / "stub" / "terraform-provider-aws"
    if not built.exists() or built.stat().st_mtime < (STUB / "main.go").stat().st_mtime:
        subprocess.run(["go", "build", "-trimpath", "-o", str(built), "."], cwd=STUB, check=True)
    for host in ("registry.terraform.io", "registry.opentofu.org"):
        folder = work / "mirror" / host / "hashicorp" / "aws" / version / f"linux_{machine}"
        folder.mkdir(parents=True)
        shutil.copy(built, folder / f"terraform-provider-aws_v{version}")
    write_schema(wheel, blocks("resource"), blocks("data"), work / "schema.json")
    settings = work / "settings"
    settings.write_text(f'provider_installation {{\n  filesystem_mirror {{ path = "{work / "mirror"}" }}\n}}\n')
    return Terraform({"TF_CLI_CONFIG_FILE": str(settings), "SCHEMA": str(work / "schema.json"), "CHECKPOINT_DISABLE": "1"})


def copied(to: Path) -> Path:
    """Copy the configuration, so that nothing is written beside it."""
    return Path(shutil.copytree(DEPLOYED, to, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*")))


def resources(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All resources of a state."""
    modules = [state["root_module"]]
    while modules:
        module = modules.pop()
        yield from module.get("resources", ())
        modules += module.get("child_modules", ())
