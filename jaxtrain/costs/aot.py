"""Figures of a compiled program that is not run: memory, communication, cycles; cached on disk.

A program for a pod takes minutes to compile, and JAX's own cache does not hold programs for devices
that are not attached. Only a few numbers are needed, and these are stored under a hash of the
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
# Changes with the fields below, so that the files of an older version are not read.
FORMAT = 1


@dataclass(frozen=True)
class Measured:
    """What the compiler reports about one call of a program, on each device.

    Attributes:
      digest: a hash of the program's StableHLO, the devices and the versions.
      seconds: how long it took to compile.
      peak_bytes: the peak memory; if the program does not fit, the memory that it needs according
        to the compiler.
      memory: bytes of 'arguments', 'outputs', 'temporaries' and 'aliased' (outputs that reuse the
        memory of arguments); {} if the program does not fit.
      overflow: the compiler's message if the program does not fit into memory, else ''.
      flops, bytes_accessed: the compiler's count of operations and of bytes read and written; the
        body of a loop counts once.
      collectives: kind -> {'count', 'bytes'}, see `hlo.Traffic`.
      cycles: the compiler's estimate for everything but communication, with loops counted as often
        as they run; 0 if it has no estimate.
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
    """Compiles a program, or reads the result from the cache.

    Args:
      lowered: the program.
      devices: a description of its devices, different from that of any others.
      absent: whether these devices are not attached.
      say: called with a message before compiling.

    Raises:
      UserError: for absent devices, the compiler crashed on this program before.
      jax.errors.JaxRuntimeError: the compiler fails for a reason other than memory.
    """
    text = '\n'.join([lowered.as_text(), devices, *_versions(), str(FORMAT)])
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = folder() / f'{digest}.json'
    if path.is_file():
        return Measured(**json.loads(path.read_text()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if absent:
            stack.enter_context(_crash_mark(path.with_suffix('.unfinished')))
            stack.enter_context(_no_cache())
        say('compiling ...')
        measured = _compile(lowered, digest)
    # Replaced as a whole, because another process may read it at the same time.
    storage.write(path, json.dumps(dataclasses.asdict(measured)).encode())
    return measured


def folder() -> Path:
    """The folder of cached results, beside the cache of `compile.use_compilation_cache`."""
    default = Path.home() / '.cache' / 'jaxtrain' / 'xla'
    return Path(os.environ.get('JAX_COMPILATION_CACHE_DIR', default)).parent / 'plans'


@contextlib.contextmanager
def _crash_mark(mark: Path) -> Iterator[None]:
    """Leaves a mark if the process ends meanwhile.

    The TPU's compiler has been seen to crash after minutes, and would do so each time.
    """
    with mark.open('a+') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (
            OSError
        ):  # another process compiles the same program, or the disk does not support locks
            yield
            return
        if mark.stat().st_size:
            raise UserError(
                f'libtpu {_versions()[-1]} crashed, or was killed, when it compiled this program '
                f'before. Use another batch, mesh or libtpu; to try the same again, remove {mark}'
            )
        file.write('compiling')
        file.flush()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """Keeps a program out of JAX's own cache, which cannot load programs for absent devices."""
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
        overflow = str(error).splitlines()[0]
        return Measured(digest, seconds, needed(overflow), {}, overflow, 0.0, 0.0, {}, 0, 0)
    seconds = time.perf_counter() - start
    stats, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text = compiled.as_text()
    assert stats is not None and text is not None  # CPUs, GPUs and TPUs provide both
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


def needed(message: str) -> int:
    """Bytes that a program needs: the first size in the compiler's message, such as '33.54G'."""
    size = re.search(r'([\d.]+)([KMGT])i?B?\b', message)
    return int(float(size.group(1)) * UNITS[size.group(2)]) if size else 0


def _versions() -> tuple[str, ...]:
    try:
        compiler = metadata.version('libtpu')
    except metadata.PackageNotFoundError:
        compiler = ''
    return jax.__version__, jaxlib.__version__, compiler
