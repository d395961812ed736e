"""Imports releases: from a folder or a SageMaker job's `model.tar.gz`, either of them local or in S3.

Only files with names known from releases are written, bounded in number and size. Nothing is loaded before every file matches
the sha256 in the manifest, which detects damaged or incomplete releases. It does not detect a release that somebody with write
access to the source replaced together with its manifest; for that, pass the manifest's sha256 from an independent channel.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from models.release.release import FILES_OF, MAX_FILE_BYTES, MAX_MANIFEST_BYTES, OPTIONAL, Release, plain_file, read_manifest
from schemas.errors import ReleaseRejected, TransientError

__all__ = ["ARCHIVES", "MOST_BYTES", "MOST_MEMBERS", "download", "split", "take"]

ARCHIVES = (".tar.gz", ".tgz")
MANIFEST = "manifest.json"
KNOWN = frozenset((MANIFEST, *OPTIONAL)).union(*FILES_OF.values())
MOST_BYTES = 2 * MAX_FILE_BYTES
"Maximum size of an archive in bytes, packed and unpacked."
MOST_MEMBERS = 1_000
MOST_AT_ONCE = 1 << 20
FORBIDDEN, NOT_FOUND = 403, 404


def take(root: Path, source: str, sha256: str = "", client: Any = None) -> Path:
    """Verify a release from `source` and copy it below `root` atomically; returns its folder, also if it was there already.

    `source`: a folder, a `.tar.gz`, or `s3://bucket/…` of either. `sha256`: required hash of the manifest's bytes, if given.

    Raises:
        ReleaseRejected: `source` holds no release or may not be read, the release does not match its manifest or `sha256`, or
            `root` holds another release of its name.
        TransientError: S3 cannot be reached, or there are no credentials.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=root) as made:
        part = Path(made) / "release"
        part.mkdir()
        if source.startswith("s3://"):
            _from_s3(source, part, sha256, client)
        elif source.endswith(ARCHIVES) and Path(source).is_file():
            _unpack(Path(source), part, sha256)
        elif Path(source).is_dir():
            _copy(Path(source), part)
        else:
            raise ReleaseRejected("not_found", f"{source} is neither a release's folder nor a .tar.gz that holds one")
        if not (part / MANIFEST).is_file():
            raise ReleaseRejected("not_found", f"{source} holds no release: there is no {MANIFEST}")
        data = (part / MANIFEST).read_bytes()
        if sha256 and hashlib.sha256(data).hexdigest() != sha256.lower():
            raise ReleaseRejected("manifest_changed", f"the manifest in {source} has another sha256 than {sha256[:80]}")
        name = read_manifest(part).name
        named, folder = part.rename(part.with_name(name)), root / name
        Release.open(named)
        if folder.is_dir():
            if (folder / MANIFEST).read_bytes() != data:
                raise ReleaseRejected("exists", f"{root} holds another release {name}: move that one away first")
            Release.open(folder)
        else:
            named.rename(folder)
    return folder


def _copy(folder: Path, part: Path) -> None:
    shutil.copyfile(plain_file(folder, MANIFEST, MAX_MANIFEST_BYTES), part / MANIFEST)
    for name in sorted(read_manifest(part).files):
        shutil.copyfile(plain_file(folder, name, MAX_FILE_BYTES), part / name)


class _Sparing(gzip.GzipFile):
    """A gzip file that refuses large single reads, which only the header of a malicious archive requests."""

    def read(self, size: int | None = -1) -> bytes:
        """Read at most `size` bytes, from 0 to MOST_AT_ONCE; raises ReadError for other sizes."""
        if size is None or not 0 <= size <= MOST_AT_ONCE:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _unpack(archive: Path, part: Path, sha256: str) -> None:
    """Extract the published release of the archive to `part`; other files, such as a report, are skipped."""
    _bounded(archive.name, archive.stat().st_size, MOST_BYTES)
    with tempfile.TemporaryDirectory(prefix="archive-", dir=part.parent) as unpacked:
        folders = _extract(archive, Path(unpacked))
        if folders:
            part.rmdir()
            _published(archive.name, folders, sha256).rename(part)


