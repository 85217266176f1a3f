"""Groups of parameters, and the split into trainable and frozen parameters.

Trees of parameters are nested dicts; a *path* consists of the keys of a leaf joined with '/', for
example `backbone/conv_0/kernel`. A partition is made once from `config.groups` and is plain data.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxtrain.config import rules
from jaxtrain.errors import UserError

FROZEN = 'frozen'

Tree = Mapping[str, Any]


def flatten(tree: Tree) -> dict[str, Any]:
    """Nested dict -> {path: leaf}."""
    return flatten_dict(tree, sep='/')


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{path: leaf} -> nested dict."""
    return unflatten_dict(dict(flat), sep='/')


@dataclass(frozen=True)
class Partition:
    """Which parameters are trained.

    Attributes:
      groups: parameter path -> group name.
      frozen_norms: paths of BatchNorm modules whose running statistics are not updated.
    """

    groups: Mapping[str, str]
    frozen_norms: frozenset[str]

    @property
    def trainable(self) -> list[str]:
        return [path for path, group in self.groups.items() if group != FROZEN]

    def split(self, params: Tree) -> tuple[dict, dict]:
        """Nested parameters -> (trainable, frozen), both nested."""
        flat = flatten(params)
        trainable = {p: leaf for p, leaf in flat.items() if self.groups[p] != FROZEN}
        frozen = {p: leaf for p, leaf in flat.items() if self.groups[p] == FROZEN}
        return unflatten(trainable), unflatten(frozen)

    def freeze_norms(self):
        """Context in which frozen BatchNorm layers use, and do not update, their statistics.

        The calls of the layers are intercepted, so that models do not depend on freezing. Models
        must pass `use_running_average` to the call, not to the constructor of the layer.
        """

        def intercept(call, args, kwargs, context):
            norm = isinstance(context.module, nn.BatchNorm) and context.method_name == '__call__'
            if norm and '/'.join(context.module.path) in self.frozen_norms:
                kwargs = {**kwargs, 'use_running_average': True}
            return call(*args, **kwargs)

        return nn.intercept_methods(intercept)


def merge(trainable: Tree, frozen: Tree) -> dict:
    """The inverse of `Partition.split`."""
    return unflatten({**flatten(trainable), **flatten(frozen)})


def make_partition(cfg, params: Tree, model_state: Tree) -> Partition:
    """The partition that `config.groups` and `config.frozen_norm` describe.

    Args:
      cfg: the config.
      params: nested parameters (arrays or ShapeDtypeStructs).
      model_state: nested non-trained variables by collection, such as `batch_stats`.

    Raises:
      UserError: a rule matches no parameter, a parameter matches no rule, or all parameters are
        frozen.
    """
    rule_list = rules.parse(cfg.groups, 'config.groups', str)
    groups = rules.assign(rule_list, flatten(params), 'config.groups')
    if all(group == FROZEN for group in groups.values()):
        raise UserError(
            f'config.groups={cfg.groups!r} freezes all {len(groups)} parameters, so nothing is '
            "left to train; give at least the head another group, as in ('head/.*', 'head')"
        )
    norms: frozenset[str] = frozenset()
    if FROZEN in groups.values() and cfg.choose('frozen_norm', ('frozen', 'adapt')) == 'frozen':
        stats = flatten(model_state.get('batch_stats', {}))
        modules = {path.rsplit('/', 1)[0] for path in stats}
        norms = frozenset(m for m in modules if _module_is_frozen(m, groups, rule_list))
    return Partition(groups, norms)


def _module_is_frozen(module: str, groups: Mapping[str, str], rule_list: rules.Rules) -> bool:
    """A norm is frozen if all its parameters are; if it has none, the rules for its path apply."""
    selected = [group for path, group in groups.items() if path.rsplit('/', 1)[0] == module]
    if not selected:
        number = rules.winner(rule_list, f'{module}/mean')
        selected = [] if number is None else [rule_list[number][1]]
    return bool(selected) and all(group == FROZEN for group in selected)


def by_path(params: Any, model_state: Any) -> dict[str, Any]:
    """Path -> leaf; the path of a statistic omits its collection (`batch_stats`)."""
    state = {without_collection(key): leaf for key, leaf in flatten(model_state).items()}
    return {**flatten(params), **state}


def from_paths(leaves: Mapping[str, Any], params: Any, model_state: Any) -> tuple[dict, dict]:
    """The inverse of `by_path`: nested (params, model_state) with the structure of those given."""
    state = {key: leaves[without_collection(key)] for key in flatten(model_state)}
    return unflatten({path: leaves[path] for path in flatten(params)}), unflatten(state)


def without_collection(key: str) -> str:
    """The path of a statistic, from its key in model_state."""
    return key.split('/', 1)[1]


def array_text(shape: tuple[int, ...], dtype: Any) -> str:
    """Shape and dtype as text, such as '3x3x64x128 float32'."""
    return f'{"x".join(map(str, shape)) or "scalar"} {dtype}'


def count(tree: Tree) -> int:
    """Number of scalars in a tree of arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
    """Bytes of a tree of arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
