"""Schedules and optax transforms: one per distinct setting of the rules, joined by labels.

Every setting is a rule list over parameter paths. Parameters with the same schedule, learning-rate
factor and weight decay share one optax optimizer; `optax.partition` joins them. Only trainable
parameters ever reach this module, so frozen ones hold no state and take part in no norm.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtrain import partition, rules
from jaxtrain.errors import UserError


def keras_adam(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Adam as Keras and TensorFlow define it: eps is added before the bias is corrected.

    It is the form that Kingma & Ba (2014, arXiv:1412.6980) give at the end of section 2. Written as
    optax and PyTorch have Adam, with the bias corrected first, it is an eps that shrinks from step
    to step: at the first it is 32 times the given one, which small gradients feel.
    """

    def corrected(count: jax.Array) -> jax.Array:
        return eps / jnp.sqrt(1 - b2 ** (count + 1.0))

    inject = optax.inject_hyperparams(optax.adam, static_args=('b1', 'b2'))
    return inject(learning_rate=learning_rate, b1=b1, b2=b2, eps=corrected)


# The public optimizers of optax, functions of a learning rate that return a transformation, and the
# one above.
OPTIMIZERS = {
    name: getattr(optax, name)
    for name in dir(optax)
    if inspect.isfunction(getattr(optax, name))
    and next(iter(inspect.signature(getattr(optax, name)).parameters), '') == 'learning_rate'
} | {'keras_adam': keras_adam}

SCHEDULES = ('constant', 'cosine', 'linear')


@dataclass(frozen=True)
class Optimizer:
    """An optax transformation and what it does to each trainable parameter.

    Attributes:
      tx: the transformation, over the nested trainable parameters.
      learning_rate: float32 [steps], the largest learning rate of any parameter, for the log.
      lr_mult, decay: parameter path -> factor, weight decay.
    """

    tx: optax.GradientTransformation
    learning_rate: np.ndarray
    lr_mult: Mapping[str, float]
    decay: Mapping[str, float]


def make_optimizer(cfg, paths: list[str], trainable: list[str], steps: int) -> Optimizer:
    """The optimizer that `config.optim` describes.

    Args:
      cfg: `config.optim`.
      paths: all parameter paths; rules are held against these, so that freezing a group does not
        turn a rule about it into an error.
      trainable: the paths that are trained.
      steps: length of the run, over which schedules fall.

    Raises:
      UserError: unknown optimizer, schedule or argument, or a rule at fault.
    """
    kept, number = set(trainable), (int, float)

    def by_rule(name: str, kind) -> dict[str, Any]:
        where = f'config.optim.{name}'
        every = rules.assign(rules.parse(getattr(cfg, name), where, kind), paths, where)
        if kind is number:
            every = {path: float(_not_negative(where, value)) for path, value in every.items()}
        return {path: value for path, value in every.items() if path in kept}

    lr_mult, schedule = by_rule('lr_mult', number), by_rule('schedule', str)
    clip = by_rule('clip_norm', number)
    weight_decay = _not_negative('config.optim.weight_decay', cfg.weight_decay)
    decay = dict.fromkeys(trainable, 0.0)
    if weight_decay:
        decay = {path: weight_decay * f for path, f in by_rule('decay_mult', number).items()}

    _not_negative('config.optim.lr', cfg.lr)
    curves = {name: make_schedule(cfg, name, steps) for name in sorted(set(schedule.values()))}
    setting = {path: (schedule[path], lr_mult[path], decay[path]) for path in trainable}
    optimizers = {
        _label(s, m, d): _optax(cfg, _scaled(curves[s], m), d) for s, m, d in set(setting.values())
    }
    labels = {path: _label(*setting[path]) for path in trainable}
    tx = optax.partition(optimizers, partition.unflatten(labels))
    if any(clip.values()):
        tx = optax.chain(_clip_by_rule(clip), tx)

    pairs = {(s, m) for s, m, _ in setting.values()}
    # On the host ahead of time: asked for later, it would queue behind the steps on the device.
    rates = [m * np.broadcast_to(jax.vmap(curves[s])(np.arange(steps)), steps) for s, m in pairs]
    return Optimizer(
        tx=tx,
        learning_rate=np.max(rates, axis=0),
        lr_mult=lr_mult,
        decay=decay,
    )


def make_schedule(cfg, name: str, steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup_steps`, then 'constant', 'cosine' or 'linear' to the last step.

    Raises:
      UserError: an unknown name, or a warm-up as long as the run.
    """
    if name not in SCHEDULES:
        raise UserError(
            f'config.optim.schedule: {name!r} is not known{rules.nearest(name, SCHEDULES)}; '
            f'choose from {", ".join(SCHEDULES)}'
        )
    warmup, rest = cfg.warmup_steps, steps - cfg.warmup_steps
    if warmup < 0 or rest <= 0:
        raise UserError(
            f'config.optim.warmup_steps={warmup} must be at least 0 and less than the {steps} '
            'steps of the run'
        )
    if name != 'constant':
        _not_negative('config.optim.lr_end', cfg.lr_end)
    if name == 'constant':
        after = optax.constant_schedule(cfg.lr)
    elif name == 'cosine':
        after = optax.cosine_decay_schedule(cfg.lr, rest, alpha=cfg.lr_end)
    else:
        after = optax.linear_schedule(cfg.lr, cfg.lr * cfg.lr_end, rest)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, cfg.lr, warmup), after], [warmup])


def _optax(cfg, learning_rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    """One optax optimizer; weight decay goes in by its own argument, or as L2 for sgd."""
    make = OPTIMIZERS[cfg.choose('name', OPTIMIZERS)]
    known = inspect.signature(make).parameters
    args = dict(cfg.args.items())
    for name in args:
        if name not in known or name in ('learning_rate', 'weight_decay', 'mask'):
            raise UserError(
                f'config.optim.args.{name}: {cfg.name} takes no such argument'
                f'{rules.nearest(name, known)}, or it has a key of its own in config.optim'
            )
    if 'weight_decay' in known:
        return make(learning_rate, weight_decay=decay, **args)
    if not decay:
        return make(learning_rate, **args)
    if cfg.name == 'sgd':
        return optax.chain(optax.add_decayed_weights(decay), make(learning_rate, **args))
    raise UserError(
        f'config.optim.weight_decay: {cfg.name} has no weight decay; '
        'set it to 0, or choose an optimizer that has one, such as adamw'
    )


def _label(schedule: str, lr_mult: float, decay: float) -> str:
    # Written in full: rounded, two settings that differ by little would become one.
    return f'{schedule} lr*{lr_mult} decay {decay}'


def _clip_by_rule(clip: Mapping[str, float]) -> optax.GradientTransformation:
    """Clips by the global norm of the parameters that share a limit."""
    limits = {
        f'clip {limit}': optax.clip_by_global_norm(limit) if limit else optax.identity()
        for limit in set(clip.values())
    }
    labels = {path: f'clip {limit}' for path, limit in clip.items()}
    return optax.partition(limits, partition.unflatten(labels))


def _scaled(curve: optax.Schedule, factor: float) -> optax.Schedule:
    return curve if factor == 1 else lambda step: factor * curve(step)


def _not_negative(where: str, value: float) -> float:
    if not value >= 0:
        raise UserError(f'{where}={value} is negative; it must be 0 or more')
    return value
