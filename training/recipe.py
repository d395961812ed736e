"""Training settings as data. Imports no torch: settings are read and checked before torch is loaded.

Bounds of the numbers: `training.settings_file.BOUNDS`.
"""

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
    "Dimensions of user and item vectors. A multiple of `attention_heads`."
    blocks: int = 2
    "Number of transformer blocks of the user tower."
    attention_heads: int = 2
    "Attention heads of each block."
    epochs: int = 8
    "Passes over the training events; more where these give fewer than `least_steps` steps."
    batch: int = 32
    "Windows per step: the newest events of a user, or an earlier part of a long history (`training.retrieval.windows`)."
    rate: float = 2e-3
    "Peak learning rate of the schedule (`training.loop.schedule.one_cycle`)."
    dropout: float = 0.3
    "Fraction of values that a step sets to 0 in the user tower."
    weight_decay: float = 0.05
    "Weight decay of AdamW."
    hidden_ids: float = 0.2
    "Fraction of items whose id is hidden in a step."
    hidden_content: float = 0.1
    """Fraction of items whose text is hidden in a step, and fraction whose image is. It trains the stand-in for a missing
    modality even where no item lacks one, and keeps vectors from relying on one modality."""
    unmet: float = 0.1
    """Weight of a cold item as a softmax negative: at events before its first interaction, if any. Not choosing an item that
    did not exist yet is hardly evidence against it."""
    resemblance: float = 8.0
    """Initial weight of the mean of the history's item vectors in a user's vector. It makes similar items score high before
    training, also items that have only content and no events."""
    other: float = 0.1
    "Weight of a first interaction that is not liked; a liked one weighs 1."
    seed: int = 0
    "Seed of initial weights, order and dropout of the towers."


@dataclass(frozen=True, slots=True)
class RankerSettings:
    """Architecture and training of the ranker."""

    kind: str = "mmoe"
    "Kind of ranker, one of KINDS."
    experts: int = 4
    "Number of experts that the heads share. Only for `mmoe`."
    width: int = 96
    "Width of the first hidden layer, of each expert or of the deep part; the second has half of it."
    embedding: int = 4
    "Dimensions of a field's embedding. Only for `deepfm`."
    buckets: int = 8
    "Number of intervals per feature, each with an equal share of its values. Only for `deepfm`."
    epochs: int = 5
    "Passes over the training queries; more where these give fewer than `least_steps` steps."
    batch: int = 64
    "Queries per step."
    rate: float = 2e-3
    "Peak learning rate of the schedule (`training.loop.schedule.one_cycle`)."
    dropout: float = 0.1
    "Fraction of hidden values that a step sets to 0."
    weight_decay: float = 0.02
    "Weight decay of AdamW."
    pointwise: float = 0.3
    "Weight of the pointwise loss relative to the listwise one."
    seed: int = 0
    "Seed of initial weights, order and dropout of the ranker."

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("ranker", f"there is no ranker {self.kind!r}; known: {', '.join(KINDS)}", "kind")


@dataclass(frozen=True, slots=True)
class LearnSettings:
    """Settings of a full training."""

    towers: TowerSettings = field(default_factory=TowerSettings)
    "The two-tower models."
    ranker: RankerSettings = field(default_factory=RankerSettings)
    "The ranker."
    ease_l2: float = 300.0
    "L2 regularisation of the item-to-item weights (EASE)."
    neighbours: int = 128
    "Maximum number of item-to-item weights kept per item."
    followers: int = 64
    "Maximum number of transitions kept per item, for sessions. 0: no transitions are learned."
    replayed_share: float = 0.3
    "Newest fraction of the training events. The ranker learns on it, from retrieval that was trained without it."
    unlearned_share: float = 0.1
    "Fraction of known items that the first retrieval models treat as cold, so that the ranker trains on cold items too."
    queries: int = 4_000
    "Maximum number of queries that the ranker learns from. Not the option `--queries`, which limits those of the gate."
    logged_share: float = 0.5
    "Largest fraction of the queries that may be logged slates, newest first; the others are replayed history."
    shown_slates: int = 8_000
    "Maximum number of slates from impression events that the ranker learns from, newest first, beside `queries`."
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
    "Seed of samples: ranking queries, simulated cold items, validation."
    refit: bool = True
    """Whether `riffle train` trains retrieval again on all events once the gate has passed the release, so that the events
    that the gate held out are learned from, too (`training.refit`)."""
    half: bool = False
    "Whether the graphs multiply matrices in half precision (`training.release.export.to_half`)."
    checkpoints: str = ""
    "Folder of checkpoints, for one training at a time. Empty: none are written."
