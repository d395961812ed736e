"""The schema of the AWS provider, read from the bindings that CDKTF generated from it.

The registry of providers may be out of reach; a package index holds the bindings. They name each resource, its arguments with
their types, which are required, its blocks with how many are allowed, and its computed attributes. The result has the form of
`terraform providers schema -json`.
"""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["provider_schema", "provider_version", "write_schema"]

CLASS = re.compile(r"^class (\w+) extends [\w.]+ \{$(.*?)^\}$", re.M | re.S)
STRUCT = re.compile(r"^function (\w+)ToHclTerraform\(\w+\) \{$(.*?)^\}$", re.M | re.S)
TOP = re.compile(r"synthesizeHclAttributes\(\) \{(.*?)return Object", re.S)
ENTRY = re.compile(
    r"^\s+(?P<name>\w+): \{\s+value: (?P<value>.*?),\s+isBlock: (?P<block>true|false),\s+"
    r"type: \"(?P<type>\w+)\",\s+storageClassType: \"(?P<of>\w+)\",\s+\},",
    re.M | re.S,
)
NESTED = re.compile(r"new (\w+?)(OutputReference|List|Map)\(this, \"(\w+)\"")
GETTER = re.compile(
    r"this\.get(String|Number|Boolean|List|NumberList|StringMap|NumberMap|BooleanMap|AnyMap)Attribute\('(\w+)'\)"
)
MAPPED = re.compile(r"new cdktf\.(String|Boolean|Number)Map\(this, \"(\w+)\"\)")
INTERFACE = re.compile(r"^export interface (\w+)(?: extends [\w.]+)? \{$(.*?)^\}$", re.M | re.S)
FIELD = re.compile(r"/docs/[\w-]+/[\w-]+#(\w+) [^}]*\}(?:(?!\*/).)*\*/\s+readonly \w+(\??):", re.S)
SIMPLE: dict[str, Any] = {"string": "string", "number": "number", "boolean": "bool"}
COMPUTED: dict[str, Any] = {
    "String": "string",
    "Number": "number",
    "Boolean": "bool",
    "List": ["list", "string"],
    "NumberList": ["list", "number"],
    "StringMap": ["map", "string"],
    "NumberMap": ["map", "number"],
    "BooleanMap": ["map", "bool"],
    "AnyMap": ["map", "string"],
}


def _type(kind: str, of: str) -> Any:
    """The type of an argument that is no block."""
    if kind == "simple":
        return SIMPLE.get(of, "string")
    inner = next((name for name in SIMPLE if of.startswith(name)), "string")
    element: Any = ["map", SIMPLE[inner]] if kind != "map" and of.endswith("MapList") else SIMPLE[inner]
    return [kind, element]


