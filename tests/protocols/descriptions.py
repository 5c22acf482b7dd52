"""Descriptions of models, as the engine gives them."""

from collections.abc import Mapping, Sequence
from typing import Any

Spec = tuple[Sequence[int | str], str]


def described(
    name: str,
    inputs: Mapping[str, Spec],
    outputs: Mapping[str, Spec],
    *,
    batch_sizes: Sequence[int] = (1, 4),
    embedder: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What an engine says about a model that takes and returns this."""
    return {
        "name": name,
        "inputs": {key: {"shape": list(shape), "dtype": dtype} for key, (shape, dtype) in inputs.items()},
        "outputs": {key: {"shape": list(shape), "dtype": dtype} for key, (shape, dtype) in outputs.items()},
        "batch_sizes": list(batch_sizes),
        "deadline_s": 0.1,
        "embedder": embedder,
    }


MLP = described("mlp", {"x": (["batch", 3], "float32")}, {"output": (["batch", 2], "float32")})
GPT = described(
    "gpt",
    {"input_ids": (["batch", "length"], "int32"), "attention_mask": (["batch", "length"], "bool")},
    {"logits": (["batch", "length", 7], "bfloat16")},
)
MINILM = described(
    "minilm",
    {"text": (["batch"], "string")},
    {"embedding": (["batch", 4], "float32")},
    batch_sizes=(1, 3),
    embedder={"input": "text", "output": "embedding", "size": 4},
)
MIXED = described(
    "mixed",
    {"x": (["batch", 2], "float16"), "mode": (["batch"], "string"), "count": (["batch"], "uint8")},
    {"y": (["batch", 2], "float64"), "label": (["batch"], "string")},
)
MODELS = (MLP, GPT, MINILM, MIXED)
