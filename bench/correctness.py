"""Do sharded and cut models return what they return whole? Every model, every config, one row and four.

    PYTHONPATH=. python bench/correctness.py [--only bert unet] [--batch-sizes 1 4] [-o FILE]

The models are those of `tests/parallel/test_correctness.py`: the zoo in float32 and in bfloat16, and the strangers in
float32. A number is the largest difference, as a part of the largest number of the output. Of bfloat16 it is the root
mean square of the differences from the float32 output, and the column "whole" is that of the bfloat16 model on one
device; the others may be twice as large. Where a model cannot be loaded, its place says "error", and the messages
follow the table; a PlacementError (fewer operations than stages) is no failure. It runs on the devices that jax has, of
CPU devices on eight fake ones.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from record import circumstances, write

from jaxserve.errors import JaxserveError
from jaxserve.model import Model
from tests.parallel.strangers import STRANGERS
from tests.parallel.test_correctness import (
    BFLOAT16_FACTOR,
    EVERY_CONFIG,
    TOLERANCE,
    ZOO,
    difference,
    parallel,
    rms_difference,
    whole,
)

DEVICES = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One line of the table.

    Attributes:
        name: of the model, with its dtype where that is not float32.
        factory: makes it.
        options: for the factory.
        exact: for the factory, to make what it is compared with.
    """

    name: str
    factory: Callable[..., Model]
    options: dict[str, Any]
    exact: dict[str, Any]


def subjects(only: Sequence[str]) -> list[Subject]:
    """The models of these names; all, if none is given."""
    float32, bfloat16 = {"dtype": "float32"}, {"dtype": "bfloat16"}
    found = [Subject(name=name, factory=factory, options=float32, exact=float32) for name, factory in ZOO.items()]
    found += [
        Subject(name=f"{name} bfloat16", factory=factory, options=bfloat16, exact=float32)
        for name, factory in ZOO.items()
    ]
    found += [Subject(name=name, factory=factory, options={}, exact={}) for name, factory in STRANGERS.items()]
    return [each for each in found if not only or each.name.removesuffix(" bfloat16") in only]


def compare(subject: Subject, batch_size: int) -> dict[str, Any]:
    """One row: by how much each config differs, or the error that it raised."""
    exact = whole(subject.factory, batch_size, **subject.exact)
    measure, allowed, alone = difference, TOLERANCE, 0.0
    if subject.options != subject.exact:
        measure = rms_difference
        alone = measure(whole(subject.factory, batch_size, **subject.options), exact)
        allowed = BFLOAT16_FACTOR * alone
    row: dict[str, Any] = {"model": subject.name, "batch_size": batch_size, "whole": alone, "allowed": allowed}
    row["differences"], row["errors"], row["load_and_run_s"] = {}, {}, {}
    for config in EVERY_CONFIG:
        if config[0] * config[1] > len(jax.devices()):
            continue
        began_s = time.perf_counter()
        try:
            found = parallel(subject.factory, batch_size, config, **subject.options)
            row["differences"][str(config)] = measure(found, exact)
        except (JaxserveError, jax.errors.JaxRuntimeError) as error:
            row["errors"][str(config)] = f"{type(error).__name__}: {error}"
        row["load_and_run_s"][str(config)] = time.perf_counter() - began_s
    return row


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table, and what went wrong."""
    configs = [str(config) for config in EVERY_CONFIG]
    print(f"{'model':<40}{'rows':>5}{'whole':>9}" + "".join(f"{config:>9}" for config in configs))
    for row in rows:
        cells = ""
        for config in configs:
            if config in row["errors"]:
                cells += f"{'error':>9}"
            elif config not in row["differences"]:
                cells += f"{'-':>9}"
            else:
                value = row["differences"][config]
                cells += f"{value:>8.1e}{'!' if value > row['allowed'] else ' '}"
        print(f"{row['model']:<40}{row['batch_size']:>5}{row['whole']:>9.1e}{cells}")
    for row in rows:
        for config, message in row["errors"].items():
            print(f"{row['model']} of {row['batch_size']} as {config}: {message.splitlines()[0]}")
    wrong = sum(value > row["allowed"] for row in rows for value in row["differences"].values())
    errors = sum(len(row["errors"]) for row in rows)
    runs = sum(len(row["differences"]) for row in rows) + errors
    print(f"\n{runs} runs: {wrong} differ by more than they may (marked !), {errors} could not be loaded")


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=(), choices=[*ZOO, *STRANGERS], help="names of models")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=(1, 4), help="rows of a batch")
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    rows: list[dict[str, Any]] = []
    for subject in subjects(arguments.only):
        for batch_size in arguments.batch_sizes:
            print(f"{subject.name}, {batch_size}", file=sys.stderr)
            rows.append(compare(subject, batch_size))
    show(rows)
    results = {
        "benchmark": "correctness",
        **circumstances(seed=0),
        "devices": [device.device_kind for device in jax.devices()],
        "tolerance": TOLERANCE,
        "bfloat16_factor": BFLOAT16_FACTOR,
        "rows": rows,
    }
    write(arguments.output, results)
    if any(max(row["differences"].values(), default=0) > row["allowed"] or failures(row) for row in rows):
        sys.exit(1)


def failures(row: dict[str, Any]) -> list[str]:
    """The errors of a row that should not be: a model of few operations is right to refuse many stages."""
    return [message for message in row["errors"].values() if not message.startswith("PlacementError")]


if __name__ == "__main__":
    main()
