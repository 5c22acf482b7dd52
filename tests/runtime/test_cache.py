"""A second process compiles nothing, on one device or on several."""

import json
import subprocess
import sys

import pytest

from jaxserve import runtime
from jaxserve.errors import ConfigError

PROGRAM = """
import json, sys
import jax
from jaxserve import runtime
from jaxserve.plans import ParallelConfig
from tests.model.toys import ids_of, nnx_net

jax.jit(lambda x: x + 1)(1).block_until_ready()  # a compilation before the cache is enabled
cache = runtime.enable_compilation_cache(sys.argv[1])
model, _ = nnx_net(cuts=("layers_1",), batch_sizes=(1, 2), buckets={"length": (4,)})
config = ParallelConfig(*map(int, sys.argv[2:]))
pipeline = runtime.load(model, config, jax.devices()[: config.devices], repeats=1)
pipeline({"ids": ids_of(2, 4)})
print(json.dumps([cache.hits, cache.misses]))
"""


def run(*arguments):
    command = [sys.executable, "-W", "error", "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("intra_op", "inter_op"), [(1, 1), (2, 2)])
def test_a_second_process_compiles_nothing(tmp_path, intra_op, inter_op):
    directory = tmp_path / "cache"
    hits, misses = run(directory, intra_op, inter_op)
    assert misses >= 2 * inter_op
    again_hits, again_misses = run(directory, intra_op, inter_op)
    assert (again_hits, again_misses) == (hits + misses, 0)
    assert directory.stat().st_mode & 0o077 == 0


def test_a_directory_that_others_may_write_is_refused(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(ConfigError, match="others may write to it; give a directory of your own"):
        runtime.enable_compilation_cache(tmp_path / "cache")
