"""Where params come from, and how they reach their devices: leaf by leaf, never all at once in host memory.

A source knows the shape of every leaf before it reads one. Leaves are named by their path in the tree, such as
"layers_0/kernel".
"""

import collections
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.errors import MissingExtra, ModelError

Shape = jax.ShapeDtypeStruct
Target = tuple[str, jax.sharding.Sharding]


class ParamSource(Protocol):
    """Params that can be read leaf by leaf.

    Attributes:
        lends: whether an array that it reads may be the caller's own, not to be deleted by anyone else.
    """

    lends: bool

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Shape and dtype of each leaf by path, without reading any."""
        ...

    def read(self, targets: Sequence[Target]) -> Iterator[jax.Array]:
        """The leaves as arrays with the shardings asked for, in the order asked for; each is read when it is due."""
        ...


def read_on_host(source: ParamSource, paths: Sequence[str]) -> list[np.ndarray[Any, np.dtype[Any]]]:
    """The leaves as numpy arrays."""
    with _on_host():
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return [np.asarray(leaf) for leaf in source.read([(path, sharding) for path in paths])]


def leaf_paths(tree: Any) -> tuple[str, ...]:
    """The path of each leaf of a pytree, in the order of its leaves."""
    return tuple(path_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0])


def path_of(keys: Sequence[Any]) -> str:
    """A key path as one string: "layers/0/kernel"."""
    return "/".join(_key_name(key) for key in keys)


def _key_name(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by path."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def leaf_shape(path: str, leaf: Any) -> Shape:
    """Shape and dtype of a leaf as they will be on a device."""
    if isinstance(leaf, bool | int | float | complex):
        leaf = np.asarray(leaf)
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise ModelError(f"params leaf {path!r} is a {type(leaf).__name__}, but must be an array")
    dtype = leaf.dtype if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else device_dtype(leaf.dtype)
    return Shape(tuple(leaf.shape), dtype)


def device_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype that jax gives an array of this one: without x64, 64-bit numbers become 32-bit ones."""
    return np.dtype(jax.dtypes.canonicalize_dtype(np.dtype(dtype)))


