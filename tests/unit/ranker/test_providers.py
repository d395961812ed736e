"""What runs the ranker: the one that was named if it is there, else the next, at last the CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from agents.ranker.releases import KEPT, RankerSlot
from models.release.graphs import Provider, _providers
from schemas.errors import ConfigError
from schemas.settings import PROVIDERS, Settings

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("wanted", "there", "expected"),
    [
        (Provider.AUTO, [TENSORRT, CUDA, CPU], [CUDA, CPU]),
        (Provider.AUTO, [CPU], [CPU]),
        (Provider.TENSORRT, [TENSORRT, CUDA, CPU], [TENSORRT, CUDA, CPU]),
        (Provider.TENSORRT, [CUDA, CPU], [CUDA, CPU]),
        (Provider.TENSORRT, [CPU], [CPU]),
        (Provider.CUDA, [TENSORRT, CUDA, CPU], [CUDA, CPU]),
        (Provider.CPU, [TENSORRT, CUDA, CPU], [CPU]),
    ],
)
def test_a_provider_falls_back_to_the_next(
    wanted: Provider, there: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    found = _providers(wanted, tmp_path)
    assert [one if isinstance(one, str) else one[0] for one in found] == expected
    assert all(one[1] for one in found if not isinstance(one, str)), "TF32 is off, and engines are cached"


def test_every_provider_is_a_setting_and_no_other_is() -> None:
    assert {provider.value for provider in Provider} == set(PROVIDERS)
    with pytest.raises(ConfigError, match="RIFFLE_RANK_PROVIDER"):
        Settings(rank_provider="gpu")
    with pytest.raises(ConfigError, match="RIFFLE_RANKING"):
        Settings(ranking="elsewhere")
    assert Settings().ranking == "local"


def test_the_rankers_before_the_newest_remain_for_workers_that_still_serve_them() -> None:
    slot = RankerSlot()
    assert (slot.name, slot.provider, slot.of("a")) == ("none", None, None)
    names = [f"r{n}" for n in range(KEPT + 2)]
    for name in names:
        slot.swap(SimpleNamespace(name=name, provider=f"{name}'s"))  # type: ignore[arg-type]
    assert [name for name in names if slot.of(name)] == names[-KEPT:]
    assert (slot.name, slot.provider) == (names[-1], f"{names[-1]}'s")
    slot.swap(None)
    assert slot.name == "none"
    assert slot.of(names[-1]), "a worker may have a task under way"
