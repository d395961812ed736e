"""Training settings as data. Imports no torch: settings are read and checked before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.errors import ConfigError

__all__ = ["KINDS", "LearnSettings", "RankerSettings", "TowerSettings"]

KINDS = ("mmoe", "deepfm")
"Kinds of rankers."


@dataclass(frozen=True, slots=True)
class TowerSettings:
    """Architecture and training of the towers."""

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
    "Fraction of items whose id is hidden in a step."
    hidden_content: float = 0.1
    """Fraction of items whose text is hidden in a step, and fraction whose image is. It trains the stand-in for a missing
    modality even where no item lacks one, and keeps vectors from relying on one modality."""
    unmet: float = 0.1
    """Weight of a cold item as a softmax negative: at events before its first interaction, if any. Not choosing an item that
    did not exist yet is no evidence against it."""
    resemblance: float = 8.0
    """Initial weight of the mean of the history's item vectors in a user's vector. It makes similar items score high before
    training, also items that have only content and no events."""
    other: float = 0.1
    "Weight of a first interaction that is not liked; a liked one weighs 1."
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RankerSettings:
    """Architecture and training of the ranker."""

    kind: str = "mmoe"
    "Kind of ranker, one of KINDS."
    experts: int = 4
    "Number of experts that the heads share. Only for `mmoe`."
    width: int = 96
    embedding: int = 4
    "Dimensions of a field's embedding. Only for `deepfm`."
    buckets: int = 8
    "Number of intervals per feature, each with an equal share of its values. Only for `deepfm`."
    epochs: int = 5
    batch: int = 64
    "Queries per step."
    rate: float = 2e-3
    dropout: float = 0.1
    weight_decay: float = 0.02
    pointwise: float = 0.3
    "Weight of the pointwise loss relative to the listwise one."
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("ranker", f"there is no ranker {self.kind!r}; known: {', '.join(KINDS)}", "kind")


@dataclass(frozen=True, slots=True)
class LearnSettings:
    """Settings of a full training."""

    towers: TowerSettings = field(default_factory=TowerSettings)
    ranker: RankerSettings = field(default_factory=RankerSettings)
    ease_l2: float = 300.0
    neighbours: int = 128
    replayed_share: float = 0.3
    "Newest fraction of the training events. The ranker learns on it, from retrieval that was trained without it."
    unlearned_share: float = 0.1
    "Fraction of known items that the first retrieval models treat as cold, so that the ranker trains on cold items too."
    queries: int = 4_000
    "Maximum number of ranking queries."
    logged_share: float = 0.5
    "Largest fraction of the queries that may be logged slates, newest first; the others are replayed history."
    heads: dict[str, float] = field(default_factory=dict)
    "Weight in the score by predicted action, beside `positive`. Empty: the frequent actions, chosen by `heads_of`."
    windows_s: dict[str, float] = field(default_factory=dict)
    "Seconds after a first interaction or a slate in which an action counts, by action or `positive`; a day by default."
    text_model: str = ""
    "Folder or hub name of the text encoder. Empty: the packaged MiniLM."
    image_hosts: str = ""
    "Comma-separated hosts that images are fetched from although their addresses are not public; `off` fetches none."
    least_steps: int = 40
    "Minimum number of training steps of the towers, and of the ranker. With few events, more epochs are run to reach it."
    seed: int = 0
    half: bool = False
    "Whether the graphs multiply matrices in half precision (`training.release.export.to_half`)."
    checkpoints: str = ""
    "Folder of checkpoints, for one training at a time. Empty: none are written."
