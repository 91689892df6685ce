"""What this machine has: memory, cores, its processor's name. Standard library only."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

_FALLBACK = 4 << 30


def available_memory() -> int:
    """Bytes that can be taken without swapping; a cautious guess where the system does not say."""
    if sys.platform == "linux":
        try:
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return _within_cgroup(int(line.split()[1]) * 1024)
        except (OSError, ValueError, IndexError):
            return _FALLBACK
    return total_memory() // 2


def total_memory() -> int:
    """Bytes of memory in the machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 2 * _FALLBACK


def _within_cgroup(available: int) -> int:
    """A container may be allowed less than the machine has free."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        if limit == "max":
            return available
        used = int((root / "memory.current").read_text())
        return max(0, min(available, int(limit) - used))
    except (OSError, ValueError):
        return available


def cores() -> tuple[int, int]:
    """Physical cores and hardware threads this process may use, both at least 1."""
    try:
        logical = len(os.sched_getaffinity(0))
    except AttributeError:
        logical = os.cpu_count() or 1
    physical = set()
    if sys.platform == "linux":
        base = Path("/sys/devices/system/cpu")
        try:
            for cpu in os.sched_getaffinity(0):
                topology = base / f"cpu{cpu}" / "topology"
                package = (topology / "physical_package_id").read_text().strip()
                physical.add((package, (topology / "core_id").read_text().strip()))
        except OSError:
            physical = set()
    return len(physical) or logical, logical


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
