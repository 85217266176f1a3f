"""Running the blocks of a deep model one by one or in a loop, and rematerialisation.

Parameters have the same names and shapes either way (`block_0`, `block_1`, ...): a loop stacks them
within the program, so a checkpoint fits both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# What is saved for the backward pass: everything; matrix products, from which the rest is
# recomputed; or only the input of each block (Chen et al. 2016, arXiv:1604.06174).
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
      scan: whether a loop runs them, so that a single block is compiled instead of all.
      ends: block numbers at which a new loop begins. If trained blocks follow frozen ones, a
        single loop would compute gradients for all of them.
    """

    remat: str = 'none'
    scan: bool = False
    ends: tuple[int, ...] = ()

    def runs(self, depth: int) -> list[tuple[int, int]]:
        """(first block, last block + 1) of each loop."""
        bounds = sorted({0, *(end for end in self.ends if 0 < end < depth), depth})
        return list(zip(bounds, bounds[1:], strict=False))


def checkpointed(call: Callable, remat: str) -> Callable:
    """`call(module, *arrays)`, rematerialised in the backward pass as REMAT defines."""
    return call if remat == 'none' else nn.remat(call, policy=REMAT[remat])


@dataclass(frozen=True)
class Chain:
    """Blocks that are applied one after the other.

    Attributes:
      parent: the module that contains the blocks and provides their random numbers.
      blocks: modules that differ only in their parameters.
      call: (block, x, its slice of `each`) -> output of the block.
      stack: how the blocks are run.
    """

    parent: nn.Module
    blocks: Sequence[nn.Module]
    call: Callable[[nn.Module, jax.Array, Any], jax.Array]
    stack: Stack

    def __call__(self, x: jax.Array, each: Any = None, loop: bool = True) -> jax.Array:
        """Applies all blocks in order.

        Args:
          x: float [batch, ...], input of the first block.
          each: a pytree of arrays [blocks, ...] that differ between blocks, or None.
          loop: whether a loop is possible; it is not if the blocks keep a cache.

        Returns:
          The output of the last block.
        """
        scans = self.stack.scan and loop and not self.parent.is_initializing()
        depth = len(self.blocks)
        for first, end in self.stack.runs(depth) if scans else [(0, depth)]:
            blocks = self.blocks[first:end]
            part = jax.tree.map(lambda a: a[first:end], each)  # noqa: B023
            if scans and len(blocks) > 1:
                x = self._scanned(blocks, x, part)
                continue
            one = checkpointed(self.call, self.stack.remat)
            for number, block in enumerate(blocks):
                x = one(block, x, jax.tree.map(lambda a: a[number], part))  # noqa: B023
        return x

    def _scanned(self, blocks: Sequence[nn.Module], x: jax.Array, each: Any) -> jax.Array:
        """Applies some of the blocks in a loop over their stacked parameters."""
        template = blocks[0].clone(parent=None, name=None)
        params = [block.variables['params'] for block in blocks]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        keys = None
        if self.parent.has_rng('dropout'):
            keys = jax.random.split(self.parent.make_rng('dropout'), len(blocks))

        def body(x: jax.Array, block: tuple) -> tuple[jax.Array, None]:
            params, key, each = block
            rngs = {} if key is None else {'dropout': key}
            bound = template.bind({'params': params}, rngs=rngs)
            return self.call(bound, x, each), None

        if self.stack.remat != 'none':
            # Inside a loop, the compiler cannot eliminate the recomputation; no barrier is needed.
            body = jax.checkpoint(body, policy=REMAT[self.stack.remat], prevent_cse=False)
        return jax.lax.scan(body, x, (stacked, keys, each))[0]
