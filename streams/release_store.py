"""Release storage: a local folder of releases, filled from S3 when an announcement names an address there."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from schemas.errors import ReleaseRejected
from streams.kafka.announce import Announcement

__all__ = ["fetch_release", "upload_release"]


def _client() -> Any:
    import boto3

    return boto3.client("s3")


def fetch_release(root: Path, wanted: Announcement, client: Any = None) -> Path:
    """The release's folder below `root`, downloaded when it is missing and the announcement names an `s3://` address.

    The download is not trusted: `Release.open` verifies it against the announced manifest.

    Raises:
        ReleaseRejected: it is not here and cannot be fetched.
    """
    folder = root / wanted.release
    if folder.is_dir():
        return folder
    if not wanted.uri.startswith("s3://"):
        place = f"{wanted.uri} is not an s3:// address" if wanted.uri else "its announcement names no s3:// address"
        raise ReleaseRejected("not_here", f"there is no folder {folder}, and {place} to download it from")
    # because it is needed only here, and commands that must start fast import this module
    from models.release.source import download, split

    bucket, prefix = split(wanted.uri)
    root.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=root))
    try:
        download(client or _client(), bucket, prefix, part, wanted.manifest_sha256)
        part.chmod(0o755)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another worker was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def upload_release(folder: Path, target: str, client: Any = None) -> str:
    """Copy a release below `s3://bucket/prefix`, the manifest last; returns its `s3://` address."""
    from models.release.source import split

    bucket, prefix = split(target)
    s3 = client or _client()
    base = f"{prefix}/{folder.name}".strip("/")
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == "manifest.json", path.name)):
        s3.upload_file(str(path), bucket, f"{base}/{path.name}")
    return f"s3://{bucket}/{base}"
