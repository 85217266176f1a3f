"""The restore plan: what happens to every leaf, decided and checked before any array is read.

Every leaf of the model is loaded or initialised, every key of the weights is used or explicitly
dropped, and shapes and dtypes agree or a rule resizes the leaf. Otherwise the plan fails with an
error that lists every leaf. Leaves are named by parameter path, and BatchNorm statistics by theirs
(`backbone/norm_0/mean`).
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxtrain.config import rules
from jaxtrain.errors import UserError, nearest
from jaxtrain.params.partition import array_text, by_path
from jaxtrain.weights import resize
from jaxtrain.weights.matching import few
from jaxtrain.weights.stored import Stored

LOAD, INIT, DROP, RESIZE, CLASSES = 'load', 'init', 'drop', 'resize', 'classes'
TAKEN = (LOAD, RESIZE, CLASSES)  # actions that use a value of the weights
ACTIONS = (*TAKEN, INIT, DROP)
DIFFERS = 'DIFFERS'  # in shape or dtype, and no rule resizes it


@dataclass(frozen=True)
class Leaf:
    """One line of the plan.

    Attributes:
      path: parameter path.
      action: one of ACTIONS; or, in a plan that fails, the fault.
      source, target: 'shape dtype' in the weights and in the model, '-' where it is absent. For a
        foreign file the source has its key as well.
      key: the path in the weights that it is loaded from, or that does not fit; otherwise ''.
    """

    path: str
    action: str
    source: str
    target: str
    key: str = ''


@dataclass(frozen=True)
class Plan:
    """What is restored, and from where.

    Attributes:
      stored: the weights.
      leaves: one per path of the model or of the weights.
      classes: for the action 'classes', (class, output in the model, output in the weights).
    """

    stored: Stored
    leaves: tuple[Leaf, ...]
    classes: tuple[tuple[str, int, int], ...] = ()

    @property
    def checkpoint(self) -> str:
        return self.stored.where

    def paths(self, *actions: str) -> list[str]:
        return [leaf.path for leaf in self.leaves if leaf.action in actions]

    def to_json(self) -> dict[str, Any]:
        content = {'checkpoint': self.checkpoint, 'leaves': [asdict(leaf) for leaf in self.leaves]}
        classes = [name for name, _, _ in self.classes]
        return {**content, 'classes': classes} if classes else content

    def summary(self) -> str:
        counts = {a: len(self.paths(a)) for a in ACTIONS}
        parts = [f'{a} {n}' + _roots(self.paths(a)) for a, n in counts.items() if n]
        text = f'restore from {self.checkpoint}: {", ".join(parts)}'
        if self.classes:
            names = [name for name, _, _ in self.classes]
            text += f'; {len(names)} classes by name ({few(names)})'
        return text


def make_plan(
    stored: Stored, variables: tuple[Any, Any], rule_value: tuple, classes: tuple[str, ...] = ()
) -> Plan:
    """Make the plan to restore weights into a model.

    Args:
      stored: the weights, not read yet.
      variables: the model's nested abstract leaves, (params, model_state).
      rule_value: `config.restore.rules`.
      classes: class names by output of the model.

    Raises:
      UserError: a rule is wrong, or a leaf has no value by the rules. The error's `details` list
        every leaf.
    """
    where = 'config.restore.rules'
    rule_list = rules.parse(rule_value, where, str)
    for pattern, action in rule_list:
        if action not in ACTIONS and not re.fullmatch(r'load \S+', action):
            raise UserError(
                f'{where}: rule {pattern!r} has the action {action!r}; choose from '
                f"{', '.join(ACTIONS)} or 'load OTHER/PATH'"
            )
    target = by_path(*variables)
    assigned = rules.assign(rule_list, sorted({*stored.leaves, *target}), where)
    actions = {path: _expanded(path, action, rule_list, where) for path, action in assigned.items()}
    _check_sources(stored, {p: a for p, a in actions.items() if p in target}, where)
    elsewhere = {a.split()[1] for path, a in actions.items() if ' ' in a and path in target}
    names = _same_classes(stored, classes) if CLASSES in actions.values() else ()
    leaves = tuple(
        _leaf(path, action, stored, target, classes)
        for path, action in actions.items()
        if path in target or path not in elsewhere
    )
    faults = [leaf for leaf in leaves if leaf.action not in ACTIONS]
    if faults:
        raise UserError(_advice(stored, faults, target), details=to_text(leaves))
    return Plan(stored, leaves, names)


def read(plan: Plan, variables: tuple[Any, Any]) -> dict[str, jax.Array]:
    """Read the leaves to load or resize: path -> array, with the shardings of the given leaves."""
    target = by_path(*variables)
    keys = {leaf.path: leaf.key for leaf in plan.leaves if leaf.action in (LOAD, RESIZE)}
    stored = _stored_leaves(plan, {path: target[path] for path in keys}, keys)
    values = plan.stored.read(stored)
    arrays, used = {}, set()
    for path, key in keys.items():
        value, leaf = values[key], target[path]
        if key in used:  # the step donates its buffers, each of them once
            value = jnp.copy(value)
        used.add(key)
        if value.shape != leaf.shape:
            value = jax.device_put(resize.resize(path, value, leaf.shape), leaf.sharding)
        arrays[path] = value
    return arrays


def with_classes(plan: Plan, fresh: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Replace the outputs of classes that the weights know in the fresh leaves of the head."""
    keys = {leaf.path: leaf.key for leaf in plan.leaves if leaf.action == CLASSES}
    if not keys:
        return dict(fresh)
    values = plan.stored.read(_stored_leaves(plan, {p: fresh[p] for p in keys}, keys))
    new = np.array([i for _, i, _ in plan.classes])
    old = np.array([i for _, _, i in plan.classes])
    known = {
        path: jax.device_put(
            jnp.asarray(fresh[path]).at[..., new].set(values[key][..., old]),
            fresh[path].sharding,
        )
        for path, key in keys.items()
    }
    return {**fresh, **known}


