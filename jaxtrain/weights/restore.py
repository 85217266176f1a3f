"""The restore plan: what becomes of every leaf, decided and checked before anything is read.

Every leaf of the model is loaded or freshly initialised, every key of the weights is used or
explicitly dropped, and shapes and dtypes agree or a rule says how one becomes the other; otherwise
there is no plan but an error with the whole comparison. Leaves are named by parameter path;
BatchNorm statistics go by theirs (`backbone/norm_0/mean`).
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
TAKEN = (LOAD, RESIZE, CLASSES)  # of a leaf that the weights have a value for
ACTIONS = (*TAKEN, INIT, DROP)
DIFFERS = 'DIFFERS'  # in shape or dtype, and no rule makes it fit


@dataclass(frozen=True)
class Leaf:
    """One line of the plan.

    Attributes:
      path: parameter path.
      action: one of ACTIONS; or, in a plan that fails, what is wrong.
      source, target: 'shape dtype' in the weights and in the model, '-' where it is absent; of a
        file from elsewhere with its key there.
      key: the path in the weights that it is taken from, or that does not fit; '' if none is.
    """

    path: str
    action: str
    source: str
    target: str
    key: str = ''


@dataclass(frozen=True)
class Plan:
    """What is restored from where.

    Attributes:
      stored: the weights.
      leaves: one per path of the model or of the weights.
      classes: for the action 'classes', (class, its output in the model, its output there).
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
        found = {'checkpoint': self.checkpoint, 'leaves': [asdict(leaf) for leaf in self.leaves]}
        return (
            {**found, 'classes': [name for name, _, _ in self.classes]} if self.classes else found
        )

    def summary(self) -> str:
        counts = {a: len(self.paths(a)) for a in ACTIONS}
        said = [f'{a} {n}' + _whose(self.paths(a)) for a, n in counts.items() if n]
        text = f'restore from {self.checkpoint}: {", ".join(said)}'
        if self.classes:
            names = [name for name, _, _ in self.classes]
            text += f'; {len(names)} classes by name ({few(names)})'
        return text


def make_plan(
    stored: Stored, params: Any, model_state: Any, rule_value: tuple, classes: tuple[str, ...] = ()
) -> Plan:
    """The plan for weights.

    Args:
      stored: the weights, not read yet.
      params, model_state: the model's nested abstract leaves.
      rule_value: `config.restore.rules`.
      classes: class names by output of the model.

    Raises:
      UserError: a rule at fault, or a leaf that the rules leave without a value; its `details` list
        every leaf.
    """
    where = 'config.restore.rules'
    rule_list = rules.parse(rule_value, where, str)
    for pattern, action in rule_list:
        if action not in ACTIONS and not re.fullmatch(r'load \S+', action):
            raise UserError(
                f'{where}: rule {pattern!r} says {action!r}; choose from {", ".join(ACTIONS)} or '
                "'load OTHER/PATH'"
            )
    target = by_path(params, model_state)
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


def read(plan: Plan, params: Any, model_state: Any) -> dict[str, jax.Array]:
    """Reads the leaves to load or resize: path -> array, on the shardings of those given."""
    target = by_path(params, model_state)
    taken = {leaf.path: leaf.key for leaf in plan.leaves if leaf.action in (LOAD, RESIZE)}
    stored = _stored_leaves(plan, {path: target[path] for path in taken}, taken)
    values = plan.stored.read(stored)
    found, given = {}, set()
    for path, key in taken.items():
        value, leaf = values[key], target[path]
        if key in given:  # the step gives its buffers away, each of them once
            value = jnp.copy(value)
        given.add(key)
        if value.shape != leaf.shape:
            value = jax.device_put(resize.resize(path, value, leaf.shape), leaf.sharding)
        found[path] = value
    return found


