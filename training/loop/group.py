"""Data-parallel training: the processes that `torchrun` started, or one process alone.

Every process runs the same program on the same data and draws the same random numbers where they must agree. Gradients are
summed over gloo on CPUs, over NCCL on GPUs, as one buffer per step: the towers are small, and a process whose share of a step
holds nothing to predict still takes part, which `DistributedDataParallel` would not allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

__all__ = ["Group", "NotFirst", "joined"]

PATIENCE = timedelta(hours=12)
"How long processes wait for each other: while the first one gathers ranking examples and trains the ranker, the others wait."


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of one training; a process alone is a group of one."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Group:
        """The group that `joined` made, or a process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    def total(self, value: float) -> float:
        """Sum of every process's value."""
        if self.size == 1:
            return value
        summed = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return float(summed.item())

    def gathered(self, part: Tensor) -> list[Tensor]:
        """Every process's tensor, by rank; all of one shape and type, on the CPU."""
        if self.size == 1:
            return [part]
        mine = part.to(self.device)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return [each.cpu() for each in parts]

    def agree(self, what: str, value: int) -> None:
        """Check that all processes have the same number.

        Raises:
            ConfigError: they do not.
        """
        values = [int(each.item()) for each in self.gathered(torch.tensor([value], dtype=torch.int64))]
        if len(set(values)) > 1:
            message = f"the processes differ in {what}: {values}; do they see the same folder and data?"
            raise ConfigError("not_together", message)

    def wait(self) -> None:
        """Until every process is here."""
        self.total(0.0)

    @contextmanager
    def first_then_others(self) -> Iterator[None]:
        """Run the block in the first process, then in the others, which find what it left, as in a cache."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def share(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every process the first one's weights."""
        if self.size > 1:
            with torch.no_grad():
                joint = torch.cat([parameter.flatten() for parameter in parameters])
                dist.broadcast(joint, src=0)
                _spread(joint, parameters)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each process's gradients by their sum; one that has none adds nothing."""
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
def joined(environ: Mapping[str, str] | None = None) -> Iterator[Group]:
    """Join the group that `torchrun` describes in the environment (WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    Without it, or with one process, there is nothing to join.

    Raises:
        ConfigError: a variable is no whole number, the others cannot be reached, or there are fewer GPUs than processes here.
    """
    launch = Launch.from_env(environ)
    if launch.processes < 2:
        yield Group()
        return
    cuda, local = torch.cuda.is_available(), launch.local_rank
    if cuda:
        if local >= torch.cuda.device_count():
            raise ConfigError("too_many", f"process {local} of this machine has no GPU: {torch.cuda.device_count()} are there")
        torch.cuda.set_device(local)
    try:
        # `torchrun` keeps its store when it restarts processes: without a name of their own for each life, the new ones
        # would find the addresses of those that died
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        life = PrefixStore(f"life-{launch.life}", store)
        dist.init_process_group("nccl" if cuda else "gloo", store=life, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as exc:
        raise ConfigError("not_joined", f"the other training processes cannot be reached: {exc}") from exc
    try:
        yield Group.current()
    finally:
        dist.destroy_process_group()
