"""Storage targets of archive files: a folder, or a prefix of an S3 bucket. Files are written atomically."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from models.archive.lazy import lazily
from models.archive.spool import Spool
from schemas.errors import ConfigError

__all__ = ["LocalFolder", "S3Folder", "Target", "open_target"]


class Target(Protocol):
    """A flat store of immutable files named by `/`-separated paths."""

    def write(self, path: str, data: bytes) -> None:
        """Write `path` durably and atomically. Writing the same path again replaces the whole file."""

    def names(self, prefix: str) -> list[str]:
        """List the paths below `prefix`, sorted, without unfinished files."""

    def scan(self, paths: Sequence[str], kinds: Mapping[str, Any]) -> pl.LazyFrame:
        """Scan Parquet files, at least one, in this order, with columns of these names and types.

        Columns that a file lacks are null; other columns of a file are ignored.
        """


class LocalFolder:
    """A local folder. A file is written under a temporary name, synced and renamed, then the folder is synced."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, data: bytes) -> None:
        """See `Target.write`."""
        final = self.root / path
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=final.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            Path(name).replace(final)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def names(self, prefix: str) -> list[str]:
        """See `Target.names`."""
        base = self.root / prefix
        return sorted(str(path.relative_to(self.root)) for path in base.rglob("*.parquet") if path.name[0] != ".")

    def scan(self, paths: Sequence[str], kinds: Mapping[str, Any]) -> pl.LazyFrame:
        """See `Target.scan`."""
        return _scan([self.root / path for path in paths], kinds)


class S3Folder:
    """An S3 prefix, `s3://bucket/prefix`. boto3 reads credentials, region and endpoint from the environment."""

    def __init__(self, bucket: str, prefix: str = "", client: Any = None) -> None:
        if client is None:
            import boto3

            client = boto3.client("s3")
        self._client = client
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        start = self.prefix
        self._spool = Spool(lambda path, local: client.download_file(bucket, start + path, str(local)))

    def write(self, path: str, data: bytes) -> None:
        """See `Target.write`."""
        self._client.put_object(Bucket=self.bucket, Key=self.prefix + path, Body=data)

    def names(self, prefix: str) -> list[str]:
        """See `Target.names`."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
        keys = (entry["Key"] for page in pages for entry in page.get("Contents", ()))
        return sorted(key.removeprefix(self.prefix) for key in keys if key.endswith(".parquet"))

    def scan(self, paths: Sequence[str], kinds: Mapping[str, Any]) -> pl.LazyFrame:
        """See `Target.scan`. A query fetches files one by one as it reads them."""

        def parts() -> Iterator[pl.LazyFrame]:
            for path in paths:
                with self._spool.file(path) as local:
                    yield _scan([local], kinds)

        return lazily(parts, kinds)


def _scan(files: Sequence[Path], kinds: Mapping[str, Any]) -> pl.LazyFrame:
    return pl.scan_parquet(
        list(files), glob=False, hive_partitioning=False, schema=dict(kinds), missing_columns="insert", extra_columns="ignore"
    )


def open_target(text: str) -> Target:
    """Open the target that `Settings.archive_target` names.

    Raises:
        ConfigError: a URL that does not have the form `s3://bucket/prefix`.
    """
    if text.startswith("s3://"):
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        if not bucket:
            raise ConfigError("invalid_setting", "RIFFLE_ARCHIVE must be s3://bucket/prefix", "archive")
        return S3Folder(bucket, prefix)
    if "://" in text:
        raise ConfigError("invalid_setting", f"RIFFLE_ARCHIVE={text!r} is neither a folder nor s3://…", "archive")
    return LocalFolder(Path(text))
