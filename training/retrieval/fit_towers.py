"""Training of the towers, in one process or several under `torchrun`, from scratch or from a checkpoint.

The loss is a softmax over the whole catalogue, plus START_WEIGHT times the same softmax for a user without history, so that the
start vector learns to rank items for new users. Above FULL_SOFTMAX items both run over a sample, with a bias correction
(`drawn_pool`). At events before its first interaction an item is a cold negative and weighs only `TowerSettings.unmet`,
because not choosing it then is little evidence against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from models.release.sequences import event_inputs
from training.data.table import EventTable
from training.loop.checkpoints import Checkpoints, Training, fingerprint
from training.loop.group import Group
from training.loop.schedule import one_cycle
from training.recipe import TowerSettings
from training.retrieval.negatives import cold_logsumexp, discount_cold_negatives, drawn_pool, first_interaction_ms
from training.retrieval.towers import Content, ItemTower, UserTower
from training.retrieval.weights import Start
from training.retrieval.windows import Windows

__all__ = ["Watch", "event_columns", "train_towers", "with_passes"]

START_WEIGHT = 0.1
"Weight of the loss of a user without history, relative to that of the user with the history."
FULL_SOFTMAX = 20_000
"Largest catalogue whose loss is a softmax over all items."
SAMPLED = 8_192
"Number of items drawn per step in larger catalogues, in addition to those in the step's histories and targets."
Progress = Callable[[int, int], None]
Watch = Callable[[int, UserTower, ItemTower], None]
"Called after each epoch with its number, from 1, and the towers in evaluation mode. If it raises, training ends."


def event_columns(table: EventTable) -> NDArray[np.float32]:
    """Inputs of the user tower per event: float32 `(n, EVENT_WIDTH)`."""
    previous = np.full(len(table), -1)
    newest: dict[int, int] = {}
    for n, user in enumerate(table.user.tolist()):
        previous[n] = newest.get(user, -1)
        newest[user] = n
    gaps = np.where(previous >= 0, table.time_ms - table.time_ms[previous], 0)
    return event_inputs(table.slot, table.value, table.has_value, gaps, table.liked)


@dataclass(slots=True)
class _Step:
    """Inputs of one step in one process, on its device: r rows of windows, p items in the pool, t targets."""

    window: Tensor
    "Window of each place, -1 for padding: `(r, LENGTH)`."
    history: Tensor
    "Pool indices of the items: `(r, LENGTH)`."
    events: Tensor
    places: Tensor
    "Positions with a prediction: `(r, LENGTH)`."
    targets: Tensor
    "Pool index of each target item: `(t,)`."
    weights: Tensor
    "Weight of each target: `(t,)`."
    times_ms: Tensor
    "Event time of each target, ms: `(t,)`."
    pool: Tensor
    first_ms: Tensor
    "Time of each pool item's first interaction, ms: `(p,)`."
    log_chance: Tensor | None


class _Towers(nn.Module):
    """Both towers and their loss, in one module for data-parallel training."""

    def __init__(self, user: UserTower, item: ItemTower, content: tuple[Tensor, ...], settings: TowerSettings) -> None:
        super().__init__()
        self.user = user
        self.item = item
        self._content = content
        self._settings = settings

    def forward(self, step: _Step) -> Tensor:
        """Compute the sum of the weighted losses."""
        settings, user = self._settings, self.user
        hidden = (torch.rand(len(step.pool), device=step.pool.device) < settings.hidden_ids).float()
        hashed, text, image, present = self._content
        if step.log_chance is not None:
            hashed, text, image, present = (part[step.pool] for part in self._content)
        present = present * (torch.rand(present.shape, device=present.device) >= settings.hidden_content)
        vectors = self.item.known(step.pool, hidden, hashed, text, image, present)
        there = step.window >= 0
        # not vectors[…]: with several threads its backward pass adds gradients in varying order
        history = F.embedding(step.history, vectors) * there.unsqueeze(-1)
        states = user.states(history, step.events, there.float(), window=step.window)
        users = F.dropout(states[step.places], settings.dropout, training=True)
        logits = users @ vectors.T
        without_history = torch.cat([user.start, torch.ones(1, device=step.pool.device)]) @ vectors.T
        if step.log_chance is not None:
            logits, without_history = logits - step.log_chance, without_history - step.log_chance
        logits = discount_cold_negatives(logits, step.first_ms, step.times_ms, settings.unmet)
        loss = F.cross_entropy(logits, step.targets, reduction="none", label_smoothing=0.0)
        sums = cold_logsumexp(without_history, step.first_ms, step.times_ms, settings.unmet)
        start_loss = sums - without_history.index_select(0, step.targets)
        total: Tensor = ((loss + START_WEIGHT * start_loss) * step.weights).sum()
        return total


class _Steps:
    """Makes the steps of one process from an event table."""

    def __init__(self, table: EventTable, first_ms: NDArray[np.int64], settings: TowerSettings, group: Group) -> None:
        self.windows = Windows.of(table)
        self.per_epoch = self.windows.steps(settings.batch)
        self._first_ms = first_ms
        self._time_ms = table.time_ms
        self._group = group
        self._device = group.device
        self._item = table.item
        self._inputs = torch.from_numpy(event_columns(table))
        liked = np.where(table.labels[:, 0] > 0, 1.0, settings.other)
        self._weight = np.where(table.first, liked, 0.0).astype(np.float32)

    def step(self, part: NDArray[np.intp], rng: np.random.Generator) -> _Step | None:
        """Make the step over these windows, of which each process takes its share; None if no process has a target."""
        packed = self.windows.pack(part[self._group.rank :: self._group.size])
        rows, events = packed.rows, packed.following
        wanted = np.where(events >= 0, self._weight[np.maximum(events, 0)], np.float32(0))
        places = wanted > 0
        if not self._group.total(float(places.sum())):
            return None
        targets = self._item[events[places]]
        n, log_chance = len(self._first_ms), None
        if n > FULL_SOFTMAX:
            certain = np.concatenate([targets, self._item[rows[rows >= 0]]])
            pool, log_chance = drawn_pool(certain, n, SAMPLED, rng)
        else:
            pool = np.arange(n)
        place = np.zeros(n, np.int64)
        place[pool] = np.arange(len(pool))
        return _Step(
            window=self._to_device(packed.window),
            history=self._to_device(place[self._item[np.maximum(rows, 0)]]),
            events=self._inputs[torch.from_numpy(np.maximum(rows, 0))].to(self._device),
            places=self._to_device(places),
            targets=self._to_device(place[targets]),
            weights=self._to_device(wanted[places]),
            times_ms=self._to_device(self._time_ms[events[places]]),
            pool=self._to_device(pool),
            first_ms=self._to_device(self._first_ms[pool]),
            log_chance=None if log_chance is None else self._to_device(log_chance),
        )

    def _to_device(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def with_passes(table: EventTable, settings: TowerSettings, least_steps: int) -> TowerSettings:
    """Raise the number of epochs over `table`, if needed, to make at least `least_steps` steps."""
    per_epoch = Windows.of(table).steps(settings.batch)
    return replace(settings, epochs=max(settings.epochs, -(-least_steps // per_epoch)))


def train_towers(
    table: EventTable,
    content: Content,
    settings: TowerSettings,
    progress: Progress | None = None,
    watch: Watch | None = None,
    checkpoints: Checkpoints | None = None,
    start: Start | None = None,
    first_ms: NDArray[np.int64] | None = None,
) -> tuple[UserTower, ItemTower]:
    """Train both towers on all events of `table`; deterministic for a given seed, number of threads and number
    of processes.

    All processes of the group call it with the same arguments, and all return the same towers. With `checkpoints` it continues
    from the newest one of the same training; the result equals that of an uninterrupted training. `start` initialises the
    weights. `first_ms`: `first_interaction_ms` of a longer history that contains `table`.

    Raises:
        ConfigError: the processes of the group do not see the same data or checkpoints.
    """
    group = Group.current()
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    user, item, optimizer = _made(table, content, settings, group.device)
    if start is not None:
        start(user, item)
    module = _Towers(user, item, tuple(t.to(group.device) for t in content.tensors()), settings)
    parameters = list(module.parameters())
    group.share(parameters)
    if not group.first:  # processes share weights but not random numbers
        torch.manual_seed(settings.seed + 1_000_003 * group.rank)
    mine = first_interaction_ms(table, len(content.hashed))
    first_ms = mine if first_ms is None else np.minimum(first_ms, mine)
    steps = _Steps(table, first_ms, settings, group)
    of = steps.per_epoch * settings.epochs
    group.agree("the number of steps", of)
    schedule = one_cycle(optimizer, settings.rate, of)
    training, name = Training({"user": user, "item": item}, optimizer, schedule, rng, group), ""
    done = 0
    if checkpoints is not None:
        name = _name(table, content, first_ms, settings, group, parameters)
        done = training.load(checkpoints, name)
    for epoch in range(done // steps.per_epoch, settings.epochs):
        for part in _left(steps, training, rng, done - epoch * steps.per_epoch):
            done += 1
            if progress is not None:
                progress(done, of)
            step = steps.step(part, rng)
            _learn(module, step, optimizer, parameters, group)
            schedule.step()
            if checkpoints is not None and (done % checkpoints.every == 0 or done == of):
                training.save(checkpoints, name, done)
        if watch is not None:
            module.eval()
            watch(epoch + 1, user, item)
            module.train()
    return user.cpu().eval(), item.cpu().eval()


def _left(steps: _Steps, training: Training, rng: np.random.Generator, skipped: int) -> list[NDArray[np.intp]]:
    """Windows of an epoch's remaining steps, after `skipped` ones, in the order drawn when the epoch began."""
    if not skipped:
        training.epoch_rng = rng.bit_generator.state
    now = rng.bit_generator.state
    rng.bit_generator.state = training.epoch_rng
    order = np.array_split(rng.permutation(len(steps.windows)), steps.per_epoch)
    if skipped:
        rng.bit_generator.state = now
    return order[skipped:]


