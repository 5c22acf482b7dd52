"""What a fuzzer has found, and how it is told."""

import base64
import dataclasses
import json
import time
from collections import Counter
from typing import Any

_SHOWN_BYTES = 2000


@dataclasses.dataclass(slots=True)
class Finding:
    """Something that must not be.

    Attributes:
        what: in words that are the same each time that it happens.
        detail: the rest.
        index: of the input that did it; `--only` runs it again.
        input: the shortest that did it so far.
        count: how often it was seen.
    """

    what: str
    detail: str
    index: int
    input: bytes
    count: int = 1


@dataclasses.dataclass(slots=True)
class Report:
    """What a fuzzer has done, and found.

    Attributes:
        fuzzer: its name.
        seed: with which every input can be made again.
        inputs: how many were tried.
        seconds: that it took.
        outcomes: how often what came of an input.
        findings: by what they are.
        slowest_s: of an input, where that is measured, and which it was.
        memory: of the server or of the process, at several times: inputs so far, resident bytes, allocated blocks.
    """

    fuzzer: str
    seed: int
    inputs: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    findings: dict[str, Finding] = dataclasses.field(default_factory=dict)
    slowest_s: tuple[float, int] = (0.0, -1)
    memory: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    _began_s: float = dataclasses.field(default_factory=time.perf_counter)

    def add(self, what: str, detail: str, *, index: int, input: bytes) -> None:
        """Notes a finding; of those that are alike the shortest input is kept."""
        known = self.findings.get(what)
        if known is None:
            self.findings[what] = Finding(what, detail, index, input)
            return
        known.count += 1
        if len(input) < len(known.input):
            known.detail, known.index, known.input = detail, index, input

    def took(self, seconds: float, index: int) -> None:
        """Notes how long an input took."""
        if seconds > self.slowest_s[0]:
            self.slowest_s = (seconds, index)

    def end(self) -> "Report":
        """Notes when it ended."""
        self.seconds = time.perf_counter() - self._began_s
        return self

    def check_memory(self, *, most_bytes: int, most_bytes_per_input: float) -> None:
        """Looks whether memory grew from the middle to the end, when everything that is remembered is remembered."""
        if len(self.memory) < 3:
            return
        middle, last = self.memory[len(self.memory) // 2], self.memory[-1]
        grown_bytes, inputs = last[1] - middle[1], last[0] - middle[0]
        if grown_bytes > most_bytes + most_bytes_per_input * inputs:
            detail = (
                f"{grown_bytes} bytes and {last[2] - middle[2]} blocks over the last {inputs} inputs: {self.memory}"
            )
            self.add("memory grows", detail, index=-1, input=b"")

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "fuzzer": self.fuzzer,
            "seed": self.seed,
            "inputs": self.inputs,
            "seconds": round(self.seconds, 1),
            "inputs_per_s": round(self.inputs / max(1e-9, self.seconds), 1),
            "slowest_s": self.slowest_s[0],
            "slowest_index": self.slowest_s[1],
            "outcomes": dict(self.outcomes.most_common()),
            "memory": [
                {"inputs": inputs, "resident_bytes": resident_bytes, "blocks": blocks}
                for inputs, resident_bytes, blocks in self.memory
            ],
            "findings": [
                dataclasses.asdict(finding) | {"input": base64.b64encode(finding.input).decode()}
                for finding in self.findings.values()
            ],
        }

    def text(self) -> str:
        """For people."""
        lines = [
            f"{self.fuzzer}: {self.inputs} inputs with seed {self.seed} in {self.seconds:.1f} s "
            f"({self.inputs / max(1e-9, self.seconds):.0f}/s), {len(self.findings)} kinds of findings"
        ]
        outcomes = ", ".join(f"{what} {count}" for what, count in self.outcomes.most_common(24))
        lines.append(f"  outcomes: {outcomes}")
        if self.slowest_s[1] >= 0:
            lines.append(f"  slowest: {1e3 * self.slowest_s[0]:.1f} ms, input {self.slowest_s[1]}")
        if self.memory:
            told = ", ".join(f"{inputs}: {size / 2**20:.1f} MiB ({blocks})" for inputs, size, blocks in self.memory)
            lines.append(f"  memory (allocated blocks) after inputs: {told}")
            middle, last = self.memory[len(self.memory) // 2], self.memory[-1]
            if last[0] > middle[0]:
                inputs = last[0] - middle[0]
                lines.append(
                    f"  growth since the middle: {(last[1] - middle[1]) / inputs:.1f} bytes and "
                    f"{(last[2] - middle[2]) / inputs:.3f} blocks per input"
                )
        for finding in self.findings.values():
            lines.append(f"FINDING ({finding.count} times): {finding.what}\n  {finding.detail}")
            if finding.input:
                more = "" if len(finding.input) <= _SHOWN_BYTES else f" ... ({len(finding.input)} bytes)"
                lines.append(f"  input {finding.index}: {finding.input[:_SHOWN_BYTES]!r}{more}")
        return "\n".join(lines)

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(self.to_json(), indent=1)