def _shapes(leaves: Mapping[str, Any]) -> dict[str, Shape]:
    return {path: leaf_shape(path, leaf) for path, leaf in leaves.items()}


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path."""
    leaves = [(path_of(keys), leaf) for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
    by_path = dict(leaves)
    if len(by_path) < len(leaves):
        raise ModelError("params have two leaves of one path; keys that hold '/' make them alike")
    return by_path


class TreeSource:
    """Params that exist as a pytree: arrays, or anything with `shape`, `dtype` and `__array__`.

    The caller keeps the tree and must not change its arrays; one that lies on its device already is not copied.
    """

    lends = True

    def __init__(self, tree: Any) -> None:
        self._leaves = flatten(tree)
        self.shapes: Mapping[str, Shape] = _shapes(self._leaves)

    def read(self, targets: Sequence[Target]) -> Iterator[jax.Array]:
        """See `ParamSource`."""
        for path, sharding in targets:
            yield _put(path, self._leaves[path], sharding)


class CallableSource:
    """Params that a function makes; it runs once for each load, on the host.

    At first only its shapes are found, by abstract evaluation: what it computes with jax is not allocated then; what it
    makes with numpy is, and let go again.
    """

    lends = True  # the function may return arrays that somebody keeps

    def __init__(self, function: Callable[[], Any], prepare: Callable[[Any], Any]) -> None:
        self._function = function
        self._prepare = prepare
        try:
            # a function of its own, for jax caches what it has traced, constants and all, while the function lives
            self.tree = prepare(jax.eval_shape(lambda: function()))
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"the params callable raised {type(error).__name__}: {error}") from error
        self.shapes: Mapping[str, Shape] = _shapes(flatten(self.tree))

    def read(self, targets: Sequence[Target]) -> Iterator[jax.Array]:
        """See `ParamSource`."""
        with _on_host():
            leaves = flatten(self._prepare(self._function()))
        uses = collections.Counter(path for path, _ in targets)
        for path, sharding in targets:
            uses[path] -= 1
            yield _put(path, leaves[path] if uses[path] else leaves.pop(path), sharding)


class SafetensorsSource:
    """Params in a .safetensors file; its names are split at "." and "/"."""

    lends = False

    def __init__(self, file: Path) -> None:
        self._file = file
        self._names: dict[str, str] = {}
        shapes: dict[str, Shape] = {}
        with _safe_open(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                path = name.replace(".", "/")
                view = tensors.get_slice(name)
                self._names[path] = name
                shapes[path] = Shape(tuple(view.get_shape()), device_dtype(_safetensors_dtype(view.get_dtype())))
        self.shapes: Mapping[str, Shape] = shapes

    def read(self, targets: Sequence[Target]) -> Iterator[jax.Array]:
        """See `ParamSource`."""
        with _safe_open(self._file) as tensors:
            for path, sharding in targets:
                yield _put(path, tensors.get_tensor(self._names[path]), sharding)


class OrbaxSource:
    """Params in a directory that Orbax wrote; each leaf is restored straight to its sharding."""

    lends = False

    def __init__(self, directory: Path) -> None:
        try:
            import orbax.checkpoint as orbax
        except ImportError as error:
            raise MissingExtra("params are an Orbax checkpoint; pip install orbax-checkpoint") from error
        self._orbax = orbax
        self._directory = _item_directory(directory)
        with orbax.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.metadata(self._directory)
        tree = getattr(found, "item_metadata", found)
        self._tree = getattr(tree, "tree", tree)
        self.shapes: Mapping[str, Shape] = _shapes(flatten(self._tree))

    def read(self, targets: Sequence[Target]) -> Iterator[jax.Array]:
        """See `ParamSource`."""
        remaining = list(targets)
        while remaining:  # once, but for leaves that are wanted in two places
            now: dict[str, jax.sharding.Sharding] = {}
            for path, sharding in remaining:
                if path in now:
                    break
                now[path] = sharding
            remaining = remaining[len(now) :]
            restored = self._restore(now)
            for path in now:
                yield restored.pop(path)

    def _restore(self, wanted: Mapping[str, jax.sharding.Sharding]) -> dict[str, jax.Array]:
        orbax = self._orbax

        def argument(keys: Any, leaf: Any) -> Any:
            path = path_of(keys)
            if path not in wanted:
                return orbax.PLACEHOLDER
            shape = self.shapes[path]
            return Shape(shape.shape, shape.dtype, sharding=wanted[path])

        item = jax.tree_util.tree_map_with_path(argument, self._tree)
        restore = orbax.args.PyTreeRestore(item, restore_args=orbax.checkpoint_utils.construct_restore_args(item))
        with orbax.Checkpointer(orbax.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(self._directory, args=restore)
        return {path: leaf for path, leaf in flatten(tree).items() if path in wanted}


def _on_host() -> contextlib.AbstractContextManager[Any]:
    """Makes the host jax's default device, where jax was told to keep a CPU backend at all."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def _item_directory(directory: Path) -> Path:
    """The directory that holds the arrays: the one given, or the default item of a checkpoint manager's step."""
    for candidate in (directory, directory / "default"):
        if (candidate / "_METADATA").is_file():
            return candidate
    steps = sorted(each.name for each in directory.iterdir() if (each / "default").is_dir())
    hint = f"it has the steps {', '.join(steps)}: give the directory of one" if steps else "it has no _METADATA file"
    raise ModelError(f"params {str(directory)!r} is no Orbax checkpoint: {hint}")


def open_source(params: Any, prepare: Callable[[Any], Any]) -> tuple[ParamSource, Any]:
    """The source that `params` stands for, and its abstract tree (nested dicts where it comes from a file).

    Args:
        params: a pytree, a function that returns one, an Orbax directory or a .safetensors file.
        prepare: applied to a pytree before anything else, such as taking metadata boxes off.
    """
    if isinstance(params, str | os.PathLike):
        path = Path(params).expanduser().absolute()
        if path.is_dir():
            source: ParamSource = OrbaxSource(path)
        elif path.suffix == ".safetensors" and path.is_file():
            source = SafetensorsSource(path)
        else:
            why = "does not exist" if not path.exists() else "is neither a .safetensors file nor a directory"
            raise ModelError(f"params {str(params)!r} {why}; give a .safetensors file or an Orbax directory")
        return source, nest(source.shapes)
    if callable(params):
        made = CallableSource(params, prepare)
        return made, made.tree
    tree = prepare(params)
    source = TreeSource(tree)
    leaves, structure = jax.tree.flatten(tree)
    return source, structure.unflatten(source.shapes.values() if leaves else ())


def _put(path: str, leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    if isinstance(leaf, Shape):
        raise ModelError(f"params leaf {path!r} is abstract, so there is nothing to load; give arrays or a file")
    return jax.device_put(leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), sharding)


def _safe_open(file: Path) -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise MissingExtra("params are a .safetensors file; pip install 'jaxserve[demo]' or safetensors") from error
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"params {str(file)!r} is no .safetensors file: {error}") from error


def _safetensors_dtype(name: str) -> str:
    kinds = {"BOOL": "bool", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    widths = {"I": "int", "U": "uint", "F": "float"}
    return kinds.get(name) or widths.get(name[0], name[0]) + name[1:]
