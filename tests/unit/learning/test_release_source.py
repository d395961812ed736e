"""An imported release is complete and matches its manifest, or is refused; the import writes only the release's files."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from boto3.exceptions import RetriesExceededError
from botocore.exceptions import ClientError

from models.release import source as release_source
from models.release.release import Release, manifest_sha256
from models.release.source import take
from schemas.errors import ReleaseRejected, RiffleError, TransientError


def packed(folder: Path, to: Path, more: Callable[[tarfile.TarFile], None] = lambda tar: None) -> Path:
    """Pack a job's results as SageMaker does: the release's folder, and its report beside it."""
    with tarfile.open(to, "w:gz") as tar:
        tar.add(folder, folder.name)
        member(tar, f"{folder.name}.report.json", b"{}")
        more(tar)
    return to


def member(tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    tar.addfile(info, io.BytesIO(data))


def refused(root: Path, source: Path, sha256: str = "") -> str:
    with pytest.raises(ReleaseRejected) as caught:
        take(root, str(source), sha256)
    assert not root.exists() or not list(root.iterdir()), "nothing of it is left"
    return caught.value.code


def test_a_folder_and_an_archive_arrive_and_coming_twice_changes_nothing(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "there"
    for source in (folder, packed(folder, tmp_path / "model.tar.gz")):
        taken = take(root, str(source), manifest_sha256(folder).upper())
        assert taken == root / folder.name
        assert [path.name for path in root.iterdir()] == [folder.name], "its report stays where it was"
        assert Release.open(taken).name == folder.name
        assert take(root, str(source)) == taken
        shutil.rmtree(root)


def test_a_damaged_release_is_refused_and_so_is_another_than_was_heard_of(folder: Path, tmp_path: Path) -> None:
    root, good = tmp_path / "there", packed(folder, tmp_path / "good.tar.gz")
    assert refused(root, good, "0" * 64) == "manifest_changed"
    (folder / "ranker.onnx").write_bytes(b"another")
    assert refused(root, folder) == "checksum"
    assert refused(root, packed(folder, tmp_path / "bad.tar.gz")) == "checksum"
    (folder / "ranker.onnx").unlink()
    assert refused(root, packed(folder, tmp_path / "less.tar.gz")) == "missing_file"
    assert refused(root, tmp_path / "nowhere") == "not_found"
    (tmp_path / "empty").mkdir()
    assert refused(root, tmp_path / "empty") == "missing_file"
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(good.read_bytes()[:-2_000])
    assert refused(root, cut) == "bad_archive"


def test_a_folder_of_links_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "ranker.onnx").rename(tmp_path / "ranker.onnx")
    (folder / "ranker.onnx").symlink_to(tmp_path / "ranker.onnx")
    assert refused(tmp_path / "there", folder) == "bad_file"


@pytest.mark.parametrize(
    ("name", "data", "kind", "link"),
    [
        ("../ranker.onnx", b"x", tarfile.REGTYPE, ""),
        ("/tmp/ranker.onnx", b"x", tarfile.REGTYPE, ""),
        ("a/../../ranker.onnx", b"x", tarfile.REGTYPE, ""),
        ("link", b"", tarfile.SYMTYPE, "/etc/passwd"),
        ("hard", b"", tarfile.LNKTYPE, "ranker.onnx"),
        ("pipe", b"", tarfile.FIFOTYPE, ""),
        ("device", b"", tarfile.CHRTYPE, ""),
        ("other/manifest.json", b"{}", tarfile.REGTYPE, ""),
    ],
)
def test_an_archive_with_what_does_not_belong_there_is_refused(
    folder: Path, tmp_path: Path, name: str, data: bytes, kind: bytes, link: str
) -> None:
    source = packed(folder, tmp_path / "model.tar.gz", lambda tar: member(tar, name, data, kind, link))
    assert refused(tmp_path / "there", source) == "bad_archive"


def test_an_archive_that_holds_a_file_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    again = f"{folder.name}/ranker.onnx"
    source = packed(folder, tmp_path / "model.tar.gz", lambda tar: member(tar, again, b"x"))
    assert refused(tmp_path / "there", source) == "bad_archive"


def another(folder: Path, name: str, metrics: dict[str, Any]) -> Path:
    """A copy of the release of another name, beside it."""
    made = shutil.copytree(folder, folder.with_name(name))
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps(manifest | {"name": name, "metrics": metrics}))
    return made


@pytest.mark.parametrize("refit_first", [False, True])
def test_of_a_judged_release_and_its_refit_the_refit_arrives(folder: Path, tmp_path: Path, refit_first: bool) -> None:
    refit = another(folder, "refit", {"refit": {"of": folder.name}})
    first, second = (refit, folder) if refit_first else (folder, refit)
    source = packed(first, tmp_path / "model.tar.gz", lambda tar: tar.add(second, second.name))
    root = tmp_path / "there"
    assert refused(root, source, "0" * 64) == "manifest_changed"
    assert take(root, str(source)) == root / "refit"
    assert take(root, str(source), manifest_sha256(refit)) == root / "refit"
    assert sorted(path.name for path in root.iterdir()) == ["refit"]
    assert take(root, str(source), manifest_sha256(folder)) == root / folder.name


@pytest.mark.parametrize("of", ["nobody", "other", 5, ["release"], None])
def test_of_two_releases_without_a_refit_none_arrives(folder: Path, tmp_path: Path, of: Any) -> None:
    other = another(folder, "other", {"refit": {"of": of}})
    source = packed(folder, tmp_path / "model.tar.gz", lambda tar: tar.add(other, other.name))
    if of != "other":
        assert refused(tmp_path / "there", source) == "bad_archive"
    assert take(tmp_path / "there", str(source), manifest_sha256(other)).name == "other"


def test_number_and_size_are_bounded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def more(tar: tarfile.TarFile) -> None:
        for n in range(1_000):
            member(tar, f"f{n}")

    many = packed(folder, tmp_path / "many.tar.gz", more)
    assert refused(tmp_path / "there", many) == "bad_archive"
    whole = packed(folder, tmp_path / "whole.tar.gz")
    monkeypatch.setattr(release_source, "MOST_BYTES", whole.stat().st_size)
    assert refused(tmp_path / "there", whole) == "too_large", "by what it holds, not by what it is"


def test_no_size_is_taken_back(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def less(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo("less")
        info.type, info.size = tarfile.DIRTYPE, -(10**15)
        tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))
        tar.offset += tarfile.BLOCKSIZE

    assert refused(tmp_path / "there", packed(folder, tmp_path / "model.tar.gz", less)) == "bad_archive"
    whole = packed(folder, tmp_path / "whole.tar.gz")
    monkeypatch.setattr(release_source, "MAX_FILE_BYTES", max(path.stat().st_size for path in folder.iterdir()) - 1)
    with pytest.raises(ReleaseRejected, match=r" in whole.tar.gz holds"):
        take(tmp_path / "there", str(whole))


def test_headers_of_headers_without_end_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type = tarfile.XHDTYPE
    source = tmp_path / "model.tar.gz"
    with gzip.open(source, "wb", 1) as out:
        out.write(info.tobuf() * 5_000)
    assert refused(tmp_path / "there", source) == "bad_archive"


class Refusing:
    """An S3 client that answers every request with the same error."""

    def __init__(self, answer: Exception) -> None:
        self._answer = answer

    def head_object(self, **_: Any) -> dict[str, Any]:
        """See boto3's `head_object`."""
        raise self._answer


