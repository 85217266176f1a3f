"""What the compiler makes of a program, nothing run: memory, messages, cycles; remembered on disk.

A program for a pod takes minutes to compile, and JAX's own cache does not hold programs for devices
that are not there. What is wanted of it are a few numbers, and those are kept under a hash of the
program.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jaxlib

from jaxtrain import storage
from jaxtrain.costs import hlo
from jaxtrain.errors import UserError

UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# Changes with the fields below, so that what an older version kept is not read.
FORMAT = 1


@dataclass(frozen=True)
class Measured:
    """What the compiler says of one call of a program, on each device.

    Attributes:
      digest: of the program's StableHLO, the devices and the versions.
      seconds: that it took to compile.
      peak_bytes: most memory in use at a time; if it does not fit, what the compiler says is
        needed.
      memory: bytes of 'arguments', 'outputs', 'temporaries' and 'aliased' (outputs that take the
        place of arguments); {} if it does not fit.
      overflow: the compiler's words if it does not fit into memory, else ''.
      flops, bytes_accessed: its count of operations and of bytes read and written; the body of a
        loop counts once.
      collectives: kind -> {'count', 'bytes'}, see `hlo.Traffic`.
      cycles: its estimate for all but messages, loops counted as they run; 0 where it has none.
      unknown_loops: loops that counted once because their length is not known.
    """

    digest: str
    seconds: float
    peak_bytes: int
    memory: Mapping[str, int]
    overflow: str
    flops: float
    bytes_accessed: float
    collectives: Mapping[str, Mapping[str, int]]
    cycles: int
    unknown_loops: int


def measure(
    lowered: jax.stages.Lowered, devices: str, absent: bool, say: Callable[[str], Any]
) -> Measured:
    """Compiles a program, or remembers what came of it.

    Args:
      lowered: the program.
      devices: what it is for, in words that tell it from any other.
      absent: whether they are not there.
      say: told before compiling.

    Raises:
      UserError: for absent devices, the compiler took its process down on this program before.
      jax.errors.JaxRuntimeError: the compiler fails for another reason than memory.
    """
    text = '\n'.join([lowered.as_text(), devices, *_versions(), str(FORMAT)])
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = folder() / f'{digest}.json'
    if path.is_file():
        return Measured(**json.loads(path.read_text()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if absent:
            stack.enter_context(_marked(path.with_suffix('.unfinished')))
            stack.enter_context(_forgotten())
        say('compiling ...')
        found = _compile(lowered, digest)
    # Whole, since another process may look for it at the same time.
    storage.write(path, json.dumps(dataclasses.asdict(found)).encode())
    return found


def folder() -> Path:
    """Where it is kept: beside the compilation cache (`mesh.use_compilation_cache`)."""
    default = Path.home() / '.cache' / 'jaxtrain' / 'xla'
    return Path(os.environ.get('JAX_COMPILATION_CACHE_DIR', default)).parent / 'plans'


@contextlib.contextmanager
def _marked(mark: Path) -> Iterator[None]:
    """Leaves a mark if the process ends meanwhile: the TPU's compiler has taken minutes to crash,
    and would do so each time.
    """
    with mark.open('a+') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process compiles the same program, or the disk knows no locks
            yield
            return
        if mark.stat().st_size:
            raise UserError(
                f'libtpu {_versions()[-1]} ended its process when it compiled this '
                'program before: it crashed, or was killed. Take another batch, mesh or libtpu; '
                f'to try the same again, remove {mark}'
            )
        file.write('compiling')
        file.flush()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


@contextlib.contextmanager
def _forgotten() -> Iterator[None]:
    """Keeps programs out of JAX's own cache, which could not load those for absent devices."""
    key = 'jax_persistent_cache_min_compile_time_secs'
    before = getattr(jax.config, key)
    jax.config.update(key, math.inf)
    try:
        yield
    finally:
        jax.config.update(key, before)


def _compile(lowered: jax.stages.Lowered, digest: str) -> Measured:
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        seconds = time.perf_counter() - start
        words = str(error).splitlines()[0]
        return Measured(digest, seconds, needed(words), {}, words, 0.0, 0.0, {}, 0, 0)
    seconds = time.perf_counter() - start
    stats, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text = compiled.as_text()
    assert stats is not None and text is not None  # CPUs, GPUs and TPUs have both
    traffic = hlo.Program(text).traffic()
    memory = {
        'arguments': stats.argument_size_in_bytes,
        'outputs': stats.output_size_in_bytes,
        'temporaries': stats.temp_size_in_bytes,
        'aliased': stats.alias_size_in_bytes,
    }
    at_most = sum(memory.values()) - 2 * memory['aliased']
    return Measured(
        digest=digest,
        seconds=seconds,
        peak_bytes=stats.peak_memory_in_bytes or at_most,
        memory=memory,
        overflow='',
        flops=float(costs.get('flops', 0.0)),
        bytes_accessed=float(costs.get('bytes accessed', 0.0)),
        collectives={
            kind: {'count': traffic.count[kind], 'bytes': traffic.bytes[kind]}
            for kind in sorted(traffic.count)
        },
        cycles=traffic.cycles,
        unknown_loops=traffic.unknown_loops,
    )


def needed(words: str) -> int:
    """Bytes that the compiler says are needed: the first size in its words, such as '33.54G'."""
    size = re.search(r'([\d.]+)([KMGT])i?B?\b', words)
    return int(float(size.group(1)) * UNITS[size.group(2)]) if size else 0


def _versions() -> tuple[str, ...]:
    try:
        compiler = metadata.version('libtpu')
    except metadata.PackageNotFoundError:
        compiler = ''
    return jax.__version__, jaxlib.__version__, compiler
