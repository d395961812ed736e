"""The number of cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cores"]

CGROUP = Path("/sys/fs/cgroup")


def cores(cgroup: Path = CGROUP) -> float:
    """Return the number of cores by the process's affinity and by the limit of its container, if that is less.

    `cgroup`: where the container's group is mounted (cgroups(7)); `cpu.max` in version 2, `cpu.cfs_quota_us` in version 1.
    """
    allowed = float(len(os.sched_getaffinity(0)))
    for read in (_version_2, _version_1):
        try:
            quota = read(cgroup)
        except (OSError, ValueError, ZeroDivisionError):
            continue
        if quota is not None and quota > 0:
            return min(allowed, quota)
    return allowed


def _version_2(cgroup: Path) -> float | None:
    quota, period = (cgroup / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _version_1(cgroup: Path) -> float | None:
    quota, period = (int((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    return None if quota < 0 else quota / period
