"""A fuzzer of the codecs, in this process: each must return or raise what it says, in time, and keep its promises."""

import gc
import random
import sys
import time
from collections.abc import Sequence

from tests.fuzzing.codec_targets import TARGETS, Wrong
from tests.fuzzing.reports import Report
from tests.fuzzing.served import give_back_memory, memory

SLOW_S = 0.5
"""Processor time that no input may take; they are of a few kilobytes."""
_TURNS = [name for name, (_, turns) in TARGETS.items() for _ in range(turns)]


class CodecFuzzer:
    """Feeds inputs to the codecs in turn.

    Args:
        seed: with which all inputs are made.
    """

    name = "codecs"

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.report = Report(self.name, seed)

    def run(self, indices: Sequence[int]) -> Report:
        """Feeds these inputs."""
        noted = max(1, len(indices) // 10)
        for number, index in enumerate(indices):
            if number % noted == 0:
                self._note()
            self._try(index)
            self.report.inputs += 1
        self._note()
        self.report.check_memory(most_bytes=32 * 2**20, most_bytes_per_input=100)
        return self.report.end()

    def _try(self, index: int) -> None:
        target = _TURNS[index % len(_TURNS)]
        rng = random.Random(f"{self.name} {self._seed} {index}")
        began_s = time.thread_time()
        try:
            outcome = TARGETS[target][0](rng)
        except Wrong as error:
            outcome = "wrong"
            self.report.add(f"{target}: {error.what}", error.detail, index=index, input=error.input)
        took_s = time.thread_time() - began_s
        self.report.outcomes[f"{target} {outcome}"] += 1
        self.report.took(took_s, index)
        if took_s > SLOW_S:
            self.report.add(f"{target}: slow", f"{took_s:.2f} s", index=index, input=b"")

    def _note(self) -> None:
        give_back_memory()
        gc.collect()
        self.report.memory.append((self.report.inputs, memory()["resident_bytes"], sys.getallocatedblocks()))
