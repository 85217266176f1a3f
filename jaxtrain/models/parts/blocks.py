"""How the blocks of a deep model are run: one after the other, or by a loop over one of them; and
what of them is kept for the backward pass.

Parameters have the same names and shapes either way (`block_0`, `block_1`, ...): for a loop they
are stacked within the program, so a checkpoint fits both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# What the backward pass finds kept: everything; products of matrices, from which the rest is
# computed anew; or only what goes into a block (Chen et al. 2016, arXiv:1604.06174).
REMAT = {
    'none': None,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'full': jax.checkpoint_policies.nothing_saveable,
}


@dataclass(frozen=True)
class Stack:
    """How blocks are run.

    Attributes:
      remat: one of REMAT.
      scan: whether a loop runs them, so that one of them is compiled and not all.
      ends: numbers of blocks at which another loop begins: where blocks that are trained follow on
        blocks that are not, one loop would compute gradients for all of them.
    """

    remat: str = 'none'
    scan: bool = False
    ends: tuple[int, ...] = ()

    def runs(self, depth: int) -> list[tuple[int, int]]:
        """(first block, the one behind the last) of each loop."""
        bounds = sorted({0, *(end for end in self.ends if 0 < end < depth), depth})
        return list(zip(bounds, bounds[1:], strict=False))


Call = Callable[[nn.Module, jax.Array, Any], jax.Array]


def checkpointed(call: Callable, remat: str) -> Callable:
    """`call(module, *arrays)`, of which the backward pass finds kept what the policy says."""
    return call if remat == 'none' else nn.remat(call, policy=REMAT[remat])


def run_blocks(
    parent: nn.Module,
    blocks: Sequence[nn.Module],
    x: jax.Array,
    call: Call,
    stack: Stack,
    each: Any = None,
    loop: bool = True,
) -> jax.Array:
    """All blocks, each on the result of the one before.

    Args:
      parent: the module that they are in; its random numbers are theirs.
      blocks: alike, but for their parameters.
      x: float [batch, ...], what goes into the first.
      call: (block, x, its part of `each`) -> x.
      stack: how.
      each: a pytree of arrays [blocks, ...], what differs between them; None for nothing.
      loop: whether a loop is possible, which it is not while blocks keep a cache.
    """
    scans = stack.scan and loop and not parent.is_initializing()
    for first, behind in stack.runs(len(blocks)) if scans else [(0, len(blocks))]:
        own = jax.tree.map(lambda a: a[first:behind], each)  # noqa: B023
        if scans and behind - first > 1:
            x = _scanned(parent, blocks[first:behind], x, call, stack.remat, own)
            continue
        one = checkpointed(call, stack.remat)
        for number, block in enumerate(blocks[first:behind]):
            x = one(block, x, jax.tree.map(lambda a: a[number], own))  # noqa: B023
    return x


def _scanned(
    parent: nn.Module,
    blocks: Sequence[nn.Module],
    x: jax.Array,
    call: Call,
    remat: str,
    each: Any,
) -> jax.Array:
    """Blocks run by a loop over their stacked parameters."""
    template = blocks[0].clone(parent=None, name=None)
    params = [block.variables['params'] for block in blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    keys = None
    if parent.has_rng('dropout'):
        keys = jax.random.split(parent.make_rng('dropout'), len(blocks))

    def body(x: jax.Array, own: tuple) -> tuple[jax.Array, None]:
        params, key, each = own
        rngs = {} if key is None else {'dropout': key}
        bound = template.bind({'params': params}, rngs=rngs)
        return call(bound, x, each), None

    if remat != 'none':
        # In a loop the compiler cannot undo it, which it is otherwise kept from.
        body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=False)
    return jax.lax.scan(body, x, (stacked, keys, each))[0]