def _extract(archive: Path, to: Path) -> list[Path]:
    """Extract the files whose names are known from releases; returns a folder for each that the archive has them in."""
    total, folders = 0, dict[PurePosixPath, Path]()
    try:
        with _Sparing(archive) as data, tarfile.open(fileobj=data, mode="r:") as tar:
            for number, member in enumerate(tar, 1):
                if member.size < 0:
                    raise ReleaseRejected("bad_archive", f"{archive.name} holds a file of {member.size} bytes")
                total += member.size
                _bounded(archive.name, total, MOST_BYTES)
                path = PurePosixPath(member.name)
                if number > MOST_MEMBERS:
                    raise ReleaseRejected("bad_archive", f"{archive.name} holds more than {MOST_MEMBERS} files")
                plain = member.isdir() or (member.isreg() and not member.issparse())
                if path.is_absolute() or ".." in path.parts or not plain:
                    what = f"{member.name[:80]!r}, which is not a plain file inside it"
                    raise ReleaseRejected("bad_archive", f"{archive.name} holds {what}")
                if member.isdir() or path.name not in KNOWN:
                    continue
                limit = MAX_MANIFEST_BYTES if path.name == MANIFEST else MAX_FILE_BYTES
                _bounded(f"{path.name} in {archive.name}", member.size, limit)
                folder = folders.setdefault(path.parent, to / str(len(folders)))
                folder.mkdir(exist_ok=True)
                if (folder / path.name).exists():
                    raise ReleaseRejected("bad_archive", f"{archive.name} holds more than one {path}")
                content = tar.extractfile(member)
                assert content is not None
                with content, (folder / path.name).open("xb") as out:
                    shutil.copyfileobj(content, out)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, RecursionError) as exc:  # headers nest without end
        raise ReleaseRejected("bad_archive", f"{archive.name} cannot be unpacked: {exc}") from exc
    return list(folders.values())


def _published(archive: str, folders: Sequence[Path], sha256: str) -> Path:
    """Find the release that a training published: of a judged one and its refit, the refit. With `sha256`, the one it names."""
    if len(folders) == 1:
        return folders[0]
    if any(not (folder / MANIFEST).is_file() for folder in folders):
        raise ReleaseRejected("bad_archive", f"{archive} holds files of releases in several folders, some without a {MANIFEST}")
    for folder in folders:
        if sha256 and hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest() == sha256.lower():
            return folder
    try:
        manifests = {folder: read_manifest(folder) for folder in folders}
    except ReleaseRejected as exc:
        raise ReleaseRejected("bad_archive", f"{archive} holds more than one release, not all with a manifest: {exc}") from exc
    judged = {str(refit.get("of")) for found in manifests.values() if isinstance(refit := found.metrics.get("refit"), dict)}
    left = [folder for folder, found in manifests.items() if found.name not in judged]
    if len(left) != 1:
        names = ", ".join(sorted(found.name for found in manifests.values())[:5])
        raise ReleaseRejected("bad_archive", f"{archive} holds more than one release ({names}): name one by its sha256")
    return left[0]


def _bounded(name: str, size: int, limit: int) -> None:
    if size > limit:
        raise ReleaseRejected("too_large", f"{name} holds {size} bytes or more, {limit} are allowed")


def split(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/key` into bucket and key, without slashes at the key's ends."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.strip("/")


def download(s3: Any, bucket: str, prefix: str, part: Path, sha256: str | None = None) -> None:
    """Download the files of a release's folder in S3 that its manifest lists; the manifest must match `sha256`, if given.

    Raises:
        ReleaseRejected: the manifest cannot be read or does not match, or a file is too large.
    """
    _get(s3, bucket, f"{prefix}/{MANIFEST}", part / MANIFEST, MAX_MANIFEST_BYTES)
    # the manifest was checked to list only file names of its format
    for name in sorted(read_manifest(part, sha256).files):
        _get(s3, bucket, f"{prefix}/{name}", part / name, MAX_FILE_BYTES)


def _get(s3: Any, bucket: str, key: str, to: Path, limit: int) -> None:
    _bounded(f"s3://{bucket}/{key}", s3.head_object(Bucket=bucket, Key=key)["ContentLength"], limit)
    s3.download_file(bucket, key, str(to))


def _from_s3(source: str, part: Path, sha256: str, client: Any) -> None:
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = split(source)
    try:
        s3 = client or boto3.client("s3")
        if key.endswith(ARCHIVES):
            archive = part.with_name("model.tar.gz")
            _get(s3, bucket, key, archive, MOST_BYTES)
            _unpack(archive, part, sha256)
        else:
            download(s3, bucket, key, part)
    except ClientError as exc:
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status == NOT_FOUND:
            raise ReleaseRejected("not_found", f"there is no {source}: {exc}") from exc
        if status == FORBIDDEN:
            message = f"these credentials may not read {source}, if it exists at all: {exc}"
            raise ReleaseRejected("forbidden", message) from exc
        raise TransientError("s3", f"{source} cannot be requested from S3: {exc}") from exc
    except (BotoCoreError, Boto3Error) as exc:
        raise TransientError("s3", f"{source} cannot be requested from S3: {exc}") from exc
