"""Large pages for large arrays."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb=1"


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
    os.environ["GLIBC_TUNABLES"] = TUNABLE
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
