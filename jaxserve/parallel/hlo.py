"""What a compiled program sends between devices: read from the text of its HLO, `compiled.as_text()`.

The plan of the intra-op pass says which collectives there should be; XLA's partitioner decides which there are. The
text names them by opcode, one instruction on a line:

    %name = f32[8,32]{1,0} all-reduce(%operand), channel_id=1, replica_groups={{0,1},{2,3}}, metadata={op_name="..."}

What varies between backends and versions, and is read alike here:

    combined       several arrays go as one: the shape is a tuple
    asynchronous   a pair of `all-gather-start` and `all-gather-done`; it counts once, at its start, whose shape is a
                   tuple of operands, results and the backend's own, or, for all-reduce, that of the results alone.
                   An `async-start` calls a computation with the collective in it: it counts there
    groups         lists {{0,1},{2,3}}; iota [2,4]<=[8]T(1,0), 2 groups of 4; the axes of a mesh
                   mesh['x'=2,'y'=4] {'y'}, where 'y':(2)2 is a part of size 2 of an axis; {} for one group of all
    fused          TPUs reduce and scatter in a fusion that calls %all-reduce-scatter, with an all-reduce in it
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from typing import Literal

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "collective_permute", "collective_broadcast"]

_KINDS: dict[str, Kind] = {
    "all-reduce": "all_reduce",
    "all-gather": "all_gather",
    "reduce-scatter": "reduce_scatter",
    "all-to-all": "all_to_all",
    "ragged-all-to-all": "all_to_all",
    "collective-permute": "collective_permute",
    "collective-broadcast": "collective_broadcast",
}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (?=\S)")
_OPCODE = re.compile(r" ?([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|called_computations|branch_computations|true_computation|false_computation)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_OP_NAME = re.compile(r'\bop_name="((?:[^"\\]|\\.)*)"')
_LISTS = re.compile(r"\b(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}")
_IOTA = re.compile(r"\breplica_groups=\[([\d,]+)\]<=")
_MESH = re.compile(r"\breplica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))?(?: ?\{('[^}]*)\})?")
_MESH_AXIS = re.compile(r"('[^']*')(?:=(\d+)|:\(\d+\)(\d+))?")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One exchange between devices.

    Attributes:
        kind: its name in `jax.lax`, or nearly.
        nbytes: on one device, all arrays of a combined one together: of the result of an all-gather, of the operand of
            a reduce-scatter or an all-to-all, of the buffer of the others, whose operand is as large as their result.
        group_size: devices that exchange with each other; of groups of several sizes the largest, and for a permute
            the devices that its longest chain of sources and targets connects.
        name: of the operation in the traced program, with its modules; "" where XLA tells none.
        in_loop: whether it runs in a `while`, maybe many times; it counts once.
    """

    kind: Kind
    nbytes: int
    group_size: int
    name: str
    in_loop: bool


def collectives(text: str) -> tuple[Collective, ...]:
    """The collectives of a compiled program, in the order of its text.

    Args:
        text: the HLO of one module, after optimisation, as `compiled.as_text()` returns it.
    """
    devices = math.prod(int(count) for count in re.findall(r", (?:replica_count|num_partitions)=(\d+)", _header(text)))
    instructions = list(_instructions(text))
    looping = _looping(instructions)
    found: list[Collective] = []
    for each in instructions:
        opcode = each.opcode.removesuffix("-start")
        if opcode not in _KINDS or (each.opcode != opcode and "calls=" in each.attributes):
            continue
        kind = _KINDS[opcode]
        shape = each.shape
        if each.opcode != opcode and kind != "all_reduce" and shape.startswith("("):
            shape = _elements(shape)[1]
        group_size = _group_size(each.attributes, devices)
        nbytes = sum(itertools.starmap(_nbytes, _ARRAY.findall(shape)))
        if kind == "reduce_scatter":
            nbytes *= group_size
        elif kind == "all_reduce" and each.computation.startswith("all-reduce-scatter"):
            kind = "reduce_scatter"
        name = _OP_NAME.search(each.attributes)
        found.append(
            Collective(
                kind=kind,
                nbytes=nbytes,
                group_size=group_size,
                name=name[1] if name else "",
                in_loop=each.computation in looping,
            )
        )
    return tuple(found)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Instruction:
    """One line, and the computation that it stands in; `attributes` are all that comes behind the opcode."""

    computation: str
    shape: str
    opcode: str
    attributes: str


def _header(text: str) -> str:
    return text[: text.find("\n")] if "\n" in text else text


def _instructions(text: str) -> Iterator[_Instruction]:
    computation = ""
    for line in text.splitlines():
        instruction = _INSTRUCTION.match(line)
        if instruction is None:
            begins = _COMPUTATION.match(line.strip())
            computation = begins[1] if begins else computation
            continue
        start = instruction.end()
        end = _closing(line, start) if line[start] == "(" else line.find(" ", start)
        opcode = _OPCODE.match(line, end)
        if opcode is not None:
            yield _Instruction(
                computation=computation, shape=line[start:end], opcode=opcode[1], attributes=line[opcode.end() :]
            )


def _closing(line: str, start: int) -> int:
    """Behind the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(line)):
        depth += (line[place] in "([{") - (line[place] in ")]}")
        if depth == 0:
            return place + 1
    return len(line)


def _elements(shape: str) -> list[str]:
    """The shapes in a tuple, which may be tuples."""
    elements, depth = [""], 0
    for character in shape[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            elements.append("")
        else:
            elements[-1] += character
    return elements


def _nbytes(dtype: str, sizes: str) -> int:
    """Bytes of an array: the first number in the name of a dtype is its bits, as in f8e4m3fn, s4 or c64."""
    digits = re.search(r"\d+", dtype)
    bits = int(digits[0]) if digits else 8 * (dtype == "pred")  # tokens and what is opaque have no size
    return math.ceil(bits * math.prod(int(size.removeprefix("<=")) for size in sizes.split(",") if size) / 8)


def _group_size(attributes: str, devices: int) -> int:
    if mesh := _MESH.search(attributes):
        sizes = {name: int(size) for name, size, _ in _MESH_AXIS.findall(mesh[1])}
        axes = sizes.items() if mesh[2] is None else [(name, part) for name, _, part in _MESH_AXIS.findall(mesh[2])]
        return math.prod(int(part or sizes[name]) for name, part in axes)
    if iota := _IOTA.search(attributes):
        return int(iota[1].split(",")[-1])
    if lists := _LISTS.search(attributes):
        groups = [set(group.split(",")) for group in re.findall(r"\{([\d,]+)\}", lists[1])]
        return max(map(len, _connected(groups)))
    return devices


def _connected(groups: Iterable[set[str]]) -> list[set[str]]:
    """The groups, those with a common member made one."""
    apart: list[set[str]] = []
    for group in groups:
        touching = [each for each in apart if each & group]
        apart = [each for each in apart if not each & group] + [group.union(*touching)]
    return apart


def _looping(instructions: Iterable[_Instruction]) -> set[str]:
    """The computations that a `while` runs, and those that they call."""
    calls: dict[str, list[str]] = collections.defaultdict(list)
    pending: list[str] = []
    for each in instructions:
        for role, several, one in _CALLED.findall(each.attributes):
            called = [name.strip().removeprefix("%") for name in (several or one).split(",")]
            calls[each.computation] += called
            if each.opcode == "while" and role in {"body", "condition"}:
                pending += called
    looping: set[str] = set()
    while pending:
        computation = pending.pop()
        if computation not in looping:
            looping.add(computation)
            pending += calls[computation]
    return looping
