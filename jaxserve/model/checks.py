"""The checks of a model's options that need no tracing; each says what was given, what is needed and how to mend it."""

import dataclasses
import math
import reprlib
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxserve.errors import InvalidInput, ModelError
from jaxserve.model.params import device_dtype
from jaxserve.model.signature import STRING, Signature, Tensor, TensorSpec, numpy_dtype

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]
Preprocess = Callable[[dict[str, Tensor]], Mapping[str, Any]]
Postprocess = Callable[[Arrays], Mapping[str, Any]]


def check_name(name: str) -> None:
    """A name must not be empty, nor hold what URLs, files and terminals trip over."""
    if not isinstance(name, str) or not name:
        raise ModelError(f"name is {name!r}, but must be a non-empty str")
    if name in (".", "..", "stats"):
        raise ModelError(f"name is {name!r}, which has a meaning of its own in URLs; choose another")
    if "/" in name or any(unicodedata.category(letter).startswith("C") for letter in name):
        raise ModelError(f"name is {name!r}, but must hold no '/' and no control characters")


def check_deadline(deadline_s: float | None) -> None:
    """A deadline is a positive number of seconds, or None."""
    if deadline_s is None:
        return
    if isinstance(deadline_s, bool) or not isinstance(deadline_s, int | float):
        raise ModelError(f"deadline_s is {deadline_s!r}, but must be a number of seconds, or None for no limit")
    if not 0 < deadline_s <= sys.float_info.max:
        shown = reprlib.repr(deadline_s)
        raise ModelError(f"deadline_s is {shown}, but must be greater than 0 and finite, or None for no limit")


def check_max_wait(max_wait_s: float, deadline_s: float | None, *, most_rows: int, on_host: bool) -> None:
    """To wait for company makes sense where there can be some, and for less than the deadline."""
    if isinstance(max_wait_s, bool) or not isinstance(max_wait_s, int | float):
        raise ModelError(f"max_wait_s is {max_wait_s!r}, but must be a number of seconds; 0 for not at all")
    if not 0 <= max_wait_s < (math.inf if deadline_s is None else deadline_s):
        limit = "finite" if deadline_s is None else f"less than deadline_s, which is {deadline_s:g}"
        raise ModelError(f"max_wait_s is {max_wait_s!r}, but must be at least 0 and {limit}")
    if max_wait_s > 0 and (on_host or most_rows == 1):
        why = "on_host is True" if on_host else "its largest batch size is 1"
        raise ModelError(
            f"max_wait_s is {max_wait_s:g}, but its requests are never merged, as {why}; leave it out, or change that"
        )


def check_device_dtypes(signature: Signature) -> None:
    """Without x64 jax would silently compute in 32 bits what the client sends in 64."""
    for name, spec in signature.items():
        dtype = numpy_dtype(spec.dtype)
        on_device = device_dtype(dtype)
        if on_device != dtype:
            raise ModelError(
                f"inputs[{name!r}] is of {dtype}, which jax makes {on_device}; declare {on_device}, "
                f"or set jax_enable_x64"
            )


def client_signature(
    inputs: Signature, accepts: Mapping[str, TensorSpec] | None, preprocess: Preprocess | None
) -> Signature:
    """What a client sends."""
    if preprocess is not None and not callable(preprocess):
        raise ModelError(f"preprocess is a {type(preprocess).__name__}, but must be a function of the client's inputs")
    if accepts is None:
        return inputs
    if preprocess is None:
        raise ModelError(
            "accepts is given, but no preprocess that makes the module's inputs of it; give both or neither"
        )
    return Signature(accepts, what="accepts", strings=True)


def client_outputs(
    outputs: Mapping[str, TensorSpec], returns: Mapping[str, TensorSpec] | None, postprocess: Postprocess | None
) -> Mapping[str, TensorSpec]:
    """What a client receives."""
    if postprocess is None and returns is None:
        return outputs
    if postprocess is None or returns is None:
        given, lacking = ("returns", "postprocess") if postprocess is None else ("postprocess", "returns")
        raise ModelError(f"{given} is given without {lacking}; give both or neither")
    if not callable(postprocess):
        raise ModelError(f"postprocess is a {type(postprocess).__name__}, but must be a function of the named outputs")
    return dict(Signature(returns, what="returns", strings=False))


def check_cut_names(cuts: Sequence[str], *, on_host: bool) -> tuple[str, ...]:
    """Cuts are distinct names; whether modules have them is seen in the trace."""
    if isinstance(cuts, str) or not all(isinstance(cut, str) and cut for cut in cuts):
        raise ModelError(f"cuts is {cuts!r}, but must be a tuple of names of modules, such as ('layers_6',)")
    if len(set(cuts)) < len(cuts):
        raise ModelError(f"cuts is {tuple(cuts)}, but names a module twice")
    if cuts and on_host:
        raise ModelError("cuts are given, but an on_host function runs in one piece; take one of the two away")
    return tuple(cuts)


def example_of(client: Signature, example: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Inputs as a client may send them: those given, or zeros, and the text "a", of size 1 where sizes vary."""
    if example is None:
        return {
            name: ["a"]
            if spec.dtype == STRING
            else np.zeros([1 if isinstance(dim, str) else dim for dim in spec.shape], numpy_dtype(spec.dtype))
            for name, spec in client.items()
        }
    try:
        tensors, _ = client.check(example)
    except InvalidInput as error:
        raise ModelError(f"example is not what clients may send: {error}") from error
    return tensors


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Embedder:
    """What a model that embeds texts takes and returns.

    Attributes:
        input: the name of its texts.
        output: the name of its vectors.
        size: of a vector.
        count_tokens: how many tokens it reads of these texts; None where that is not known.
    """

    input: str
    output: str
    size: int
    count_tokens: Callable[[list[str]], int] | None


def check_embedder(
    client: Signature,
    returns: Mapping[str, TensorSpec],
    *,
    embedder: bool,
    count_tokens: Callable[[list[str]], int] | None,
) -> Embedder | None:
    """A model that embeds takes texts and returns one vector for each."""
    if not embedder:
        if count_tokens is not None:
            raise ModelError("count_tokens is given, but embedder is not True; give both, or neither")
        return None
    texts = [name for name, spec in client.items() if spec.dtype == STRING]
    vectors = [(name, spec) for name, spec in returns.items() if "float" in spec.dtype and len(spec.shape) == 2]
    if len(client) != 1 or len(texts) != 1 or len(vectors) != 1 or not isinstance(vectors[0][1].shape[1], int):
        raise ModelError(
            f"embedder is True, but the model takes {dict(client)} and returns {dict(returns)}; it must take one input "
            f"of strings and return one output of floats of shape ('batch', size)"
        )
    if count_tokens is not None and not callable(count_tokens):
        raise ModelError(f"count_tokens is a {type(count_tokens).__name__}, but must be a function of a list of str")
    name, spec = vectors[0]
    size = spec.shape[1]
    assert isinstance(size, int)
    return Embedder(input=texts[0], output=name, size=size, count_tokens=count_tokens)
