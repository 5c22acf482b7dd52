"""Every example runs by itself, as its first lines say, and prints what it promises."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxserve.cli.factory import load_models

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
LIMIT_S = 120.0  # they take a few seconds; a busy machine may take longer, a hang must not stop the tests

PRINTS = {
    "client.py": ["model nearest", "nearest to zero:", "not accepted: input 'query'", "burst:"],
    "embed_in_script.py": ["scores (3, 10)", "served 201 requests", "refused at once:"],
    "parallelize.py": ["stage 0:", "stage 1:", "all_reduce", "equal: (5, 10)"],
    "plan_policy.py": ["most_requested_first: ", "% on 8 groups", "search: "],
    "serve_function.py": ["unit rows: length [1.0, 1.0]", "nearest points:"],
    "serve_linen.py": ["with probability"],
    "serve_nnx.py": ["9 tokens: scores (1, 9, 5)", "200 tokens: scores (1, 200, 5)", "too long: length is 1000"],
}


def test_every_example_is_run():
    assert sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "__init__.py") == sorted(PRINTS)


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_example(name, tmp_path):
    # One device, as on a laptop: every device more is one more to compile for.
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "JAXSERVE_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for expected in PRINTS[name]:
        assert expected in done.stdout
    assert not done.stderr


@pytest.mark.parametrize(
    ("named", "models"),
    [
        ("examples.parallelize:model", ["blocks"]),
        ("examples.serve_linen:model", ["images"]),
        ("examples.serve_nnx:model", ["tagger"]),
        ("examples.serve_function:models", ["nearest", "scale"]),
    ],
)
def test_examples_can_be_named_on_the_command_line(named, models):
    assert [model.name for model in load_models(named)] == models


def test_the_notebook_runs_from_top_to_bottom():
    notebook = json.loads((EXAMPLES / "what_if.ipynb").read_text("utf-8"))
    names: dict[str, object] = {"__name__": "what_if"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, cell in enumerate(notebook["cells"]):
            assert not cell.get("outputs"), "cells are kept without outputs"
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    for expected in ("no placement more than", "it takes ", "rate x   2  round-robin", "the total changes by"):
        assert expected in printed.getvalue()
