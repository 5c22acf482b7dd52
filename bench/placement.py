"""How good are our placements on traffic that nothing has seen?

Each case is a directory with `fleet.json`, `train.npz` (what a policy may see), `heldout.npz` (the same process, with
another seed) and, where there is one, `reference.json` (attainments that were recorded of AlpaServe's own policies).
Every policy plans for `train.npz`; the simulator judges it on `heldout.npz`. The bound is that of `jaxserve plan`, for
`heldout.npz`: no placement does better there. `closed` is the part of the gap between AlpaServe's `mp-search` and that
bound which the search closes.

    python bench/placement.py [--cases tests/golden/placement] [--policies search,alpaserve,...] [--seconds 20]
                              [--max-batch 1] [-o FILE]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from record import circumstances, write

import jaxserve
from jaxserve.placement import Problem
from jaxserve.placement.bound import upper_bound
from jaxserve.plans import Fleet, Profiles
from jaxserve.workload import Workload

POLICIES = "search,alpaserve,round-robin,selective-replication,greedy-8,clockwork++"
OVERHEAD_S = 0.011
SEED = 0


def run(case: Path, policies: list[str], *, seconds: float, max_batch: int) -> dict[str, Any]:
    """Attainments of one case."""
    fleet, profiles = Fleet.load(case / "fleet.json"), Profiles.load(case.parent / "profiles.json")
    train, heldout = Workload.load(case / "train.npz"), Workload.load(case / "heldout.npz")
    options: dict[str, Any] = {"profiles": profiles, "fleet": fleet, "overhead_s": OVERHEAD_S, "max_batch": max_batch}
    found: dict[str, Any] = {}
    for policy in policies:
        plan = jaxserve.plan(workload=train, policy=policy, seconds=seconds, seed=SEED, bound=False, **options)
        judged = jaxserve.simulate(workload=heldout, placement=plan.placement, **options)
        found[policy] = {
            "train": plan.slo_attainment,
            "heldout": judged.slo_attainment,
            "search_s": plan.search_s,
            "simulations": plan.simulations,
        }
    bound = upper_bound(Problem.of(workload=heldout, **options))
    reference = case / "reference.json"
    recorded = json.loads(reference.read_text())["slo_attainment"] if reference.exists() else {}
    return {"policies": found, "recorded": recorded, "bound_heldout": bound.slo_attainment, "binding": bound.binding}


def report(name: str, result: dict[str, Any]) -> None:
    """One case's lines."""
    bound = result["bound_heldout"]
    recorded = {policy: each["heldout"] for policy, each in result["recorded"].items()}
    print(f"{name}: bound {100 * bound:.2f} ({result['binding']})")
    for policy, each in result["policies"].items():
        print(f"  {policy:24} train {100 * each['train']:6.2f}  heldout {100 * each['heldout']:6.2f}", end="")
        print(f"  {each['search_s']:5.1f} s  {each['simulations']} simulations", end="")
        if policy == "search" and recorded:
            base, best = recorded["mp-search"], max(recorded.values())
            gain = each["heldout"] - base
            closed = gain / (bound - base) if bound > base else 0.0
            print(f"  mp-search {100 * gain:+.2f}, best recorded {100 * (each['heldout'] - best):+.2f}", end="")
            print(f", closed {100 * closed:.0f} %", end="")
        print(flush=True)


def main() -> None:
    """Plans, judges and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=Path("tests/golden/placement"))
    parser.add_argument("--policies", default=POLICIES)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--max-batch", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for case in sorted(each for each in arguments.cases.iterdir() if (each / "fleet.json").exists()):
        results[case.name] = run(
            case, arguments.policies.split(","), seconds=arguments.seconds, max_batch=arguments.max_batch
        )
        report(case.name, results[case.name])
    gains = [
        each["policies"]["search"]["heldout"] - each["recorded"]["mp-search"]["heldout"]
        for name, each in results.items()
        if name.startswith("S3") and "search" in each["policies"] and each["recorded"]
    ]
    if gains:
        print(f"S3 cases: {100 * sum(gains) / len(gains):+.2f} points over mp-search on average")
    write(arguments.output, {"circumstances": circumstances(seed=SEED), "cases": results})


if __name__ == "__main__":
    main()