def to_text(leaves: tuple[Leaf, ...]) -> str:
    """Format the plan as aligned lines: action, path, source -> target."""
    width = max(len(leaf.path) for leaf in leaves)
    action = max(len(leaf.action) for leaf in leaves)
    return '\n'.join(
        f'  {leaf.action:{action}}  {leaf.path:{width}}  {leaf.source} -> {leaf.target}'
        for leaf in leaves
    )


def _expanded(path: str, action: str, rule_list: rules.Rules, where: str) -> str:
    """Insert the groups of the first rule that matches: 'load old/\\1' -> 'load old/kernel'."""
    if ' ' not in action:
        return action
    match = next(m for pattern, _ in rule_list if (m := re.fullmatch(pattern, path)))
    try:
        return match.expand(action)
    except (re.error, IndexError) as error:
        raise UserError(
            f'{where}: {action!r} does not fit the rule {match.re.pattern!r} ({error}); \\1 is '
            'the match of its first group'
        ) from error


def _check_sources(stored: Stored, actions: Mapping[str, str], where: str) -> None:
    """Raise a UserError if a leaf is to be loaded from a path that the weights do not have."""
    keys = {path: action.split()[1] for path, action in actions.items() if ' ' in action}
    missing = {path: key for path, key in keys.items() if key not in stored.leaves}
    if missing:
        path, key = next(iter(missing.items()))
        raise UserError(
            f'{where}: {path} is to be loaded from {key}, which {stored.where} does not have'
            f'{nearest(key, stored.leaves)}',
            details='\n'.join(f'  {p}: no {k}' for p, k in missing.items()),
        )


def _leaf(
    path: str, action: str, stored: Stored, target: Mapping, classes: tuple[str, ...]
) -> Leaf:
    action, _, key = action.partition(' ')
    key = key or path
    have, want = stored.leaves.get(key), target.get(path)
    if want is None:
        # Only the weights have it: the 'init' rule of a head covers extra leaves of the old head.
        outcome = DROP if action in (DROP, INIT) else 'NOT IN MODEL'
    elif action == INIT:
        outcome = INIT
    elif have is None or action == DROP:
        outcome = 'NOT IN CHECKPOINT' if have is None else 'DROPPED, BUT THE MODEL NEEDS IT'
    elif have.dtype != want.dtype:
        outcome = DIFFERS
    elif action == CLASSES:
        per_class = _is_per_class(stored, have.shape, want.shape, classes)
        outcome = CLASSES if per_class else 'NO OUTPUT PER CLASS'
    else:
        outcome = _outcome(path, action, have.shape, want.shape)
    source = stored.keys.get(key) or _text(have)
    if key != path and have is not None:
        source = f'{key} {source}'
    keyed = outcome in (*TAKEN, DIFFERS)
    return Leaf(path, outcome, source, _text(want), key if keyed else '')


