"""Encoders run once per content, continue after an interruption, and skip unreadable content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from schemas.records import Item
from training.encoders import image as encoders
from training.encoders.cache import SHARD, VectorCache, encode_items
from training.encoders.image import ImageEncoder
from training.encoders.live import LiveEncoders
from training.encoders.text import TextEncoder


class Counting:
    """An encoder that counts its calls."""

    name = "counting"
    dimensions = 4
    batch = 64

    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: list[bytes] = []
        self._fail_after = fail_after

    def prepare(self, items: Sequence[Item], progress: object = None) -> None:
        pass

    def left_out(self, items: Sequence[Item]) -> None:
        pass

    def content(self, item: Item) -> bytes | None:
        return item.title.encode() or None

    def encode(self, contents: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        if self._fail_after is not None and len(self.asked) >= self._fail_after:
            raise KeyboardInterrupt
        self.asked.extend(contents)
        vectors = np.asarray([[len(c), c[0], c[-1], 1.0] for c in contents], np.float32)
        return vectors, np.asarray([not c.startswith(b"bad") for c in contents], np.bool_)


def items(n: int) -> list[Item]:
    return [Item(f"i{k}", f"title {k % (n - 5)}" if k % 7 else "") for k in range(n)]


def test_equal_contents_are_encoded_once_and_never_again(tmp_path: Path) -> None:
    first = Counting()
    vectors, present = encode_items(items(50), first, tmp_path)
    assert len(first.asked) == len(set(first.asked))
    assert present.tolist() == [bool(item.title) for item in items(50)]
    assert not vectors[~present].any()
    second = Counting()
    again, _ = encode_items([*items(50), Item("new", "fresh")], second, tmp_path)
    assert second.asked == [b"fresh"]
    assert np.array_equal(again[:50], vectors)


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    many = [Item(f"i{k}", f"t{k}") for k in range(SHARD + 200)]
    stopped = Counting(fail_after=SHARD)
    with pytest.raises(KeyboardInterrupt):
        encode_items(many, stopped, tmp_path)
    rest = Counting()
    encode_items(many, rest, tmp_path)
    assert not set(stopped.asked) & set(rest.asked)
    assert len(stopped.asked) + len(rest.asked) == len(many)


def test_what_cannot_be_read_is_missing_and_a_broken_file_is_encoded_again(tmp_path: Path) -> None:
    some = [Item("a", "bad one"), Item("b", "good")]
    assert encode_items(some, Counting(), tmp_path)[1].tolist() == [False, True]
    assert Counting().asked == []
    for file in (tmp_path / "counting").glob("*.npy"):
        file.write_bytes(file.read_bytes()[:-3])
    again = Counting()
    encode_items(some, again, tmp_path)
    assert len(again.asked) == 2
    assert len(VectorCache(tmp_path, Counting())) == 2


def test_text_vectors_are_of_length_one_and_tell_topics_apart(tmp_path: Path) -> None:
    some = [
        Item("a", "A ship lost at sea", "sailors and storms"),
        Item("b", "The captain's last voyage", "a boat on the ocean"),
        Item("c", "Baking bread", "flour, water, yeast"),
        Item("d"),
    ]
    vectors, present = encode_items(some, TextEncoder(), tmp_path)
    assert present.tolist() == [True, True, True, False]
    assert np.linalg.norm(vectors[:3], axis=1) == pytest.approx(1, abs=1e-4)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_image_vectors_hold_what_the_networks_depths_say_in_equal_parts(tmp_path: Path) -> None:
    """Compared with the network run by its own library, with hooks at the depths."""
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{n}.png") for n in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (90, 70, 3), np.uint8)).save(path)
    vectors, _ = encode_items([Item(path, image=path) for path in paths], ImageEncoder(), tmp_path / "cache")
    model, heard = encoders._efficientnet(), list[torch.Tensor]()
    for block in encoders.DEPTHS:
        model._blocks[block].register_forward_hook(lambda _, __, out: heard.append(out))
    with torch.inference_mode():
        pixels = [encoders._pixels(Path(path).read_bytes()) for path in paths]
        last = model.extract_features(torch.from_numpy(np.stack([one for one in pixels if one is not None])))
    pooled = [how for out in heard for how in (out.mean(dim=(2, 3)), out.std(dim=(2, 3)))] + [last.mean(dim=(2, 3))]
    expected = np.concatenate([(part / part.norm(dim=1, keepdim=True)).numpy() for part in pooled], axis=1)
    assert expected.shape == (3, ImageEncoder.dimensions)
    assert vectors == pytest.approx(expected / np.sqrt(len(pooled)), abs=1e-5)


def test_image_vectors_see_pictures_and_leave_out_what_is_none(tmp_path: Path) -> None:
    def picture(name: str, colour: tuple[int, int, int]) -> str:
        Image.new("RGB", (50, 80), colour).save(tmp_path / name)
        return str(tmp_path / name)

    (tmp_path / "no.png").write_bytes(b"not a picture")
    some = [
        Item("a", image=picture("a.png", (200, 20, 20))),
        Item("b", image=picture("b.png", (190, 25, 22))),
        Item("c", image=picture("c.png", (10, 10, 230))),
        Item("d", image=str(tmp_path / "no.png")),
        Item("e", image="https://example.org/e.png"),
        Item("f", image=str(tmp_path / "missing.png")),
    ]
    vectors, present = encode_items(some, ImageEncoder(), tmp_path / "cache")
    assert present.tolist() == [True, True, True, False, False, False]
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_images_that_cannot_be_used_are_counted_with_their_reason_each_time(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "fine.png")
    (tmp_path / "damaged.png").write_bytes((tmp_path / "fine.png").read_bytes()[:40])
    Image.new("1", (10_000, 6_000)).save(tmp_path / "wide.png")
    with (tmp_path / "large.png").open("wb") as large:
        large.truncate(encoders.MAX_IMAGE_BYTES + 1)
    names = ["fine.png", "damaged.png", "wide.png", "large.png", "gone.png", "."]
    some = [Item(name, image=str(tmp_path / name)) for name in names] + [Item("none"), Item("web", image="https://h/x.png")]
    expected = {"not_decoded": 1, "too_many_pixels": 1, "file_too_large": 1, "file_missing": 2}
    for _ in range(2):
        encoder = ImageEncoder()
        _, present = encode_items(some, encoder, tmp_path / "cache")
        assert present.tolist() == [True] + [False] * 7
        assert encoder.unused == expected, "also where the cache knows them"
    live = LiveEncoders(tmp_path / "cache", image_hosts="off")
    live.fingerprints(some)
    live.encode(some)
    assert live.counters == expected
    assert set(expected) <= set(encoders.UNUSED)
