"""Open Inference Protocol (V2): a request and its answers as HTTP and gRPC alike have them."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxserve.errors import InvalidInput
from jaxserve.protocols.classification import classify
from jaxserve.protocols.datatypes import BYTES, Value, datatype_of_value
from jaxserve.request import HIGHEST_PRIORITY, LOWEST_PRIORITY, check_tenant

MAX_TENSORS = 256
"""The most inputs, and the most requested outputs, of one request, unless said otherwise."""
LONGEST_ID = 1024
"""The most characters in the id of a request, which is sent back."""

NONE: Mapping[str, Any] = MappingProxyType({})
"""No parameters."""

_SHARED_MEMORY = "shared_memory_region"


class RequestedOutput(NamedTuple):
    """An output that a request asks for by name.

    Attributes:
        name: of the model's output.
        binary: whether its data is to be raw, not JSON (HTTP only).
        classification: how many classes of each row are asked for in place of the values; 0 for the values.
    """

    name: str
    binary: bool = False
    classification: int = 0


class InferRequest(NamedTuple):
    """An inference request of the protocol; a tuple, because a codec can make one from a part that it remembers.

    Attributes:
        id: what the client calls it, to be sent back; empty for none.
        inputs: the tensors by name.
        outputs: those that are asked for; None for all.
        binary_output: whether outputs that were not asked for one by one are to be raw, not JSON (HTTP only).
        timeout_s: seconds within which the client wants the answer; None for the model's own deadline.
        priority: as in `jaxserve.request.Request`, -10 to 10; the higher, the sooner.
        tenant: whose it is; empty for nobody's.
        parameters: all the others. Not to be changed: requests share it.
    """

    id: str
    inputs: dict[str, Value]
    outputs: tuple[RequestedOutput, ...] | None = None
    binary_output: bool = False
    timeout_s: float | None = None
    priority: int = 0
    tenant: str = ""
    parameters: Mapping[str, Any] = NONE


class Answer(NamedTuple):
    """One output as it is to be sent; `value` is a list for BYTES, in row-major order of `shape`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    value: Value
    binary: bool


class Parameters(NamedTuple):
    """The parameters of a request; the attributes are as in `InferRequest`."""

    binary_output: bool
    timeout_s: float | None
    priority: int
    tenant: str
    others: Mapping[str, Any]


_NO_PARAMETERS = Parameters(False, None, 0, "", NONE)


def read_parameters(given: Mapping[str, Any]) -> Parameters:
    """The parameters of a request.

    Raises:
        InvalidInput: one that means something here has a value that means nothing.
    """
    if not given:
        return _NO_PARAMETERS
    others = dict(given)
    binary_output = read_flag(others.pop("binary_data_output", False), "binary_data_output")
    timeout_us = read_count(others.pop("timeout", 0), "timeout (microseconds)")
    urgency = read_count(others.pop("priority", 0), "priority")
    tenant = check_tenant(others.pop("tenant", ""))
    # Triton's 1 is the highest priority and 0 the default one; ours are -10 to 10, and higher is sooner.
    priority = max(LOWEST_PRIORITY, HIGHEST_PRIORITY + 1 - urgency) if urgency else 0
    timeout_s = timeout_us / 1e6 if timeout_us else None
    return Parameters(binary_output, timeout_s, priority, tenant, MappingProxyType(others) if others else NONE)


def check_id(id: object) -> str:
    """What a client calls its request.

    Raises:
        InvalidInput: it is no text, or too long to be sent back.
    """
    if type(id) is not str or len(id) > LONGEST_ID:
        raise InvalidInput(f"id is {quoted(id)}, but must be a string of at most {LONGEST_ID} characters")
    return id


def requested_output(name: str, parameters: Mapping[str, Any], *, binary: bool) -> RequestedOutput:
    """An output that was asked for with these parameters; `binary` is for where they do not say.

    Raises:
        InvalidInput: a parameter makes no sense.
    """
    if not parameters:
        return RequestedOutput(name, binary)
    what = f"output {quoted(name)}"
    refuse_shared_memory(parameters, what)
    return RequestedOutput(
        name,
        read_flag(parameters.get("binary_data", binary), f"{what}: binary_data"),
        read_count(parameters.get("classification", 0), f"{what}: classification"),
    )


def refuse_shared_memory(parameters: Mapping[str, Any], what: str) -> None:
    """Looks whether a tensor is said to be in shared memory.

    Raises:
        InvalidInput: it is.
    """
    if _SHARED_MEMORY in parameters:
        raise InvalidInput(f"{what} is to be in shared memory, which is not supported; send the data itself")


def check_number_of_tensors(count: int, max_tensors: int, what: str) -> None:
    """Looks whether a request has more tensors than it may have.

    Raises:
        InvalidInput: it has.
    """
    if count > max_tensors:
        raise InvalidInput(f"{count} {what}; at most {max_tensors} are allowed")


def check_unique(names: Sequence[str], what: str) -> None:
    """Looks whether two tensors have one name.

    Raises:
        InvalidInput: they have.
    """
    if len(set(names)) != len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise InvalidInput(f"{what} {quoted(twice)} is there twice; say it once")


def check_outputs(request: InferRequest, known: Iterable[str]) -> None:
    """Looks whether a model has the outputs that are asked for. `answers` does so too, but late.

    Raises:
        InvalidInput: it does not have one.
    """
    known = tuple(known)
    for output in request.outputs or ():
        if output.name not in known:
            raise InvalidInput(f"there is no output {quoted(output.name)}; the model has {', '.join(known)}")


def answers(request: InferRequest, outputs: Mapping[str, Value]) -> list[Answer]:
    """The outputs that a request asked for, as they are to be sent.

    Raises:
        InvalidInput: there is no such output, or no such form of it.
        Unsupported: an output is of a dtype that the protocol has no name for.
    """
    if request.outputs is None:
        return [_answer(name, value, request.binary_output) for name, value in outputs.items()]
    check_outputs(request, outputs)
    found: list[Answer] = []
    for name, binary, classification in request.outputs:
        if classification:
            classes, shape = classify(outputs[name], classification, what=f"output {quoted(name)}")
            found.append(Answer(name, BYTES, shape, classes, binary))
        else:
            found.append(_answer(name, outputs[name], binary))
    return found


def _answer(name: str, value: Value, binary: bool) -> Answer:
    shape = (len(value),) if isinstance(value, list) else value.shape
    return Answer(name, datatype_of_value(value, what=f"output {quoted(name)}"), shape, value, binary)


def read_flag(value: object, what: str) -> bool:
    """A parameter that says yes or no.

    Raises:
        InvalidInput: it does neither.
    """
    if type(value) is not bool:
        raise InvalidInput(f"{what} is {quoted(value)}, but must be true or false")
    return value


def read_count(value: object, what: str) -> int:
    """A parameter that says how many.

    Raises:
        InvalidInput: it does not.
    """
    if type(value) is not int or value < 0:
        raise InvalidInput(f"{what} is {quoted(value)}, but must be a whole number of 0 or more")
    return value


def quoted(value: object) -> str:
    """A value that a stranger gave, as it is shown in a message: not all of it where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