def with_classes(plan: Plan, fresh: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Fresh leaves of the head, with the outputs of classes that the weights know put in."""
    taken = {leaf.path: leaf.key for leaf in plan.leaves if leaf.action == CLASSES}
    if not taken:
        return dict(fresh)
    values = plan.stored.read(_stored_leaves(plan, {p: fresh[p] for p in taken}, taken))
    ours = np.array([i for _, i, _ in plan.classes])
    theirs = np.array([i for _, _, i in plan.classes])
    known = {
        path: jax.device_put(
            jnp.asarray(fresh[path]).at[..., ours].set(values[key][..., theirs]),
            fresh[path].sharding,
        )
        for path, key in taken.items()
    }
    return {**fresh, **known}


def to_text(leaves: tuple[Leaf, ...]) -> str:
    """The plan as aligned lines: action, path, what the weights have, what the model wants."""
    width = max(len(leaf.path) for leaf in leaves)
    action = max(len(leaf.action) for leaf in leaves)
    return '\n'.join(
        f'  {leaf.action:{action}}  {leaf.path:{width}}  {leaf.source} -> {leaf.target}'
        for leaf in leaves
    )


def _expanded(path: str, action: str, rule_list: rules.Rules, where: str) -> str:
    """The action with groups of the rule that wins put in: 'load old/\\1' -> 'load old/kernel'."""
    if ' ' not in action:
        return action
    match = next(m for pattern, _ in rule_list if (m := re.fullmatch(pattern, path)))
    try:
        return match.expand(action)
    except (re.error, IndexError) as error:
        raise UserError(
            f'{where}: {action!r} does not fit the rule {match.re.pattern!r} ({error}); \\1 is '
            'what its first brackets match'
        ) from error


def _check_sources(stored: Stored, actions: Mapping[str, str], where: str) -> None:
    """UserError if a leaf is to be loaded from a path that the weights do not have."""
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
        # Only the weights have it: an 'init' rule for a head covers the old head's extra leaves.
        outcome = DROP if action in (DROP, INIT) else 'NOT IN MODEL'
    elif action == INIT:
        outcome = INIT
    elif have is None or action == DROP:
        outcome = 'NOT IN CHECKPOINT' if have is None else 'DROPPED, BUT THE MODEL NEEDS IT'
    else:
        outcome = _outcome(path, action, stored, have, want, classes)
    source = stored.keys.get(key) or _text(have)
    if key != path and have is not None:
        source = f'{key} {source}'
    taken = outcome in (*TAKEN, DIFFERS)
    return Leaf(path, outcome, source, _text(want), key if taken else '')


def _outcome(path: str, action: str, stored: Stored, have, want, classes: tuple[str, ...]) -> str:
    """What becomes of a leaf that both have, by a rule that takes it."""
    if have.dtype != want.dtype:
        return DIFFERS
    if action == CLASSES:
        assert stored.bundle is not None  # else `_same_classes` has found no class
        known = len(stored.bundle.classes)
        fits = have.shape[-1:] == (known,) and want.shape[-1:] == (len(classes),)
        return CLASSES if fits and have.shape[:-1] == want.shape[:-1] else 'NO OUTPUT PER CLASS'
    if _text(have) == _text(want):
        return LOAD
    if action == RESIZE:
        return RESIZE if resize.can(path, have.shape, want.shape) else 'CANNOT BE RESIZED'
    return DIFFERS


def _same_classes(stored: Stored, classes: tuple[str, ...]) -> tuple[tuple[str, int, int], ...]:
    """(class, output in the model, output in the weights) of those that both know."""
    known = {name: i for i, name in enumerate(stored.bundle.classes)} if stored.bundle else {}
    found = tuple((name, i, known[name]) for i, name in enumerate(classes) if name in known)
    if not found:
        raise UserError(
            f"config.restore.rules: 'classes' finds none of the {len(classes)} classes of the data "
            f'({few(classes)}) among the {len(known)} of {stored.where} '
            f"({few(known) or 'none'}); write 'init' for a new head"
        )
    return found


def _stored_leaves(plan: Plan, leaves: Mapping, taken: Mapping[str, str]) -> dict[str, Any]:
    """What to ask the weights for: key -> the leaf as it is stored there, on devices as here."""
    wanted = {}
    for path, leaf in leaves.items():
        shape, sharding = plan.stored.leaves[taken[path]].shape, leaf.sharding
        if shape != leaf.shape and isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        wanted[taken[path]] = jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)
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
    resizable = [leaf for leaf in faults if _resizes(leaf, stored, target)]
    leaf = (resizable or faults)[0]
    said = (
        f'{start}: {len(faults)} of {len({*stored.leaves, *target})} leaves, first {leaf.path} '
        f'({leaf.action}: {leaf.source} -> {leaf.target})'
    )
    if resizable:
        return f"{said}; add the rule ('{leaf.path}', 'resize') in front of config.restore.rules"
    spare = {leaf.path for leaf in faults if leaf.target == '-'}
    guess = nearest(leaf.path, spare) if leaf.source == '-' else ''
    return (
        f'{said}{guess}; make config.model that of the checkpoint, or say what to init or drop in '
        'config.restore.rules'
    )


def _resizes(leaf: Leaf, stored: Stored, target: Mapping) -> bool:
    """Whether the rule 'resize' mends a fault; not where a rule takes it from another path."""
    if leaf.action != DIFFERS or leaf.key != leaf.path:
        return False
    have, want = stored.leaves[leaf.path], target[leaf.path]
    return have.dtype == want.dtype and resize.can(leaf.path, have.shape, want.shape)


def _text(leaf: Any) -> str:
    return '-' if leaf is None else array_text(leaf.shape, leaf.dtype)


def _whose(paths: list[str]) -> str:
    parts = sorted({path.split('/')[0] for path in paths})
    return f' ({", ".join(parts)})'