def _is_per_class(stored: Stored, have: tuple, want: tuple, classes: tuple[str, ...]) -> bool:
    """Whether leaves of these shapes differ only in the outputs, one for each class."""
    assert stored.bundle is not None  # otherwise `_same_classes` has raised
    known = len(stored.bundle.classes)
    return have == (*have[:-1], known) and want == (*have[:-1], len(classes))


def _outcome(path: str, action: str, have: tuple, want: tuple) -> str:
    """Return what happens to a leaf of these shapes, by a rule that loads or resizes it."""
    if have == want:
        return LOAD
    if action == RESIZE:
        return RESIZE if resize.can(path, have, want) else 'CANNOT BE RESIZED'
    return DIFFERS


def _same_classes(stored: Stored, classes: tuple[str, ...]) -> tuple[tuple[str, int, int], ...]:
    """Return (class, output in the model, output in the weights) for the classes of both."""
    known = {name: i for i, name in enumerate(stored.bundle.classes)} if stored.bundle else {}
    shared = tuple((name, i, known[name]) for i, name in enumerate(classes) if name in known)
    if not shared:
        raise UserError(
            f"config.restore.rules: 'classes' finds none of the {len(classes)} classes of the data "
            f'({few(classes)}) among the {len(known)} of {stored.where} '
            f"({few(known) or 'none'}); write 'init' for a new head"
        )
    return shared


def _stored_leaves(plan: Plan, leaves: Mapping, keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the leaves to request: key -> leaf with the stored shape, and the model's sharding."""
    wanted = {}
    for path, leaf in leaves.items():
        shape, sharding = plan.stored.leaves[keys[path]].shape, leaf.sharding
        if shape != leaf.shape and isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        wanted[keys[path]] = jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)
    return wanted


def _advice(stored: Stored, faults: list[Leaf], target: Mapping) -> str:
    start = f'config.init_from: {stored.where} does not fit the model'
    heads = [leaf for leaf in faults if leaf.path.startswith('head/')]
    if len(heads) == len(faults):
        leaf = heads[0]
        return (
            f'{start}: its head differs ({leaf.path}: {leaf.source} -> {leaf.target}); for a new '
            f"head add the rule ('head/.*', 'init') in front of config.restore.rules"
        )
    resizable = [leaf for leaf in faults if _can_resize(leaf, stored, target)]
    leaf = (resizable or faults)[0]
    fault = (
        f'{start}: {len(faults)} of {len({*stored.leaves, *target})} leaves, first {leaf.path} '
        f'({leaf.action}: {leaf.source} -> {leaf.target})'
    )
    if resizable:
        return f"{fault}; add the rule ('{leaf.path}', 'resize') in front of config.restore.rules"
    spare = {leaf.path for leaf in faults if leaf.target == '-'}
    guess = nearest(leaf.path, spare) if leaf.source == '-' else ''
    return (
        f'{fault}{guess}; set config.model to that of the checkpoint, or add rules with init or '
        'drop to config.restore.rules'
    )


def _can_resize(leaf: Leaf, stored: Stored, target: Mapping) -> bool:
    """Whether the action 'resize' fixes a fault; not if a rule loads the leaf from another path."""
    if leaf.action != DIFFERS or leaf.key != leaf.path:
        return False
    have, want = stored.leaves[leaf.path], target[leaf.path]
    return have.dtype == want.dtype and resize.can(leaf.path, have.shape, want.shape)


def _text(leaf: Any) -> str:
    return '-' if leaf is None else array_text(leaf.shape, leaf.dtype)


def _roots(paths: list[str]) -> str:
    roots = sorted({path.split('/')[0] for path in paths})
    return f' ({", ".join(roots)})'