class _Module:
    """One resource's source: its classes, its structures, and what is required."""

    def __init__(self, source: str, declared: str) -> None:
        self.source = source
        self.classes = dict(CLASS.findall(source))
        self.structs = {name[0].upper() + name[1:]: body for name, body in STRUCT.findall(source)}
        self.required = {
            name: {field for field, optional in FIELD.findall(body) if not optional}
            for name, body in INTERFACE.findall(declared)
        }

    def block(self, entries: str, owner: str, needed: set[str]) -> dict[str, Any]:
        """The block of `entries`, whose values are held by the class `owner`."""
        attributes: dict[str, Any] = {}
        blocks: dict[str, Any] = {}
        holder = self.classes.get(owner, "")
        single = {name: kind == "OutputReference" for _, kind, name in NESTED.findall(holder)}
        for found in ENTRY.finditer(entries):
            name, kind = found["name"], found["type"]
            required = name in needed
            if found["block"] == "false":
                access = {"required": True} if required else {"optional": True, "computed": True}
                attributes[name] = {"type": _type(kind, found["of"]), **access}
                continue
            struct = found["of"].removesuffix("List") if kind != "struct" else found["of"]
            inner = self.block(self.structs.get(struct, ""), f"{struct}OutputReference", self.required.get(struct, set()))
            mode = {"struct": "single"}.get(kind, kind)
            blocks[name] = {"nesting_mode": mode, "block": inner}
            if mode != "single":
                blocks[name] |= {"min_items": int(required), "max_items": int(single.get(name, False))}
        for name, kind in self.computed(owner).items():
            if name not in attributes and name not in blocks:
                attributes[name] = {"type": kind, "computed": True}
        return {"attributes": attributes, "block_types": blocks}

    def computed(self, owner: str) -> dict[str, Any]:
        """Types of what the class can read."""
        body = self.classes.get(owner, "")
        found: dict[str, Any] = {name: COMPUTED[kind] for kind, name in GETTER.findall(body)}
        found |= {name: ["map", SIMPLE[kind.lower()]] for kind, name in MAPPED.findall(body)}
        for struct, kind, name in NESTED.findall(body):
            if not struct.startswith("cdktf") and f"{struct}OutputReference" in self.classes:
                inner = self.computed(f"{struct}OutputReference")
                shape = ["object", {key: value for key, value in inner.items() if key != "internal_value"}]
                found.setdefault(name, shape if kind == "OutputReference" and "single" in name else ["list", shape])
        return found

    def schema(self, cls: str) -> dict[str, Any]:
        """The schema of the resource, data source or provider that the class makes."""
        entries = TOP.search(self.classes[cls])
        made = self.block(entries[1] if entries else "", cls, self.required.get(f"{cls}Config", set()))
        return {"version": 0, "block": made}


def _modules(wheel: Path, folders: Iterable[str] | None) -> Iterator[tuple[str, str, str]]:
    """Folder, source and declarations of each resource in the bindings."""
    wanted = None if folders is None else set(folders)
    with zipfile.ZipFile(wheel) as outer:
        (packed,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        held: dict[str, dict[str, str]] = {}
        with tarfile.open(fileobj=outer.open(packed), mode="r|gz") as inner:
            for member in inner:
                path = Path(member.name)
                if len(path.parts) != 4 or path.parts[1] != "lib" or path.name not in ("index.js", "index.d.ts"):
                    continue
                folder = path.parts[2]
                if wanted is not None and folder not in wanted:
                    continue
                stream = inner.extractfile(member)
                assert stream is not None
                held.setdefault(folder, {})[path.suffix] = stream.read().decode()
                if len(held[folder]) == 2:
                    both = held.pop(folder)
                    yield folder, both[".js"], both[".ts"]


def provider_version(wheel: Path) -> str:
    """The version of the provider from which the bindings were generated."""
    for _, source, _ in _modules(wheel, ["provider"]):
        found = re.search(r"providerVersion: '([\d.]+)'", source)
        assert found is not None
        return found[1]
    raise ValueError(f"{wheel.name} holds no provider")


def provider_schema(wheel: Path, resources: Iterable[str], data: Iterable[str]) -> dict[str, Any]:
    """The schemas of the provider and of these types of resources and data sources.

    Types that the bindings do not hold are left out, so that terraform reports them where they are used.
    """
    folders = {name.removeprefix("aws_").replace("_", "-"): ("resource_schemas", name) for name in resources}
    folders |= {f"data-aws-{name.removeprefix('aws_').replace('_', '-')}": ("data_source_schemas", name) for name in data}
    made: dict[str, Any] = {"provider": {}, "resource_schemas": {}, "data_source_schemas": {}}
    for folder, source, declared in _modules(wheel, {"provider", *folders}):
        module = _Module(source, declared)
        (cls,) = re.findall(r"^(\w+)\.tfResourceType = ", source, re.M)
        if folder == "provider":
            made["provider"] = module.schema(cls)
        else:
            kind, name = folders[folder]
            made[kind][name] = module.schema(cls)
    return made


def write_schema(wheel: Path, resources: Iterable[str], data: Iterable[str], to: Path) -> None:
    """Write the schemas as JSON."""
    to.write_text(json.dumps(provider_schema(wheel, resources, data), indent=1))
