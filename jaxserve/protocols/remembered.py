"""What the codecs of the Open Inference Protocol remember: requests that differ in their data alone, and much else."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from jaxserve.protocols.datatypes import DTYPES, Value, check_bools
from jaxserve.protocols.infer_request import InferRequest, Parameters, RequestedOutput, quoted
from jaxserve.protocols.tensors import Buffer

MOST = 4096
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
        outputs: as in `InferRequest`.
        parameters: of the request.
    """

    tensors: Sequence[tuple[str, np.dtype, tuple[int, ...], int]]
    data_bytes: int
    bools: Sequence[str]
    outputs: tuple[RequestedOutput, ...] | None
    parameters: Parameters

    def fill(self, id: str, body: Buffer, data_start: int) -> InferRequest:
        """The request that has this id, and its data in `body`.

        Raises:
            InvalidInput: what should be bools is something else.
        """
        if type(body) is not bytes:
            body = memoryview(body).toreadonly()
        inputs: dict[str, Value] = {}
        for name, dtype, shape, offset in self.tensors:  # not a comprehension: that would be one more call
            inputs[name] = np.ndarray(shape, dtype, body, data_start + offset)
        for name in self.bools:
            check_bools(inputs[name], what=f"input {quoted(name)}")  # pyright: ignore[reportArgumentType]
        return InferRequest(id, inputs, self.outputs, *self.parameters)


def seen_of(
    inputs: Mapping[str, Value],
    offsets: Sequence[int] | None,
    outputs: tuple[RequestedOutput, ...] | None,
    parameters: Parameters,
) -> Seen | None:
    """What is to be remembered of a request; nothing where an input must be looked at each time.

    Args:
        inputs: its tensors.
        offsets: where the data of each starts; None where one stands right behind the other.
        outputs: that it asked for.
        parameters: of the request.
    """
    tensors: list[tuple[str, np.dtype, tuple[int, ...], int]] = []
    end = 0
    for index, (name, value) in enumerate(inputs.items()):
        if not isinstance(value, np.ndarray):
            return None
        offset = end if offsets is None else offsets[index]
        tensors.append((name, value.dtype, value.shape, offset))
        end = offset + value.nbytes
    bools = [name for name, dtype, _, _ in tensors if dtype == DTYPES["BOOL"]]
    return Seen(tensors, end, bools, outputs, parameters)
