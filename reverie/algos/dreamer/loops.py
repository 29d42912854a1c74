"""The loop over observed steps (`--observe`), by its name; and the one that a run has on its device.

`scan` takes one step after the other. `fused` is one GPU kernel each way, for the sizes whose states fit in registers.
`auto` is for a run to settle when it begins, by measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax

from reverie.fields import ConfigError
from reverie.model.rssm import Loop, scan

SIZES = ("200k", "1m")  # of the kernel


def loop_of(observe: str) -> Loop:
    """The loop of this name."""
    if observe != "fused":
        return scan
    from reverie.model import kernel  # not above: Pallas takes a third of a second to import

    return kernel.fused


def settle(
    config: Any, make: Callable[[Any], Any], *, platform: str, devices: int, precision: str, batch: int, length: int
) -> str:
    """The loop of a run with these values of DreamerV3, on so many devices of this platform.

    Args:
      make: builds an agent with other values, in any env.

    Raises:
      ConfigError: `fused` is asked for, and there is no such kernel.
    """
    choices = config.chosen()
    needs = (
        (config.dynamics == "rssm", f"--dynamics rssm, not {config.dynamics}"),
        (config.size in SIZES, f"--size {' or '.join(SIZES)}, not {config.size}"),
        (choices.recurrence == "block", f"the recurrence block, not {choices.recurrence}"),
        (choices.norm == "rms", f"the norm rms, not {choices.norm}"),
        (devices == 1, f"--devices 1, not {devices}"),
        (platform in ("gpu", "cpu"), f"a GPU, not a {platform}"),
        (platform != "cpu" or precision == "float32", f"--precision float32 on a CPU, not {precision}"),
    )
    missing = [need for there, need in needs if not there]
    if config.observe == "fused" and missing:
        raise ConfigError(f"--observe fused needs {', '.join(missing)}; or type --observe scan")
    if config.observe != "auto":
        return str(config.observe)
    if missing or platform == "cpu":
        return "scan"
    from reverie.model import kernel

    agent = make(replace(config, observe="fused"))
    dyn = jax.jit(lambda key: agent.dynamics(1, key))(jax.random.key(0))
    return "fused" if kernel.is_faster(dyn, batch, length, agent.dtype) else "scan"