def _made(
    table: EventTable, content: Content, settings: TowerSettings, device: torch.device
) -> tuple[UserTower, ItemTower, torch.optim.Optimizer]:
    n_items = len(content.hashed)
    user = UserTower(settings).to(device)
    item = ItemTower(n_items, content.text.shape[1], content.image.shape[1], settings.dimensions).to(device)
    parameters = [*user.parameters(), *item.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=settings.weight_decay, fused=True)
    popularity = np.bincount(table.item, minlength=n_items) + 1.0
    with torch.no_grad():
        item.id_bias.weight[:, 0] = torch.from_numpy(np.log(popularity / popularity.mean()) * 0.5).float()
    return user, item, optimizer


def _name(
    table: EventTable,
    content: Content,
    first_ms: NDArray[np.int64],
    settings: TowerSettings,
    group: Group,
    parameters: Sequence[nn.Parameter],
) -> str:
    """Fingerprint of this training: its data, its settings, and its initial weights."""
    facts = {**asdict(settings), "processes": group.size, "device": group.device.type, "torch": torch.__version__}
    facts["steps"] = "packed"  # a checkpoint of steps that were made in another way is not continued
    columns = (getattr(table, column) for column in table.__slots__)
    weights = (parameter.detach().cpu().numpy() for parameter in parameters)
    return fingerprint(facts, (*columns, *content.arrays(), first_ms, *weights))


def _learn(
    module: nn.Module, step: _Step | None, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], group: Group
) -> None:
    if step is None:  # no process has a target: take a step that changes no weight
        optimizer.zero_grad(set_to_none=True)
        optimizer.step()
        return
    weight = step.weights.sum()
    if group.size > 1:
        weight = weight.new_tensor(group.total(float(weight)))
    optimizer.zero_grad(set_to_none=True)
    if len(step.targets):  # without targets here, only other processes contribute gradients
        total = module(step) / weight
        total.backward()
    group.sum_gradients(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
