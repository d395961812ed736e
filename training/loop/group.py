"""Data-parallel training in the processes that `torchrun` started, or in one process alone.

Every process runs the same program on the same data, with the same random numbers where results must agree. Gradients are
summed over gloo on CPUs and over NCCL on GPUs, as one buffer per step, because the towers are small. A process without targets
in a step still takes part, which `DistributedDataParallel` would not allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from schemas.errors import ConfigError
from training.environment import Launch
from training.loop.alone import NotFirst

__all__ = ["Group", "NotFirst", "alone", "joined"]

PATIENCE = timedelta(hours=12)
"Timeout between processes. It is long because the others wait while the first one replays history and trains the ranker."


_ALONE: ContextVar[bool] = ContextVar("alone", default=False)
"Whether this process works without its group."


@dataclass(frozen=True, slots=True)
class Group:
    """Processes of one training. A process alone is a group of one."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Group:
        """Return the group made by `joined`, or a group of one."""
        if not _ALONE.get() and dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Whether this is the first process, which writes results."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """GPU of this process, or the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    def total(self, value: float) -> float:
        """Sum the values of all processes."""
        if self.size == 1:
            return value
        summed = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return float(summed.item())

    def gathered(self, part: Tensor) -> list[Tensor]:
        """Gather the tensors of all processes, by rank. They must have one shape and type and be on the CPU."""
        if self.size == 1:
            return [part]
        mine = part.to(self.device)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return [each.cpu() for each in parts]

    def agree(self, what: str, value: int) -> None:
        """Check that all processes have the same number.

        Raises:
            ConfigError: they differ.
        """
        values = [int(each.item()) for each in self.gathered(torch.tensor([value], dtype=torch.int64))]
        if len(set(values)) > 1:
            message = f"the processes differ in {what}: {values}; do they see the same folder and data?"
            raise ConfigError("not_together", message)

    def wait(self) -> None:
        """Wait for all processes."""
        self.total(0.0)

    @contextmanager
    def first_then_others(self) -> Iterator[None]:
        """Run the block in the first process, then in the others, which reuse its results, for example from a cache."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def share(self, parameters: Sequence[nn.Parameter]) -> None:
        """Copy the first process's weights to all."""
        if self.size > 1:
            with torch.no_grad():
                joint = torch.cat([parameter.flatten() for parameter in parameters])
                dist.broadcast(joint, src=0)
                _spread(joint, parameters)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each process's gradients by their sum. A process without gradients contributes zero."""
        if self.size > 1:
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            joint = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(joint)
            _spread(joint, gradients)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient


def _spread(joint: Tensor, tensors: Sequence[Tensor]) -> None:
    for tensor, part in zip(tensors, torch.split(joint, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


@contextmanager
def alone() -> Iterator[None]:
    """Work without the other processes of the group in the block, as a group of one, because their part is done."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


@contextmanager
def joined(environ: Mapping[str, str] | None = None) -> Iterator[Group]:
    """Join the group that `torchrun` describes in the environment (WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    Without these variables, or with one process, there is no group to join.

    Raises:
        ConfigError: a variable is not a whole number, a process is unreachable, or this machine has fewer GPUs than processes.
    """
    launch = Launch.from_env(environ)
    if launch.processes < 2:
        yield Group()
        return
    cuda, local = torch.cuda.is_available(), launch.local_rank
    if cuda:
        if local >= torch.cuda.device_count():
            raise ConfigError("too_many", f"process {local} of this machine has no GPU: it has {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
    try:
        # `torchrun` keeps its store when it restarts processes: without a separate name for each life, new processes
        # would find the addresses of dead ones
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        life = PrefixStore(f"life-{launch.life}", store)
        dist.init_process_group("nccl" if cuda else "gloo", store=life, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as exc:
        raise ConfigError("not_joined", f"the other training processes cannot be reached: {exc}") from exc
    try:
        yield Group.current()
    finally:
        dist.destroy_process_group()
