"""Optimizers: one optax transformation for each distinct setting of the rules, joined by labels.

Each setting is a rule list over parameter paths. Parameters with the same schedule, learning-rate
factor and weight decay share one optax optimizer; `optax.partition` joins these. The optimizer is
given only trainable parameters, so frozen ones have no optimizer state and no effect on norms.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from jaxtrain.config import rules, streams
from jaxtrain.config.durations import Run
from jaxtrain.errors import UserError
from jaxtrain.optim.schedules import make_schedule, not_negative
from jaxtrain.params import partition


def keras_adam(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Adam as in Keras and TensorFlow: eps is added before the bias correction.

    Kingma & Ba (2014, arXiv:1412.6980) give this form at the end of section 2. In terms of optax's
    and PyTorch's Adam, which correct the bias first, eps decreases from step to step: it starts at
    32 times the given value, which matters for small gradients.
    """

    def corrected(count: jax.Array) -> jax.Array:
        return eps / jnp.sqrt(1 - b2 ** (count + 1.0))

    inject = optax.inject_hyperparams(optax.adam, static_args=('b1', 'b2'))
    return inject(learning_rate=learning_rate, b1=b1, b2=b2, eps=corrected)


def muon(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    beta: float = 0.95,
    ns_steps: int = 5,
    nesterov: bool = True,
    consistent_rms: float = 0.0,
    adam_b1: float = 0.9,
    adam_b2: float = 0.95,
) -> optax.GradientTransformation:
    """optax's Muon (Jordan 2024, kellerjordan.github.io/posts/muon) for the kernels of hidden
    layers, and its Adam for everything else: embeddings, positions, patches, norms, biases, heads.

    Both use the same learning rate; use `config.optim.lr_mult` to make them differ.

    Args:
      learning_rate: learning rate of both parts.
      weight_decay: decoupled weight decay of both parts.
      beta, ns_steps, nesterov: momentum, Newton-Schulz steps, and whether to use Nesterov momentum.
      consistent_rms: 0.2 makes updates as large as Adam's, so that learning rates and weight decay
        for Adam can be used (Liu et al. 2025, arXiv:2502.16982); 0 scales by the kernel's shape, as
        Jordan does.
      adam_b1, adam_b2: decay rates of Adam's moments.
    """
    return optax.contrib.muon(
        learning_rate,
        beta=beta,
        ns_steps=ns_steps,
        nesterov=nesterov,
        weight_decay=weight_decay,
        consistent_rms=consistent_rms or None,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_weight_decay=weight_decay,
        muon_weight_dimension_numbers=_matrices,
    )


