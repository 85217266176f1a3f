"""The restore plan: what becomes of every leaf, decided and checked before anything is read.

Every leaf of the model is loaded or freshly initialised, every key of the checkpoint is used or
explicitly dropped, and shapes and dtypes agree; otherwise there is no plan but an error with the
whole comparison. Leaves are named by parameter path; BatchNorm statistics go by theirs
(`backbone/norm_0/mean`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from jaxtrain import checkpoint, rules
from jaxtrain.errors import UserError
from jaxtrain.partition import flatten, unflatten

LOAD, INIT, DROP = 'load', 'init', 'drop'


@dataclass(frozen=True)
class Leaf:
    """One line of the plan.

    Attributes:
      path: parameter path.
      action: 'load', 'init' or 'drop'; or, in a plan that fails, what is wrong.
      source, target: 'shape dtype' in the checkpoint and in the model, '-' where it is absent.
    """

    path: str
    action: str
    source: str
    target: str


@dataclass(frozen=True)
class Plan:
    """What is restored from where.

    Attributes:
      checkpoint: the checkpoint's folder.
      leaves: one per path of the model or of the checkpoint.
    """

    checkpoint: str
    leaves: tuple[Leaf, ...]

    def paths(self, action: str) -> list[str]:
        return [leaf.path for leaf in self.leaves if leaf.action == action]

    def to_json(self) -> dict[str, Any]:
        return {'checkpoint': self.checkpoint, 'leaves': [asdict(leaf) for leaf in self.leaves]}

    def summary(self) -> str:
        counts = {a: len(self.paths(a)) for a in (LOAD, INIT, DROP)}
        said = [f'{a} {n}' + _whose(self.paths(a)) for a, n in counts.items() if n]
        return f'restore from {self.checkpoint}: {", ".join(said)}'


def make_plan(folder: Path, params: Any, model_state: Any, rule_value: tuple) -> Plan:
    """The plan for a checkpoint of ours.

    Args:
      folder: a checkpoint, as `checkpoint.find` returns it.
      params, model_state: the model's nested abstract leaves.
      rule_value: `config.restore.rules`.

    Raises:
      UserError: a rule at fault, or a leaf that the rules leave without a value; its `details` list
        every leaf.
    """
    where = 'config.restore.rules'
    rule_list = rules.parse(rule_value, where, str)
    for pattern, action in rule_list:
        if action not in (LOAD, INIT, DROP):
            raise UserError(
                f'{where}: rule {pattern!r} says {action!r}; choose from {LOAD}, {INIT}, {DROP}'
            )
    stored = checkpoint.read_metadata(folder)
    source = by_path(stored['params'], stored.get('model_state', {}))
    target = by_path(params, model_state)
    actions = rules.assign(rule_list, sorted({*source, *target}), where)
    leaves = tuple(_leaf(path, actions[path], source, target) for path in actions)
    faults = [leaf for leaf in leaves if leaf.action not in (LOAD, INIT, DROP)]
    if faults:
        raise UserError(_advice(folder, faults, source, target), details=to_text(leaves))
    return Plan(str(folder), leaves)


def read(plan: Plan, params: Any, model_state: Any) -> dict[str, jax.Array]:
    """Reads the leaves to load: path -> array, on the shardings of the abstract leaves given."""
    folder, wanted = Path(plan.checkpoint), set(plan.paths(LOAD))
    stored = checkpoint.read_metadata(folder)
    # A run that keeps a moving average hands that on; its frozen parameters have none.
    averaged = flatten(stored.get('ema', {}))
    request: dict[str, dict[str, Any]] = {'params': {}, 'ema': {}, 'model_state': {}}
    for path, leaf in flatten(params).items():
        if path in wanted:
            request['ema' if path in averaged else 'params'][path] = leaf
    for key, leaf in flatten(model_state).items():
        if _without_collection(key) in wanted:
            request['model_state'][key] = leaf
    values = checkpoint.read(folder, {k: unflatten(v) for k, v in request.items() if v})
    loaded = by_path(values.get('params', {}), values.get('model_state', {}))
    return {**loaded, **flatten(values.get('ema', {}))}


def by_path(params: Any, model_state: Any) -> dict[str, Any]:
    """Path -> leaf; a statistic's path leaves out its collection (`batch_stats`)."""
    state = {_without_collection(key): leaf for key, leaf in flatten(model_state).items()}
    return {**flatten(params), **state}


def from_paths(leaves: Mapping[str, Any], params: Any, model_state: Any) -> tuple[dict, dict]:
    """The inverse of `by_path`: nested (params, model_state) with the structure of those given."""
    state = {key: leaves[_without_collection(key)] for key in flatten(model_state)}
    return unflatten({path: leaves[path] for path in flatten(params)}), unflatten(state)


def array_text(shape: tuple[int, ...], dtype: Any) -> str:
    """An array in a plan: '3x3x64x128 float32'."""
    return f'{"x".join(map(str, shape)) or "scalar"} {dtype}'


def to_text(leaves: tuple[Leaf, ...]) -> str:
    """The plan as aligned lines: action, path, what the checkpoint has, what the model wants."""
    width = max(len(leaf.path) for leaf in leaves)
    action = max(len(leaf.action) for leaf in leaves)
    return '\n'.join(
        f'  {leaf.action:{action}}  {leaf.path:{width}}  {leaf.source} -> {leaf.target}'
        for leaf in leaves
    )


def _leaf(path: str, action: str, source: Mapping, target: Mapping) -> Leaf:
    have, want = source.get(path), target.get(path)
    if want is None:
        # Only the checkpoint has it: an 'init' rule for a head covers the old head's extra leaves.
        outcome = DROP if action in (DROP, INIT) else 'NOT IN MODEL'
    elif action == INIT:
        outcome = INIT
    elif have is None or action == DROP:
        outcome = 'NOT IN CHECKPOINT' if have is None else 'DROPPED, BUT THE MODEL NEEDS IT'
    else:
        outcome = LOAD if _text(have) == _text(want) else 'DIFFERS'
    return Leaf(path, outcome, _text(have), _text(want))


def _advice(folder: Path, faults: list[Leaf], source: Mapping, target: Mapping) -> str:
    start = f'config.init_from: {folder} does not fit the model'
    heads = [leaf for leaf in faults if leaf.path.startswith('head/')]
    if len(heads) == len(faults):
        leaf = heads[0]
        return (
            f'{start}: its head differs ({leaf.path}: {leaf.source} -> {leaf.target}); for a new '
            f"head add the rule ('head/.*', 'init') in front of config.restore.rules"
        )
    leaf = faults[0]
    return (
        f'{start}: {len(faults)} of {len({*source, *target})} leaves, first {leaf.path} '
        f'({leaf.action}: {leaf.source} -> {leaf.target}); make config.model that of the '
        'checkpoint, or say what to init or drop in config.restore.rules'
    )


def _without_collection(key: str) -> str:
    return key.split('/', 1)[1]


def _text(leaf: Any) -> str:
    return '-' if leaf is None else array_text(leaf.shape, leaf.dtype)


def _whose(paths: list[str]) -> str:
    parts = sorted({path.split('/')[0] for path in paths})
    return f' ({", ".join(parts)})'