def client_error(status: int) -> ClientError:
    said: Any = {"Error": {"Code": str(status), "Message": "so"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(said, "HeadObject")


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (client_error(404), ReleaseRejected, "not_found"),
        (client_error(403), ReleaseRejected, "forbidden"),
        (client_error(503), TransientError, "s3"),
        # boto3 gives it what the last attempt raised, of any kind; its stubs know boto3's own alone
        (RetriesExceededError(OSError("cut off")), TransientError, "s3"),  # type: ignore[arg-type]
    ],
)
def test_why_s3_gives_nothing_is_told_apart(tmp_path: Path, answer: Exception, kind: type[RiffleError], code: str) -> None:
    for source in ("s3://bucket/some/release", "s3://bucket/model.tar.gz"):
        with pytest.raises(kind) as caught:
            take(tmp_path / "there", source, client=Refusing(answer))
        assert caught.value.code == code
        assert not list((tmp_path / "there").iterdir())


def test_a_header_cannot_ask_for_more_memory_than_a_header_needs(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 64 << 20
    source = tmp_path / "model.tar.gz"
    with gzip.open(source, "wb", 1) as out:
        out.write(info.tobuf())
        for _ in range(64):
            out.write(bytes(1 << 20))
    with pytest.raises(ReleaseRejected, match="a header of"):
        take(tmp_path / "there", str(source))
