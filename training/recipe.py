"""How a release is trained, as data. Nothing here imports torch: settings are read and checked before that is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.errors import ConfigError

__all__ = ["KINDS", "LearnSettings", "RankerSettings", "TowerSettings"]

KINDS = ("mmoe", "deepfm")
"Kinds of rankers."


@dataclass(frozen=True, slots=True)
class TowerSettings:
    """How the towers are built and trained."""

    dimensions: int = 64
    blocks: int = 2
    attention_heads: int = 2
    epochs: int = 8
    batch: int = 32
    "Windows per step."
    rate: float = 2e-3
    dropout: float = 0.3
    weight_decay: float = 0.05
    hidden_ids: float = 0.2
    "Share of items whose id is hidden in a step."
    hidden_content: float = 0.1
    """Share of items whose text is hidden in a step, and whose image is: what stands for a missing one is learned where no item
    lacks it, and a vector leans on neither alone."""
    unmet: float = 0.1
    """Weight of a cold item as a softmax negative: at events before its first interaction, if any. Not choosing an item that
    did not exist yet is no evidence against it."""
    resemblance: float = 8.0
    """How much of the mean of the history's item vectors a person's vector has before anything is learned: like goes to like,
    also where an item's vector comes from its content alone and no event has taught it."""
    other: float = 0.1
    "Weight of a first meeting that is not liked; a liked one weighs 1."
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RankerSettings:
    """How the ranker is built and trained."""

    kind: str = "mmoe"
    "Which one: of KINDS."
    experts: int = 4
    "Number of experts that the heads share. Only for `mmoe`."
    width: int = 96
    embedding: int = 4
    "Dimensions of a field. Only for `deepfm`."
    buckets: int = 8
    "Intervals of equal share that a feature's values fall into. Only for `deepfm`."
    epochs: int = 5
    batch: int = 64
    "Queries per step."
    rate: float = 2e-3
    dropout: float = 0.1
    weight_decay: float = 0.02
    pointwise: float = 0.3
    "Weight of the pointwise loss beside the listwise one."
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("ranker", f"there is no ranker {self.kind!r}; known: {', '.join(KINDS)}", "kind")


@dataclass(frozen=True, slots=True)
class LearnSettings:
    """How a release is trained."""

    towers: TowerSettings = field(default_factory=TowerSettings)
    ranker: RankerSettings = field(default_factory=RankerSettings)
    ease_l2: float = 300.0
    neighbours: int = 128
    replayed_share: float = 0.3
    "Newest part of the training events on which the ranker learns, from retrieval that was trained without it."
    unlearned_share: float = 0.1
    "Fraction of known items that the first retrieval models treat as cold, so that the ranker trains on cold items too."
    queries: int = 4_000
    "Ranking queries, at most."
    logged_share: float = 0.5
    "Share of them that may be slates as they were logged, newest first; the others are replayed history."
    heads: dict[str, float] = field(default_factory=dict)
    "Weight in the score by action, of the actions to predict beside `positive`; empty: the frequent ones, by `heads_of`."
    windows_s: dict[str, float] = field(default_factory=dict)
    "Seconds after a first meeting or a slate in which an action counts, by action or `positive`; a day where not said."
    text_model: str = ""
    "Folder or hub name of the text encoder; empty means the packaged MiniLM."
    image_hosts: str = ""
    "Hosts whose images are fetched though their addresses are not public, separated by commas; `off`: none is fetched."
    least_steps: int = 40
    "Steps of the towers, and of the ranker, at least: where a pass over few events has few of them, there are more passes."
    seed: int = 0
    half: bool = False
    "Whether the graphs multiply matrices in half precision (`training.release.export.to_half`)."
    checkpoints: str = ""
    "Folder of checkpoints, for one training at a time; empty means none are written."
