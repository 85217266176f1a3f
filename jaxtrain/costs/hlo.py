"""Reads a compiled program's text (HLO): communication between devices, and cycles.

A program is a list of computations, one of which is the entry; an instruction may call others. The
code below follows these calls, and counts the body of a loop as often as the loop runs.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

KINDS = (
    'all-reduce',
    'all-gather',
    'reduce-scatter',
    'all-to-all',
    'collective-permute',
)
# TPU programs communicate over the network between slices by sending to the host.
BETWEEN_SLICES = 'between slices'


@dataclass(frozen=True)
class Instruction:
    """One line: `%name = type opcode(operands), rest`, with the names of the operands."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    def called(self, *attributes: str) -> list[str]:
        """The names of the computations in these attributes."""
        names = []
        for attribute in attributes:
            match = re.search(rf'\b{attribute}=(\{{[^}}]*\}}|%?[\w.-]+)', self.rest)
            names += re.findall(r'[\w.-]+', match.group(1)) if match else []
        return names


@dataclass
class Traffic:
    """What one call of a program does on each device.

    Attributes:
      count: kind of collective -> how many are run.
      bytes: kind of collective -> bytes of the whole array that is gathered, reduced or sent, which
        is the larger of input and output.
      cycles: the TPU compiler's estimate for everything else; 0 if it gives none.
      unknown_loops: loops whose length the text does not contain; these count once.
    """

    count: Counter = field(default_factory=Counter)
    bytes: Counter = field(default_factory=Counter)
    cycles: int = 0
    unknown_loops: int = 0

    def add(self, more: 'Traffic', times: int = 1) -> None:
        for kind in more.count:
            self.count[kind] += more.count[kind] * times
            self.bytes[kind] += more.bytes[kind] * times
        self.cycles += more.cycles * times
        self.unknown_loops += more.unknown_loops


class Program:
    """A parsed program: computation name -> {instruction name: instruction}."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ''
        for name, is_entry, lines in _computations(text):
            parsed = (_instruction(line) for line in lines)
            self.computations[name] = {i.name: i for i in parsed if i}
            self.entry = name if is_entry else self.entry

    def traffic(self) -> Traffic:
        """The traffic of one call of the program."""
        return self._traffic(self.entry)

    def _traffic(self, name: str) -> Traffic:
        total = Traffic()
        for op in self.computations[name].values():
            total.cycles += _cycles(op)
            if op.opcode == 'while':
                times = self._trips(op, name)
                total.unknown_loops += times is None
                for called in op.called('condition', 'body'):
                    total.add(self._traffic(called), times or 1)
            elif op.opcode == 'conditional':
                names = op.called('branch_computations', 'true_computation', 'false_computation')
                branches = [self._traffic(called) for called in names]
                total.add(
                    max(
                        branches, key=lambda t: (t.cycles, sum(t.bytes.values())), default=Traffic()
                    )
                )
            elif op.opcode == 'call':
                for called in op.called('to_apply', 'calls'):
                    total.add(self._traffic(called))
            else:
                for kind, size in self._messages(name, op):
                    total.count[kind] += 1
                    total.bytes[kind] += size
        return total

    def _messages(self, name: str, op: Instruction) -> Iterator[tuple[str, int]]:
        """(kind, bytes) of what an instruction sends, itself or inside a fusion."""
        kind = op.opcode.removesuffix('-start')
        if kind in KINDS:
            scatters = name.startswith('all-reduce-scatter') and kind == 'all-reduce'
            kind = 'reduce-scatter' if scatters else kind
            yield kind, self._nbytes(name, op, kind)
        elif op.opcode == 'send' and 'megascale' in op.rest:
            yield BETWEEN_SLICES, self._nbytes(name, op, BETWEEN_SLICES)
        elif op.opcode in ('fusion', 'async-start'):
            for called in op.called('calls'):
                inside = self.computations.get(called, {}).values()
                # On TPU a collective may be spread over several fusions, to run at the same time as
                # their products; it appears in each of them, and the first one starts it.
                starts = any('AsyncCollectiveStart' in inner.rest for inner in inside)
                for inner in inside:
                    if starts or 'async_collective_fusion_config' not in inner.rest:
                        yield from self._messages(called, inner)

    def _nbytes(self, name: str, op: Instruction, kind: str) -> int:
        computation = self.computations[name]
        operands = [computation[o] for o in op.operands if o in computation]
        operand_bytes = sum(_nbytes(o.type) for o in operands if o.opcode != 'after-all')
        if kind != 'all-gather':
            return operand_bytes
        # The start of an all-gather returns its operands before its results.
        return _nbytes(op.type) - (operand_bytes if op.opcode.endswith('-start') else 0)

    def _trips(self, loop: Instruction, name: str) -> int | None:
        """How often a loop runs, as given in the text, else from its condition `i < n`."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
        if known:
            return int(known.group(1))
        (condition,) = loop.called('condition')
        inside = self.computations[condition]
        test = next((i for i in inside.values() if i.is_root), None)
        if test is None or test.opcode != 'compare' or 'direction=LT' not in test.rest:
            return None
        counter, limit = (inside.get(operand) for operand in test.operands)
        if counter is None or limit is None or counter.opcode != 'get-tuple-element':
            return None
        place = int(re.findall(r'index=(\d+)', counter.rest)[0])
        before = self.computations[name]
        start = before.get(loop.operands[0])
        if start is None or start.opcode != 'tuple':
            return None
        first, last = _constant(before, start.operands[place]), _constant(inside, limit.name)
        return None if first is None or last is None else max(0, last - first)


