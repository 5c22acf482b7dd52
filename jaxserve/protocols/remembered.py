"""What the codecs of the Open Inference Protocol remember: requests that differ in their data alone, and much else."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxserve.protocols.datatypes import DTYPES, Value, check_bools
from jaxserve.protocols.infer_request import InferRequest, quoted
from jaxserve.protocols.tensors import Buffer

MOST = 1024
"""How much of a kind is remembered."""
LONGEST_BYTES = 1024
"""The longest text of a request, its data left out, that is remembered."""

Key = TypeVar("Key")
Kept = TypeVar("Kept")


class Remembered(dict[Key, Kept]):
    """A dictionary of bounded size."""

    def keep(self, key: Key, value: Kept) -> None:
        """Remembers one more."""
        if len(self) >= MOST:
            self.clear()  # crude, but it bounds the memory, and a real server never comes near the bound
        self[key] = value


class Seen(NamedTuple):
    """A request whose data is all raw, without its id and its data.

    Attributes:
        tensors: name, dtype, shape and where the data starts, counted from the start of all data.
        data_bytes: what all data takes, with what stands between the tensors.
        bools: the inputs in which not every byte is one.
        rest: the fields of `InferRequest` behind `inputs`.
    """

    tensors: Sequence[tuple[str, np.dtype, tuple[int, ...], int]]
    data_bytes: int
    bools: Sequence[str]
    rest: tuple[Any, ...]

    def fill(self, id: str, body: Buffer, data_start: int) -> InferRequest:
        """The request that has this id, and its data in `body`, which must not be writable.

        Raises:
            InvalidInput: what should be bools is something else.
        """
        inputs: dict[str, Value] = {}
        for name, dtype, shape, offset in self.tensors:  # not a comprehension: that would be one more call
            inputs[name] = np.ndarray(shape, dtype, body, data_start + offset)
        if self.bools:
            for name in self.bools:
                check_bools(inputs[name], what=f"input {quoted(name)}")  # pyright: ignore[reportArgumentType]
        return _new(InferRequest, (id, inputs, *self.rest))


_new = tuple.__new__  # half the time of `InferRequest(...)`


def seen_of(request: InferRequest, offsets: Sequence[int] | None = None) -> Seen | None:
    """What is to be remembered of a request; nothing where an input must be looked at each time.

    Args:
        request: it.
        offsets: where the data of each input starts; None where one stands right behind the other.
    """
    tensors: list[tuple[str, np.dtype, tuple[int, ...], int]] = []
    end = 0
    for index, (name, value) in enumerate(request.inputs.items()):
        if not isinstance(value, np.ndarray):
            return None
        offset = end if offsets is None else offsets[index]
        tensors.append((name, value.dtype, value.shape, offset))
        end = offset + value.nbytes
    bools = [name for name, dtype, _, _ in tensors if dtype == DTYPES["BOOL"]]
    return Seen(tensors, end, bools, request[2:])