def _matrices(params: Any) -> Any:
    """The input and output axes of each kernel; None for parameters that Adam updates."""

    def axes(keys: tuple, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        path = '/'.join(key.key for key in keys)
        if leaf.ndim < 2 or not re.fullmatch(HIDDEN_KERNELS, path):
            return None
        inputs = leaf.ndim - 1  # 1 for a dense layer, 3 for a convolution
        if re.fullmatch('.*/(query|key|value)/kernel', path):
            inputs = 1  # the output axes are heads and head size
        dims = tuple(range(leaf.ndim))
        return optax.contrib.MuonDimensionNumbers(dims[:inputs], dims[inputs:])

    return jax.tree_util.tree_map_with_path(axes, params)


HIDDEN_KERNELS = r'backbone/(?!patch/).*/kernel'

# A step of lbfgs evaluates the loss again; noisy_sgd keeps a random key, which Orbax cannot save;
# and the others accept no schedule.
_UNUSABLE = ('lbfgs', 'noisy_sgd', 'optimistic_adam', 'rprop', 'sm3')


def _is_optimizer(name: str) -> bool:
    """Whether optax has a public function of this name that takes a learning rate first."""
    function = getattr(optax, name)
    if name.startswith(('_', 'scale_by_')) or name in _UNUSABLE or not inspect.isfunction(function):
        return False
    return next(iter(inspect.signature(function).parameters), '') == 'learning_rate'


# The optimizers of optax, and the two above.
OPTIMIZERS = {name: getattr(optax, name) for name in dir(optax) if _is_optimizer(name)}
OPTIMIZERS |= {'keras_adam': keras_adam, 'muon': muon}
BLOCK = 2**16  # steps whose learning rates are computed at once
# Arguments that are set by other keys of config.optim, or that the rules replace.
RESERVED = ('learning_rate', 'weight_decay', 'weight_decay_rate', 'weight_decay_mask', 'mask')


@dataclass(frozen=True)
class Optimizer:
    """An optax transformation and its settings for each trainable parameter.

    Attributes:
      tx: the transformation of the nested trainable parameters.
      learning_rate: step, counted from 0 -> the largest learning rate of any parameter in that
        step, for the log.
      lr_mult, decay: parameter path -> learning-rate factor, weight decay.
      schedules: names of the learning-rate schedules.
    """

    tx: optax.GradientTransformation
    learning_rate: Callable[[int], float]
    lr_mult: Mapping[str, float]
    decay: Mapping[str, float]
    schedules: tuple[str, ...]


def make_optimizer(cfg, paths: list[str], trainable: list[str], run: Run) -> Optimizer:
    """The optimizer that `config.optim` describes.

    Args:
      cfg: `config.optim`.
      paths: all parameter paths; rules are checked against these, so that a rule about a frozen
        group is not an error.
      trainable: paths of the trained parameters.
      run: the length of the run, which schedules depend on.

    Raises:
      UserError: unknown optimizer, schedule or argument, or an invalid rule.
    """
    selected, number = set(trainable), (int, float)

    def by_rule(name: str, kind) -> dict[str, Any]:
        where = f'config.optim.{name}'
        every = rules.assign(rules.parse(getattr(cfg, name), where, kind), paths, where)
        if kind is number:
            every = {path: float(not_negative(where, value)) for path, value in every.items()}
        return {path: value for path, value in every.items() if path in selected}

    lr_mult, schedule = by_rule('lr_mult', number), by_rule('schedule', str)
    limits = by_rule('clip_norm', number)
    weight_decay = not_negative('config.optim.weight_decay', cfg.weight_decay)
    decay = dict.fromkeys(trainable, 0.0)
    if weight_decay:
        decay = {path: weight_decay * f for path, f in by_rule('decay_mult', number).items()}

    not_negative('config.optim.lr', cfg.lr)
    curves = {name: make_schedule(cfg, name, run) for name in sorted(set(schedule.values()))}
    setting = {path: (schedule[path], lr_mult[path], decay[path]) for path in trainable}
    optimizers = {
        _label(s, m, d): _optax(cfg, _scaled(curves[s], m), d)
        for s, m, d in sorted(set(setting.values()))
    }
    labels = {path: _label(*setting[path]) for path in trainable}
    tx = optax.partition(optimizers, partition.unflatten(labels))
    if any(limits.values()):
        tx = optax.chain(_clip_by_rule(_clipped_together(cfg, limits, run.version), limits), tx)
    factors = sorted({(s, m) for s, m, _ in setting.values()})
    rates = [(curves[s], m) for s, m in factors]
    return Optimizer(
        tx=tx,
        learning_rate=_largest(rates, min(run.steps, BLOCK)),
        lr_mult=lr_mult,
        decay=decay,
        schedules=tuple(curves),
    )


def _largest(rates: list[tuple[optax.Schedule, float]], size: int) -> Callable[[int], float]:
    """The largest product of a schedule and its factor, as a function of the step.

    It is computed for blocks of `size` steps: for a single step, the computation would queue behind
    the steps on the device whenever it is logged.
    """

    @functools.lru_cache(maxsize=2)
    def block(number: int) -> np.ndarray:
        steps = np.arange(number * size, (number + 1) * size)
        return np.max([m * np.broadcast_to(jax.vmap(f)(steps), size) for f, m in rates], axis=0)

    return lambda step: float(block(step // size)[step % size])


def _optax(cfg, learning_rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    """One optax optimizer. Weight decay is its argument of that name; for sgd it is an L2 penalty,
    and for adafactor it is decoupled and scaled by the learning rate, as in AdamW.
    """
    make = OPTIMIZERS[cfg.choose('name', OPTIMIZERS)]
    known = inspect.signature(make).parameters
    args = dict(cfg.args.items())
    for name in args:
        if name not in known or name in RESERVED:
            raise UserError(
                f'config.optim.args.{name}: {cfg.name} has no such argument'
                f'{rules.nearest(name, known)}, or config.optim has a separate key for it'
            )
    if 'weight_decay' in known:
        return make(learning_rate, weight_decay=decay, **args)
    if not decay:
        return make(learning_rate, **args)
    if cfg.name == 'sgd':
        return optax.chain(optax.add_decayed_weights(decay), make(learning_rate, **args))
    if cfg.name == 'adafactor':
        # Adafactor's own weight decay does not depend on the learning rate.
        decayed = optax.add_decayed_weights(lambda step: -decay * learning_rate(step))
        return optax.chain(make(learning_rate, **args), decayed)
    raise UserError(
        f'config.optim.weight_decay: {cfg.name} has no weight decay; '
        'set it to 0, or choose an optimizer that has one, such as adamw'
    )


def _label(schedule: str, lr_mult: float, decay: float) -> str:
    # Not rounded, because settings that differ only slightly need different labels.
    return f'{schedule} lr*{lr_mult} decay {decay}'


def _clipped_together(cfg, limits: Mapping[str, float], version: int) -> dict[str, str]:
    """Parameter path -> name of the set whose gradients have one norm: those of a rule."""
    if version == streams.FIRST:  # rules with the same limit shared one
        return {path: f'clip {limit}' for path, limit in limits.items()}
    rule_list = rules.parse(cfg.clip_norm, 'config.optim.clip_norm', (int, float))
    return {path: f'rule {rules.winner(rule_list, path)}' for path in limits}


def _clip_by_rule(
    sets: Mapping[str, str], limits: Mapping[str, float]
) -> optax.GradientTransformation:
    """Clips the gradients of each set of parameters by their global norm."""
    limit_of = {sets[path]: limit for path, limit in limits.items()}
    clips = {
        name: optax.clip_by_global_norm(limit) if limit else optax.identity()
        for name, limit in sorted(limit_of.items())
    }
    return optax.partition(clips, partition.unflatten(sets))


def _scaled(curve: optax.Schedule, factor: float) -> optax.Schedule:
    return curve if factor == 1 else lambda step: factor * curve(step)