def _computations(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    """(name, whether it is the entry, lines) of each computation of a text."""
    lines: list[str] = []
    name, is_entry = '', False
    for line in text.splitlines():
        head = re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line)
        if head:
            name, is_entry, lines = head.group(2), bool(head.group(1)), []
        elif line == '}' and name:
            yield name, is_entry, lines
            name = ''
        elif name:
            lines.append(line)


def _instruction(line: str) -> Instruction | None:
    match = re.match(r'\s+(ROOT )?%?([\w.-]+) = ', line)
    if not match:
        return None
    end = _type_end(line, match.end())
    call = re.compile(r' ([\w-]+)\(').match(line, end)
    if not call:
        return None
    close = _closing(line, call.end() - 1)
    operands = re.findall(r'%([\w.-]+)', line[call.end() : close])
    return Instruction(
        name=match.group(2),
        type=line[match.end() : end],
        opcode=call.group(1),
        # A constant has its value in the place of operands.
        operands=tuple(operands) if operands else (line[call.end() : close],),
        rest=line[close + 1 :],
        is_root=bool(match.group(1)),
    )


def _type_end(line: str, start: int) -> int:
    """The end of a type; a tuple's type has spaces inside its brackets, an array's does not."""
    return _closing(line, start) + 1 if line[start] == '(' else line.index(' ', start)


def _closing(line: str, start: int) -> int:
    """Position of the bracket that closes the one at `start`."""
    depth = 0
    for position in range(start, len(line)):
        depth += {'(': 1, ')': -1}.get(line[position], 0)
        if not depth:
            return position
    return len(line)


def _nbytes(type_: str) -> int:
    """Bytes of a type such as `f32[8,128]{1,0}`, or of all arrays of a tuple.

    Scalars of async operations (their context) count as well; they are a few bytes.
    """
    total = 0
    for dtype, shape in re.findall(r'([a-z]\w*)\[([\d,]*)\]', type_):
        bits = 8 if dtype == 'pred' else int((re.search(r'\d+', dtype) or [0])[0])
        count = 1
        for size in filter(None, shape.split(',')):
            count *= int(size)
        total += -(-count * bits // 8)
    return total


def _cycles(op: Instruction) -> int:
    match = re.search(r'"estimated_cycles":"(\d+)"', op.rest)
    return int(match.group(1)) if match else 0


def _constant(known: dict[str, Instruction], name: str) -> int | None:
    """The value of an integer constant, also if `name` is a copy of it."""
    while (op := known.get(name)) and op.opcode in ('copy', 'bitcast'):
        name = op.operands[0]
    if op is None or op.opcode != 'constant' or not op.operands[0].isdigit():
        return None
    return int(op.operands[0])
