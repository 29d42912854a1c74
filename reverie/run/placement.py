"""Where a run's state and batches lie: on one device, or on several that share every batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding


class Placement:
    """Data parallelism over devices of this process, all of one platform; none of them for the default one.

        devices   0          1          ...       a mesh of one axis
        state     whole      whole      ...       the same bits everywhere
        batch     0 .. B/n   B/n .. 2B/n ...      split by its first axis; the compiler adds what crosses the cut

    The policy, and whatever else is small, stays on the first device. With one device, nothing is said to JAX about
    placement at all: its default device is used, as without this class.
    """

    def __init__(self, devices: Sequence[jax.Device] = ()) -> None:
        # Options of `jax.jit`: for `(state, batch) -> (state, out, metrics)`, `out` split like the batch; and for
        # functions of the first device, whose state is `local`. `trains` is for several batches, one after the other.
        self.train: dict[str, Any] = {}
        self.trains: dict[str, Any] = {}
        self.alone: dict[str, Any] = {}
        self._everywhere: NamedSharding | None = None
        if len(devices) > 1:
            mesh = Mesh(np.array(devices), ("batch",))
            whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))
            first = SingleDeviceSharding(devices[0])
            self._everywhere = whole
            self.train = {"in_shardings": (whole, split), "out_shardings": (whole, split, whole)}
            split = NamedSharding(mesh, PartitionSpec(None, "batch"))
            self.trains = {"in_shardings": (whole, split), "out_shardings": (whole, split, whole)}
            # Said of everything, or what has been on the device before would compile anew what was not.
            self.alone = {"in_shardings": first, "out_shardings": first}

    def everywhere(self, state: Any) -> Any:
        """`state`, of one device, as training wants it; the argument is no longer to be used."""
        return state if self._everywhere is None else jax.device_put(state, self._everywhere)

    def local(self, state: Any) -> Any:
        """The first device's own copy of `everywhere`: nothing is moved, and training donates it with the rest."""
        return state if self._everywhere is None else jax.tree.map(lambda x: x.addressable_data(0), state)
