"""What a stage's programs are passed besides values: on its devices for good or, for a spare model, only at times.

A spare model stays compiled, and has a copy of what it passes in host memory, so that its devices' memory can be given
to other models and taken back without another compilation, and without its params being read again.
"""

import itertools
from collections.abc import Sequence

import jax
import numpy as np

from jaxserve.runtime.compiled import Executable
from jaxserve.runtime.weights import HostCopy, LoadedWeights, host_copy


class StageArrays:
    """The weights of one stage, and the large constants of its programs.

    One thread at a time may change it, that of its stage; others may look.

    Attributes:
        weights: on the stage's devices, in the order of its layout; empty while they are not there.
        arguments: what the stage's programs are passed before their values, one tuple for each bucket; None while they
            are not on the devices.
    """

    def __init__(self, loaded: LoadedWeights, executables: Sequence[Executable]) -> None:
        """Brings the constants to the devices, too.

        Args:
            loaded: the weights, on the devices; with copies of them where they are spare.
            executables: of this stage, one for each bucket.
        """
        constants = [constant for each in executables for constant in each.constants]
        replicated = [each.constant_sharding for each in executables for _ in each.constants]
        self._constants_per_bucket = [len(each.constants) for each in executables]
        self._num_weights = len(loaded.arrays)
        self._shardings = (*(array.sharding for array in loaded.arrays), *replicated)
        self._copies: tuple[HostCopy, ...] | None = None
        if loaded.copies is not None:
            constants = [host_copy(constant) for constant in constants]
            self._copies = (*loaded.copies, *constants)
        arrays = (*loaded.arrays, *jax.device_put(constants, replicated))
        self._owned = loaded.owned if self._copies is None else _made_of(self._copies, arrays)
        self.weights: tuple[jax.Array, ...] = ()
        self.arguments: tuple[tuple[jax.Array, ...], ...] | None = None
        self._bind(arrays)

    @property
    def spare(self) -> bool:
        """Whether it can be taken off the devices and put back."""
        return self._copies is not None

    def evict(self) -> None:
        """Takes the arrays off the devices."""
        self.weights, self.arguments = (), None
        self._delete()

    def restore(self) -> None:
        """Puts the arrays of a spare stage back where they were, and waits until they are there."""
        if self.arguments is not None:
            return
        assert self._copies is not None
        arrays = jax.device_put(self._copies, self._shardings)
        self._owned = _made_of(self._copies, arrays)
        try:
            jax.block_until_ready(arrays)
        except jax.errors.JaxRuntimeError:  # such as too little memory: whoever keeps the error keeps no array alive
            self._delete()
            raise
        self._bind(arrays)

    def close(self) -> None:
        """Gives up the arrays and their copies."""
        self.evict()
        self._copies = None

    def _bind(self, arrays: Sequence[jax.Array]) -> None:
        constants = iter(arrays[self._num_weights :])
        self.weights = tuple(arrays[: self._num_weights])
        self.arguments = tuple(
            (*self.weights, *itertools.islice(constants, count)) for count in self._constants_per_bucket
        )

    def _delete(self) -> None:
        for array in self._owned:
            array.delete()
        self._owned = ()


def _made_of(copies: Sequence[HostCopy], arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Those arrays that nobody else may hold: not keys, of which jax may share a copy that lies on the same device."""
    return tuple(array for copy, array in zip(copies, arrays, strict=True) if isinstance(copy, np.ndarray))
