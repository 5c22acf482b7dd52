"""Runs a fuzzer at length.

    python -m tests.fuzzing FUZZER [--inputs 100000] [--seed 0] [--only INDEX ...] [-o F]

FUZZER is codecs, openapi, http, grpc or native. Every input is made of the seed and its number alone;
`--only` sends one again.
Exit 0: nothing was found; 1: something was.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from tests.fuzzing import openapi_fuzzer
from tests.fuzzing.codec_fuzzer import CodecFuzzer
from tests.fuzzing.grpc_fuzzer import GrpcFuzzer
from tests.fuzzing.http_fuzzer import HttpFuzzer, shortest
from tests.fuzzing.native_fuzzer import NativeFuzzer
from tests.fuzzing.reports import Report
from tests.fuzzing.subject import Subject


def run(fuzzer: str, indices: Sequence[int], seed: int) -> Report:
    """Runs a fuzzer of this name; of HTTP, the inputs that show something are shortened."""
    if fuzzer == "codecs":
        return CodecFuzzer(seed).run(indices)
    with Subject.running() as subject:
        if fuzzer == "openapi":
            return openapi_fuzzer.run(subject, len(indices), seed)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_over_sockets(subject, fuzzer, indices, seed))


async def _over_sockets(subject: Subject, name: str, indices: Sequence[int], seed: int) -> Report:
    fuzzer = _OVER_SOCKETS[name](subject, seed)
    report = await fuzzer.run(indices)
    if isinstance(fuzzer, HttpFuzzer):
        for what, finding in report.findings.items():
            if finding.index >= 0 and not what.startswith("a request"):  # such must stay right
                finding.input = await shortest(subject.ports["http"], fuzzer.input(finding.index), what)
    return report


_OVER_SOCKETS = {"http": HttpFuzzer, "grpc": GrpcFuzzer, "native": NativeFuzzer}
FUZZERS = ("codecs", "openapi", *_OVER_SOCKETS)


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fuzzer", choices=FUZZERS)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", default=[], help="the numbers of the inputs to send")
    parser.add_argument("-o", "--output", type=Path, help="where to write what was found, as JSON")
    arguments = parser.parse_args()
    report = run(arguments.fuzzer, arguments.only or range(arguments.inputs), arguments.seed)
    print(report.text())  # noqa: T201
    if arguments.output is not None:
        arguments.output.write_text(report.dump() + "\n")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
