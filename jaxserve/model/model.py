"""A model: what it computes, what it takes and returns, and the shapes that are compiled for it.

Everything is checked when the model is made, by abstract tracing: nothing is allocated on a device.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, Unpack, cast

import jax
import numpy as np
from jax.extend import core

from jaxserve.errors import InferenceError, InvalidInput, ModelError, ModelFailed, brief
from jaxserve.model.adapters import Adapter, adapt_function, adapt_host_function, adapt_linen, adapt_nnx
from jaxserve.model.buckets import Bucket, BucketGrid
from jaxserve.model.checks import (
    Arrays,
    Embedder,
    Postprocess,
    Preprocess,
    check_cut_names,
    check_deadline,
    check_device_dtypes,
    check_embedder,
    check_max_wait,
    check_name,
    client_outputs,
    client_signature,
    example_of,
)
from jaxserve.model.flat import flatten_program
from jaxserve.model.modules import check_cuts
from jaxserve.model.outputs import Outputs, abstract_inputs, find_outputs
from jaxserve.model.params import ParamSource, Shape
from jaxserve.model.signature import BATCH, Signature, Tensor, TensorSpec, numpy_dtype


class ModelOptions(TypedDict, total=False):
    """Options that every kind of model has.

    Attributes:
        batch_sizes: batch sizes to compile, ascending; (1,) unless given.
        buckets: sizes to compile of every other variable dimension, by its name.
        deadline_s: seconds within which a request is to be answered if it does not say; None for no limit.
        max_wait_s: seconds for which a request that finds its devices free may wait for others to share a batch with,
            and no longer than half of what it has left until its deadline; 0 unless given.
        preprocess: function of what the client sent, run on the host, that returns the module's inputs.
        accepts: what the client sends, where that differs from `inputs`; needs a `preprocess`.
        postprocess: function of the named outputs, run on the host, that returns what the client receives.
        returns: what the client receives; needed with `postprocess`.
        cuts: modules ("layers_6", "encoder/layers_6"; for a function its `jax.named_scope`s) before which the model
            may be cut into pipeline stages.
        apply_kwargs: further keyword arguments of the call, such as `{"train": False}`.
        example: inputs as a client may send them, by which a server finds out whether the model answers; zeros (and
            short texts) unless given.
        embedder: it makes a vector of each text that it gets, so that clients of embedding services may call it.
        count_tokens: how many tokens an embedder reads of a list of texts.
    """

    batch_sizes: Sequence[int]
    buckets: Mapping[str, Sequence[int]]
    deadline_s: float | None
    max_wait_s: float
    preprocess: Preprocess | None
    accepts: Mapping[str, TensorSpec] | None
    postprocess: Postprocess | None
    returns: Mapping[str, TensorSpec] | None
    cuts: Sequence[str]
    apply_kwargs: Mapping[str, Any]
    example: Mapping[str, Any] | None
    embedder: bool
    count_tokens: Callable[[list[str]], int] | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Model:
    """A named module or function with its params, its signature, its buckets and its default deadline.

    Made by `from_linen`, `from_nnx` or `from_function`.

    Attributes:
        name: what clients call it.
        inputs: what the module takes, by name; variable dimensions have names, the first is "batch".
        outputs: what the module returns, found by abstract tracing.
        accepts: what a client sends: `inputs` where there is no preprocess.
        returns: what a client receives: `outputs` where there is no postprocess.
        buckets: the shapes that are compiled, ascending.
        deadline_s: seconds within which a request is to be answered if it does not say; None for no limit.
        max_wait_s: seconds for which a request that finds its devices free may wait for company.
        preprocess: makes module inputs of what a client sent, on the host.
        postprocess: makes what a client receives of the module's outputs, on the host.
        cuts: modules before which the model may be cut into stages.
        on_host: the function takes and returns numpy arrays and needs no device.
        example: inputs as a client may send them.
        embedder: what it is as a model that embeds texts; None where it is none.
        abstract_params: shapes and dtypes of the params.
    """

    name: str
    inputs: Signature
    outputs: Mapping[str, TensorSpec]
    accepts: Signature
    returns: Mapping[str, TensorSpec]
    buckets: tuple[Bucket, ...]
    deadline_s: float | None
    max_wait_s: float
    preprocess: Preprocess | None
    postprocess: Postprocess | None
    cuts: tuple[str, ...]
    on_host: bool
    example: Mapping[str, Any]
    embedder: Embedder | None
    _adapter: Adapter
    _grid: BucketGrid
    _outputs: Outputs
    _padded_shapes: tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]
    _smallest: core.ClosedJaxpr | None

    @classmethod
    def from_linen(
        cls,
        name: str,
        module: Any,
        params: Any,
        *,
        inputs: Mapping[str, TensorSpec],
        method: str | Callable[..., Any] | None = None,
        **options: Unpack[ModelOptions],
    ) -> "Model":
        """A model of a `flax.linen` module, which receives its inputs as keyword arguments.

        Args:
            name: what clients call it; no "/" and no control characters.
            module: the module.
            params: what `module.init` returns, or its "params" alone: a pytree, a function without arguments that
                returns one (called at every load), the directory of an Orbax checkpoint, or a .safetensors file.
            inputs: a `TensorSpec` for each input; the names are the module's keyword arguments.
            method: the module's method to call, instead of `__call__`.
            options: see `ModelOptions`.

        Raises:
            ModelError: something does not fit; the message says what and how to mend it.
        """

        def adapt(shapes: Mapping[str, Shape], kwargs: Mapping[str, Any]) -> Adapter:
            return adapt_linen(module, params, shapes, apply_kwargs=kwargs, method=method)

        return _make(name, inputs, adapt, **options)

    @classmethod
    def from_nnx(
        cls,
        name: str,
        module: Any,
        params: Any = None,
        *,
        inputs: Mapping[str, TensorSpec],
        method: str | Callable[..., Any] | None = None,
        **options: Unpack[ModelOptions],
    ) -> "Model":
        """A model of a `flax.nnx` module, which is served in evaluation mode and is itself left unchanged.

        Args:
            name: what clients call it; no "/" and no control characters.
            module: the module; an abstract one (`nnx.eval_shape`) is enough where `params` are given.
            params: the module's state, in any of the forms that `from_linen` takes; None for what the module holds.
            inputs: a `TensorSpec` for each input; the names are the module's keyword arguments.
            method: the module's method to call, instead of `__call__`.
            options: see `ModelOptions`; a cut before `layers[6]` is "layers_6".

        Raises:
            ModelError: something does not fit; the message says what and how to mend it.
        """

        def adapt(_: Mapping[str, Shape], kwargs: Mapping[str, Any]) -> Adapter:
            return adapt_nnx(module, params, apply_kwargs=kwargs, method=method)

        return _make(name, inputs, adapt, **options)

    @classmethod
    def from_function(
        cls,
        name: str,
        function: Callable[..., Any],
        params: Any = None,
        *,
        inputs: Mapping[str, TensorSpec],
        on_host: bool = False,
        **options: Unpack[ModelOptions],
    ) -> "Model":
        """A model of a pure function, called as `function(params, **inputs)`, or `function(**inputs)` without params.

        Args:
            name: what clients call it; no "/" and no control characters.
            function: the function.
            params: its params, in any of the forms that `from_linen` takes; names in a .safetensors file become nested
                dicts, split at each "." and "/".
            inputs: a `TensorSpec` for each input; the names are the function's keyword arguments.
            on_host: numpy arrays in, numpy arrays out, called on the event loop without a device; so it must be quick.
                It is called with zeros when the model is made, to find its outputs.
            options: see `ModelOptions`.

        Raises:
            ModelError: something does not fit; the message says what and how to mend it.
        """

        def adapt(shapes: Mapping[str, Shape], kwargs: Mapping[str, Any]) -> Adapter:
            adapt = adapt_host_function if on_host else adapt_function
            return adapt(function, params, shapes, apply_kwargs=kwargs)

        return _make(name, inputs, adapt, on_host=on_host, **options)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, inputs={self.inputs}, outputs={dict(self.outputs)}, buckets={len(self.buckets)})"

    @property
    def abstract_params(self) -> Any:
        """Shapes and dtypes of the params, in the structure that `apply` takes."""
        return self._adapter.params

    @property
    def param_source(self) -> ParamSource:
        """Where the params are read from."""
        return self._adapter.source

    @property
    def param_paths(self) -> tuple[str, ...]:
        """For each leaf of `abstract_params`, its path in `param_source`."""
        return self._adapter.source_paths

    @property
    def weight_bytes(self) -> int:
        """Bytes of all params."""
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.abstract_params))

    def describe(self) -> dict[str, Any]:
        """What clients send and receive, as plain values."""
        return {
            "name": self.name,
            "inputs": {name: _plain(spec) for name, spec in self.accepts.items()},
            "outputs": {name: _plain(spec) for name, spec in self.returns.items()},
            "batch_sizes": sorted({bucket.batch_size for bucket in self.buckets}),
            "deadline_s": self.deadline_s,
            "embedder": None
            if self.embedder is None
            else {"input": self.embedder.input, "output": self.embedder.output, "size": self.embedder.size},
        }

    def apply(self, params: Any, inputs: Mapping[str, Any]) -> Any:
        """What the module returns for these inputs; a pure function, to be traced."""
        return self._adapter.apply(params, inputs)

    def trace(self, bucket: Bucket) -> core.ClosedJaxpr:
        """The program at a bucket: takes the leaves of the params and the inputs in order, returns the output leaves.

        That of the smallest bucket is kept from when the model was made.
        """
        if bucket == self.buckets[0] and self._smallest is not None:
            return self._smallest
        return _trace(self._adapter, abstract_inputs(self.inputs, bucket.sizes))[0]

    def load_params(self) -> Any:
        """The params on jax's default device, in the structure that `apply` takes."""
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        leaves = self.param_source.read([(path, sharding) for path in self.param_paths])
        return jax.tree.structure(self.abstract_params).unflatten(leaves)

    @property
    def bucket_axes(self) -> tuple[tuple[int, ...], ...]:
        """The sizes of each variable dimension that are compiled, the batch's first; `buckets` are their product."""
        return tuple(self._grid.sizes_of(dim) for dim in self._grid.dims)

    def bucket_index(self, sizes: Mapping[str, int]) -> int:
        """Index of the smallest bucket that holds these sizes of the module's variable dimensions.

        Raises:
            InvalidInput: a size lies beyond the largest bucket.
        """
        return self._grid.index(sizes)

    def validate(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, int]]:
        """What a client sent as arrays (strings as lists), and the sizes of its variable dimensions.

        Lists are converted where their values fit; an array must have the dtype that the model accepts.

        Raises:
            InvalidInput: an input is missing, unknown, or of another dtype, rank or size; the message names it.
        """
        return self.accepts.check(inputs)

    def prepare(self, inputs: Mapping[str, Any]) -> tuple[Arrays, dict[str, int]]:
        """What the module takes, made of what a client sent: checked, preprocessed, and checked again.

        Raises:
            InvalidInput: the client's inputs do not fit.
            ModelFailed: the preprocess raised, or what it returned does not fit the module.
        """
        tensors, sizes = self.accepts.check(inputs)
        if self.preprocess is None:
            return cast(Arrays, tensors), sizes  # no strings: a signature of a module has none
        try:
            made = self.preprocess(tensors)
        except InferenceError:
            raise
        except Exception as error:
            raise ModelFailed(
                f"the preprocess of {self.name!r} raised {type(error).__name__}: {brief(error)}"
            ) from error
        try:
            arrays, sizes = self.inputs.check(made)
        except InvalidInput as error:
            raise ModelFailed(
                f"the preprocess of {self.name!r} returned what its module does not take: {error}"
            ) from error
        return cast(Arrays, arrays), sizes

    def finish(self, outputs: Arrays, sizes: Mapping[str, int]) -> Arrays:
        """What a client receives, made of the padded outputs of a request of these sizes.

        Raises:
            ModelFailed: the postprocess raised.
        """
        outputs = self.unpad(outputs, sizes)
        if self.postprocess is None:
            return outputs
        try:
            finished = {name: np.asarray(value) for name, value in self.postprocess(outputs).items()}
        except InferenceError:
            raise
        except Exception as error:
            raise ModelFailed(
                f"the postprocess of {self.name!r} raised {type(error).__name__}: {brief(error)}"
            ) from error
        if finished.keys() != self.returns.keys():
            raise ModelFailed(
                f"the postprocess of {self.name!r} returned {sorted(finished)}, but by its returns it gives "
                f"{sorted(self.returns)}"
            )
        return finished

    def padded_inputs(self, bucket: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of each input at a bucket."""
        return {name: (shape, numpy_dtype(self.inputs[name].dtype)) for name, shape in self._padded_shapes[bucket]}

    def pad(self, inputs: Mapping[str, np.ndarray[Any, Any]], bucket: int) -> Arrays:
        """The inputs at the shapes of a bucket, filled up with zeros; an input that fits already is not copied."""
        padded: Arrays = {}
        for name, shape in self._padded_shapes[bucket]:
            value = inputs[name]
            if value.shape != shape:
                full = np.zeros(shape, value.dtype)
                full[tuple(map(slice, value.shape))] = value
                value = full
            padded[name] = value
        return padded

    def stack(self, requests: Sequence[Mapping[str, np.ndarray[Any, Any]]], bucket: int) -> Arrays:
        """The inputs of several requests at the shapes of a bucket, their rows one after another, filled with zeros."""
        if len(requests) == 1:
            return self.pad(requests[0], bucket)
        stacked: Arrays = {}
        for name, shape in self._padded_shapes[bucket]:
            full = np.zeros(shape, requests[0][name].dtype)
            row = 0
            for inputs in requests:
                value = inputs[name]
                rows = value.shape[0]
                full[(slice(row, row + rows), *map(slice, value.shape[1:]))] = value
                row += rows
            stacked[name] = full
        return stacked

    def unpad(
        self, outputs: Mapping[str, np.ndarray[Any, Any]], sizes: Mapping[str, int], *, first_row: int = 0
    ) -> Arrays:
        """The outputs cut back to the sizes of a request whose rows begin at `first_row`; views, not copies."""
        cut: Arrays = {}
        for name, spec in self.outputs.items():
            value = outputs[name]
            extents = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape)
            if value.shape != extents:
                begins = [first_row if dim == BATCH else 0 for dim in spec.shape]
                value = value[
                    tuple(slice(begin, begin + extent) for begin, extent in zip(begins, extents, strict=True))
                ]
            cut[name] = value
        return cut

    def call_on_host(self, inputs: Mapping[str, Any]) -> Arrays:
        """The named outputs of an `on_host` model, computed here and now.

        Raises:
            ModelFailed: the function raised, or returned other outputs than when the model was made.
        """
        try:
            returned = self._adapter.apply(None, inputs)
            if type(returned) is np.ndarray and self._outputs.bare:  # the usual case, in a third of the time
                return {"output": returned}
            return {name: np.asarray(value) for name, value in self._outputs.named(returned).items()}
        except Exception as error:
            raise ModelFailed(f"{self.name!r} raised {type(error).__name__}: {brief(error)}") from error

    def restore(self, outputs: Mapping[str, Any]) -> Any:
        """Named outputs in the structure that the module returns."""
        return self._outputs.restore(outputs)


def _plain(spec: TensorSpec) -> dict[str, Any]:
    return {"shape": list(spec.shape), "dtype": spec.dtype}


def _make(
    name: str,
    inputs: Mapping[str, TensorSpec],
    adapt: Callable[[Mapping[str, Shape], Mapping[str, Any]], Adapter],
    *,
    on_host: bool = False,
    apply_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Model:
    """Checks everything and puts the model together."""
    check_name(name)
    try:
        return _assemble(name, inputs, adapt, dict(apply_kwargs or {}), on_host=on_host, **options)
    except ModelError as error:
        raise ModelError(f"model {name!r}: {error}") from error.__cause__


def _assemble(
    name: str,
    inputs: Mapping[str, TensorSpec],
    adapt: Callable[[Mapping[str, Shape], Mapping[str, Any]], Adapter],
    apply_kwargs: Mapping[str, Any],
    *,
    on_host: bool,
    batch_sizes: Sequence[int] = (1,),
    buckets: Mapping[str, Sequence[int]] | None = None,
    deadline_s: float | None = None,
    max_wait_s: float = 0.0,
    preprocess: Preprocess | None = None,
    accepts: Mapping[str, TensorSpec] | None = None,
    postprocess: Postprocess | None = None,
    returns: Mapping[str, TensorSpec] | None = None,
    cuts: Sequence[str] = (),
    example: Mapping[str, Any] | None = None,
    embedder: bool = False,
    count_tokens: Callable[[list[str]], int] | None = None,
) -> Model:
    signature = Signature(inputs, what="inputs", strings=False)
    if not on_host:
        check_device_dtypes(signature)
    grid = BucketGrid(signature, batch_sizes, buckets or {})
    client = client_signature(signature, accepts, preprocess)
    check_deadline(deadline_s)
    check_max_wait(max_wait_s, deadline_s, most_rows=grid.buckets[-1].batch_size, on_host=on_host)
    adapter = adapt(abstract_inputs(signature, grid.buckets[0].sizes), apply_kwargs)

    def evaluate(sizes: Mapping[str, int]) -> Any:
        shapes = abstract_inputs(signature, sizes)
        if on_host:
            zeros = {name: np.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
            return adapter.apply(None, zeros)
        program, returned = _trace(adapter, shapes)
        if sizes == grid.buckets[0].sizes:
            smallest.append(program)
        return returned

    smallest: list[core.ClosedJaxpr] = []
    outputs = find_outputs(evaluate, grid)
    cuts = check_cut_names(cuts, on_host=on_host)
    if cuts:
        flat = flatten_program(smallest[0], params=len(jax.tree.leaves(adapter.params)))
        check_cuts(flat.eqns, flat.paths, cuts)
    received = client_outputs(outputs.specs, returns, postprocess)
    return Model(
        name=name,
        inputs=signature,
        outputs=outputs.specs,
        accepts=client,
        returns=received,
        buckets=grid.buckets,
        deadline_s=deadline_s,
        max_wait_s=max_wait_s,
        preprocess=preprocess,
        postprocess=postprocess,
        cuts=cuts,
        on_host=on_host,
        example=example_of(client, example),
        embedder=check_embedder(client, received, embedder=embedder, count_tokens=count_tokens),
        _adapter=adapter,
        _grid=grid,
        _outputs=outputs,
        _padded_shapes=tuple(
            tuple((name, spec.resolve(bucket.sizes)) for name, spec in signature.items()) for bucket in grid.buckets
        ),
        _smallest=next(iter(smallest), None),
    )


def _trace(adapter: Adapter, inputs: Mapping[str, Shape]) -> tuple[core.ClosedJaxpr, Any]:
    """The program on the leaves of the params and on inputs of these shapes, and what it returns, as shapes."""
    names = tuple(inputs)
    leaves, structure = jax.tree.flatten(adapter.params)

    def flat(leaves: Sequence[Any], values: Sequence[Any]) -> Any:
        return adapter.apply(structure.unflatten(leaves), dict(zip(names, values, strict=True)))

    return jax.make_jaxpr(flat, return_shape=True)(leaves, list(inputs.values()))
