"""What a process may take, with limits made up."""

from __future__ import annotations

import gc
import resource
from pathlib import Path

import pytest

from reverie import cli, memory

MB = 1 << 20
UNLIMITED = 9223372036854771712  # as version 1 says it


@pytest.fixture(autouse=True)
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 1000 MB without `ulimit -v`."""
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000 * MB // 4096}.get)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)


def limit(tmp_path: Path, groups: str, limits: dict[str, int | str]) -> float:
    """In MB, with files below the mount."""
    (tmp_path / "self").write_text(groups)
    for name, value in limits.items():
        file = tmp_path / "mount" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    return memory.limit(tmp_path / "self", tmp_path / "mount") / MB


V2 = "0::/job/step\n"
V1 = "9:cpu,cpuacct:/job/step\n4:hugetlb,memory:/job/step\n1:name=systemd:/job\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        (V2, {}, 1000),
        (V2, {"job/step/memory.max": "max", "memory.max": "max"}, 1000),
        (V2, {"job/step/memory.max": 300 * MB}, 300),
        (V2, {"job/step/memory.max": 300 * MB, "job/memory.max": 200 * MB, "memory.max": 400 * MB}, 200),
        (V2, {"job/step/memory.max": "max", "memory.max": 100 * MB}, 100),
        (V2, {"job/other/memory.max": 100 * MB, "job/step/more/memory.max": 100 * MB}, 1000),
        (V2, {"job/step/memory.max": "", "job/memory.max": 500 * MB}, 500),
        ("0::/../../elsewhere\n", {"memory.max": 250 * MB}, 250),  # seen from another namespace
        ("0::/a:b\n", {"a:b/memory.max": 150 * MB}, 150),
        (V1, {"memory/job/step/memory.limit_in_bytes": UNLIMITED}, 1000),
        (V1, {"memory/job/step/memory.limit_in_bytes": 300 * MB, "memory/job/memory.limit_in_bytes": 200 * MB}, 200),
        (V1, {"memory/memory.limit_in_bytes": 350 * MB}, 350),  # a container: its group is the root that it sees
        (V1, {"cpu/job/step/memory.limit_in_bytes": 10 * MB, "job/step/memory.max": 10 * MB}, 1000),
        (V1, {"memory/job/step/memory.limit_in_bytes": 300 * MB, "memory.max": 120 * MB}, 120),  # both versions
        ("", {"memory.max": 100 * MB}, 1000),
    ],
)
def test_the_tightest_limit_up_to_the_root_counts(
    groups: str, limits: dict[str, int | str], expected: float, tmp_path: Path
) -> None:
    assert limit(tmp_path, groups, limits) == expected


def test_a_limit_of_the_address_space_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_AS: (50 * MB, resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    assert limit(tmp_path, V2, {"job/memory.max": 60 * MB}) == 50


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    assert memory.limit(tmp_path / "none", tmp_path / "nowhere") == 1000 * MB


def test_a_command_that_trains_collects_garbage_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gc.get_threshold()
    for name in ("use_huge_pages", "open_outlets", "keep_programs"):
        monkeypatch.setattr(cli, name, lambda: None)
    monkeypatch.setattr(cli, "main", lambda: 0)
    monkeypatch.setattr("sys.argv", ["reverie", "train", "dreamer_v3"])
    try:
        with pytest.raises(SystemExit):
            cli.program()
        assert gc.get_threshold() == (100_000, *before[1:])
    finally:
        gc.set_threshold(*before)
