"""Memory: how much of it this process may take, large pages for large arrays, and how often garbage is looked for."""

from __future__ import annotations

import gc
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path


def use_huge_pages() -> None:
    """Starts this process again with glibc asking for transparent huge pages, where Linux gives them on request.

    XLA on the CPU takes its scratch memory anew for every call: hundreds of megabytes, touched in pages of 4 KiB.
    With pages of 2 MiB an update costs about a fifth less (`docs/notebook.md`). glibc reads the wish only when a
    process starts, hence the `exec`; it happens once, before anything else, and changes no result. Other
    systems and an explicit `GLIBC_TUNABLES` are left alone.
    """
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ or not setting.exists():
        return
    if "[madvise]" not in setting.read_text():
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def collect_seldom() -> None:
    """Lets Python look for garbage in cycles after every 100,000 new objects, not after every few hundred or thousand.

    Tracing an update makes hundreds of thousands of objects that stay, and the collector walked through them again and
    again: a quarter of the time (`docs/notebook.md`).
    """
    gc.set_threshold(100_000, *gc.get_threshold()[1:])


def limit(process: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may take: the memory of the machine, or the tightest limit below it.

    Limits are that of the address space (`ulimit -v`) and those of the control groups that the process is in, up to
    the root: a container, a job of a batch system, a slice of systemd. Inside a container the path of a group may begin
    above what is mounted; then what is mounted counts.

    Args:
      process: names its groups, one per line: "id:controllers:path", without controllers in version 2.
      mounts: where the groups are mounted.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    limits += [space] if space != resource.RLIM_INFINITY else []
    lines = process.read_text().splitlines() if process.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, name = mounts, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mounts / "memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            with suppress(OSError, ValueError):  # not there, or "max"
                limits.append(int(root.joinpath(*parts[:depth], name).read_text()))
    return min(limits)
