"""Is the fused attention kernel faster than what jax ships, and where?

    python bench/attention.py -o attention.json

Times the kernel, its reference and `jax.nn.dot_product_attention` by XLA and by cuDNN on the first device, each system
in a fresh process, on rows of different lengths (the mask). What cannot run here (the kernel and cuDNN on a CPU, cuDNN
in float32) is reported as such. The `regimes` in the file are what goes into `MEASURED_FASTER` of
`jaxserve_kernels/attention.py`: consecutive lengths at which the kernel was right and the fastest at every batch size.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxserve_kernels.attention import Regime, attention_reference, fused_attention
from record import circumstances, write

SYSTEMS = ("kernel", "reference", "xla", "cudnn")
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 5e-3}
WARM_UP_S = 0.05
SAMPLES = 20
SAMPLE_S = 0.005


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call to time."""

    dtype: str
    head_dim: int
    causal: bool
    length: int
    batch: int
    heads: int


def systems(case: Case, rows: np.ndarray) -> dict[str, Callable[..., jax.Array]]:
    """Each system as a function of (query, key, value, mask); `rows` are the lengths behind the mask."""

    def xla(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        visible = mask[:, None, None, :]
        return jax.nn.dot_product_attention(
            query, key, value, mask=visible, is_causal=case.causal, implementation="xla"
        )

    def cudnn(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        del mask  # lengths are what cuDNN is fastest with
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            is_causal=case.causal,
            query_seq_lengths=jnp.full(rows.shape, case.length, jnp.int32),
            key_value_seq_lengths=jnp.asarray(rows, jnp.int32),
            implementation="cudnn",
        )

    return {
        "kernel": functools.partial(fused_attention, causal=case.causal),
        "reference": functools.partial(attention_reference, causal=case.causal),
        "xla": xla,
        "cudnn": cudnn,
    }


def measure(system: str, case: Case, seed: int) -> dict[str, Any]:
    """Median and p99 seconds of one call, and its largest difference from the reference in float32."""
    rng = np.random.default_rng(seed)
    shape = (case.batch, case.length, case.heads, case.head_dim)
    query, key, value = (jnp.asarray(rng.standard_normal(shape), case.dtype) for _ in range(3))
    rows = rng.integers(case.length // 2, case.length, case.batch, endpoint=True)
    mask = jnp.asarray(np.arange(case.length) < rows[:, None])
    call = jax.jit(systems(case, rows)[system])
    out = call(query, key, value, mask).astype(jnp.float32)
    query32, key32, value32 = (array.astype(jnp.float32) for array in (query, key, value))
    with jax.default_matmul_precision("highest"):
        exact = attention_reference(query32, key32, value32, mask, causal=case.causal)
    seconds = sorted(samples(lambda: call(query, key, value, mask)))
    return {
        "median_s": statistics.median(seconds),
        "p99_s": seconds[-1 - len(seconds) // 100],
        "error": float(jnp.max(jnp.abs(out - exact))),
    }


def samples(call: Callable[[], jax.Array]) -> Iterator[float]:
    """Seconds per call, of `SAMPLES` runs of as many calls as take `SAMPLE_S` together."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < WARM_UP_S:
        call().block_until_ready()
        count += 1
    calls = max(1, round(count * SAMPLE_S / WARM_UP_S))
    for _ in range(SAMPLES):
        start = time.perf_counter()
        for _ in range(calls - 1):
            call()
        call().block_until_ready()
        yield (time.perf_counter() - start) / calls


def run_system(system: str, cases: Sequence[Case], seed: int) -> None:
    """Prints one JSON line for each case: what a child process does."""
    for case in cases:
        try:
            result = measure(system, case, seed)
        except Exception as error:  # whatever the backend raises is this system's result here
            result = {"unavailable": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
        print(json.dumps(result), flush=True)


def in_fresh_process(system: str, cases: Sequence[Case], seed: int) -> list[dict[str, Any]]:
    """The results of one system, from a process of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([dataclasses.asdict(case) for case in cases], file)
        file.flush()
        command = [sys.executable, __file__, "--child", system, file.name, "--seed", str(seed)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    lost = {"unavailable": f"the process ended with {done.returncode}"}
    return results + [lost] * (len(cases) - len(results))


def kernel_won(results: dict[str, dict[str, Any]], case: Case) -> bool:
    """Whether the kernel was right, and faster than all others that ran."""
    kernel = results["kernel"]
    others = [result["median_s"] for name, result in results.items() if name != "kernel" and "median_s" in result]
    if "median_s" not in kernel or not others:
        return False
    return kernel["error"] < TOLERANCE[case.dtype] and kernel["median_s"] < min(others)


def regimes(rows: Sequence[tuple[Case, dict[str, dict[str, Any]]]], device_kind: str) -> list[Regime]:
    """The longest runs of measured lengths at which the kernel won at every batch size."""
    found = []
    kinds = sorted({(case.dtype, case.head_dim, case.causal) for case, _ in rows})
    for kind in kinds:
        of_kind = [(case, results) for case, results in rows if (case.dtype, case.head_dim, case.causal) == kind]
        lengths = sorted({case.length for case, _ in of_kind})
        won = {
            length: all(kernel_won(results, case) for case, results in of_kind if case.length == length)
            for length in lengths
        }
        for is_won, run in itertools.groupby(lengths, key=won.__getitem__):
            members = list(run)
            if is_won:
                dtype, head_dim, causal = kind
                found.append(
                    Regime(
                        device_kind=device_kind,
                        dtype=dtype,
                        head_dim=head_dim,
                        causal=causal,
                        min_length=members[0],
                        max_length=members[-1],
                    )
                )
    return found


def print_table(rows: Sequence[tuple[Case, dict[str, dict[str, Any]]]]) -> None:
    """Microseconds of each system in each case."""
    print(f"{'case':<48}" + "".join(f"{system:>12}" for system in SYSTEMS) + "   median, microseconds")
    for case, results in rows:
        name = f"{case.dtype} head_dim {case.head_dim} length {case.length} batch {case.batch}"
        cells = (f"{results[s]['median_s'] * 1e6:.1f}" if "median_s" in results[s] else "-" for s in SYSTEMS)
        print(f"{name + (' causal' if case.causal else ''):<48}" + "".join(f"{cell:>12}" for cell in cells))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=list(TOLERANCE))
    parser.add_argument("--head-dims", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 128, 512, 2048])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="where the results go, as JSON")
    parser.add_argument("--child", nargs=2, metavar=("SYSTEM", "CASES"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measures all systems, prints a table, writes JSON."""
    arguments = parse_arguments()
    if arguments.child:
        system, file = arguments.child
        cases = [Case(**case) for case in json.loads(Path(file).read_text(encoding="utf-8"))]
        return run_system(system, cases, arguments.seed)
    axes = (arguments.dtypes, arguments.head_dims, (False, True), sorted(set(arguments.lengths)), arguments.batches)
    cases = [
        Case(dtype=dtype, head_dim=head_dim, causal=causal, length=length, batch=batch, heads=arguments.heads)
        for dtype, head_dim, causal, length, batch in itertools.product(*axes)
    ]
    by_system = {system: in_fresh_process(system, cases, arguments.seed) for system in SYSTEMS}
    rows = [(case, {system: by_system[system][index] for system in SYSTEMS}) for index, case in enumerate(cases)]
    print_table(rows)
    device_kind = jax.devices()[0].device_kind
    won = regimes(rows, device_kind)
    print("\n".join(map(str, won)) or "the kernel won nowhere")
    report = {
        "benchmark": "attention",
        **circumstances(seed=arguments.seed),
        "device_kind": device_kind,
        "rows": [{**dataclasses.asdict(case), "results": results} for case, results in rows],
        "regimes": [dataclasses.asdict(regime) for regime in won],
    }
    write(arguments.output, report)


if __name__ == "__main__":
    main()
