"""A release matches its manifest exactly, or it is refused and the old one serves."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from resealed import refused, reseal

from models.features.compute import FEATURES, GENERATIONS
from models.pipeline.slot import ModelSlot
from models.release.ranker import Ranker
from models.release.release import FILES, Manifest, Release, list_releases, write_release
from models.release.serving import ServingModel, prepare
from schemas.errors import ReleaseRejected
from training.ranking.kinds import make_ranker
from training.recipe import RankerSettings
from training.release.learned import Learned
from training.release.parts import RANKER, exported


def test_what_is_written_is_what_is_read(learned: Learned, folder: Path) -> None:
    release = Release.open(folder)
    assert release.name == folder.name
    assert list(release.item_ids) == learned.item_ids
    assert np.array_equal(release.item_vectors, learned.arrays["item_vectors.npy"])
    assert Manifest.parse(release.manifest.to_bytes()) == release.manifest
    assert [m.name for m in list_releases(folder.parent)] == [folder.name]


def test_the_same_content_has_the_same_name_and_other_content_another(learned: Learned, folder: Path) -> None:
    assert learned.write(folder.parent, {"gate": {"passed": True}}) == folder
    assert learned.write(folder.parent, {"gate": {"passed": False}}).name != folder.name


def test_a_release_that_is_not_there_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ReleaseRejected, match="there is no release 'nope' in ") as error:
        Release.open(tmp_path / "nope")
    assert error.value.code == "not_found"


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_changed_byte_in_any_file_is_noticed(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    assert refused(folder) == "checksum"


def test_missing_extra_linked_and_renamed_files_are_refused(folder: Path, tmp_path: Path) -> None:
    for number, (change, code) in enumerate(
        [
            (lambda f: (f / "text.npy").unlink(), "missing_file"),
            (lambda f: (f / "more.bin").write_bytes(b"x"), "wrong_files"),
            (lambda f: ((f / "text.npy").rename(tmp_path / "t"), (f / "text.npy").symlink_to(tmp_path / "t")), "bad_file"),
            (lambda f: reseal(f, name="another-name"), "wrong_name"),
            (lambda f: reseal(f, name="../up"), "bad_manifest"),
            (lambda f: reseal(f, format=99), "unknown_format"),
            (lambda f: reseal(f, heads=[]), "bad_manifest"),
            (lambda f: reseal(f, positive="__import__('os')"), "bad_manifest"),
            (lambda f: reseal(f, feature_spec="other"), "feature_spec"),
            (lambda f: (f / "manifest.json").write_text("{"), "bad_manifest"),
        ]
    ):
        copy = tmp_path / str(number) / folder.name
        shutil.copytree(folder, copy)
        change(copy)  # type: ignore[no-untyped-call]
        assert refused(copy) == code


def test_a_release_of_the_first_features_still_serves_by_them(learned: Learned) -> None:
    columns, rng = GENERATIONS["f7"], np.random.default_rng(0)
    ranker = make_ranker(len(columns), len(learned.manifest.heads), RankerSettings(width=8)).eval()
    ranker.fit(rng.normal(size=(64, len(columns))).astype(np.float32))
    inputs = rng.normal(size=(64, len(columns))).astype(np.float32)
    graph = exported([(RANKER, ranker, {"features": inputs})], half=False).graphs[RANKER]
    graphs, manifest = {**learned.graphs, RANKER: graph}, replace(learned.manifest, feature_spec="f7")
    earlier = Release(manifest, learned.arrays, graphs, learned.item_ids)
    features = rng.normal(size=(9, len(FEATURES))).astype(np.float32)
    with torch.inference_mode():
        expected = ranker(torch.from_numpy(features[:, columns])).numpy()
    for made in (ServingModel(earlier), Ranker(earlier)):
        assert made.rank(features) == pytest.approx(expected, abs=1e-5)


def test_an_announcement_pins_the_manifest(folder: Path) -> None:
    pinned = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert Release.open(folder, pinned).name == folder.name
    with pytest.raises(ReleaseRejected, match="announced"):
        Release.open(folder, "0" * 64)


def test_arrays_with_pickles_wrong_shapes_or_nan_are_refused_even_when_resealed(folder: Path, tmp_path: Path) -> None:
    def with_array(number: int, name: str, array: Any) -> Path:
        copy = tmp_path / str(number) / folder.name
        shutil.copytree(folder, copy)
        np.save(copy / name, array, allow_pickle=True)
        return reseal(copy)

    n = len(json.loads((folder / "item_ids.json").read_bytes()))
    assert refused(with_array(1, "text.npy", np.array([{"a": 1}] * n, object))) == "bad_file"
    assert refused(with_array(2, "text.npy", np.zeros((n, 4), np.float64))) == "shapes"
    assert refused(with_array(3, "text.npy", np.zeros((n - 1, 4), np.float32))) == "shapes"
    assert refused(with_array(4, "item_vectors.npy", np.full((n, 17), np.nan, np.float32))) == "not_finite"
    index = np.load(folder / "ease_index.npy")
    assert refused(with_array(5, "ease_index.npy", np.full_like(index, n))) == "shapes"


def test_a_graph_that_leads_out_of_the_release_or_does_not_run_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    model = onnx.load(folder / "ranker.onnx")
    onnx.save_model(model, tmp_path / "external.onnx", save_as_external_data=True, location="outside.bin", size_threshold=0)
    assert outside.exists()
    copy = tmp_path / "a" / folder.name
    shutil.copytree(folder, copy)
    shutil.copy(tmp_path / "external.onnx", copy / "ranker.onnx")
    assert refused(reseal(copy)) == "graph"
    other = tmp_path / "b" / folder.name
    shutil.copytree(folder, other)
    shutil.copy(other / "item_tower.onnx", other / "ranker.onnx")
    assert refused(reseal(other)) == "graph"


def test_a_refused_release_leaves_the_old_one_serving(learned: Learned, folder: Path) -> None:
    slot = ModelSlot()
    slot.swap(prepare(folder))
    (folder / "text.npy").write_bytes(b"")
    with pytest.raises(ReleaseRejected):
        slot.swap(prepare(folder))
    assert slot.name == folder.name


def test_writing_is_all_or_nothing(learned: Learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("models.release.release.os.fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_release(tmp_path / "r", learned.manifest, learned.arrays, learned.graphs, learned.item_ids)
    assert list((tmp_path / "r").iterdir()) == []


def test_a_release_in_memory_runs_for_any_batch(learned: Learned) -> None:
    model = ServingModel(learned.release())
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, len(_features()))).astype(np.float32)
    together = model.rank(features)
    alone = np.concatenate([model.rank(features[n : n + 1]) for n in range(300)])
    assert np.allclose(together, alone, atol=1e-5)
    assert ((together >= 0) & (together <= 1)).all()


def _features() -> tuple[str, ...]:
    from models.features.compute import FEATURES

    return FEATURES
