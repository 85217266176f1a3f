"""Learning-rate schedules: linear warm-up, then one curve to the last step."""

import jax.numpy as jnp
import optax

from jaxtrain.config import rules
from jaxtrain.config.durations import Run, steps_of
from jaxtrain.errors import UserError

SCHEDULES = ('constant', 'cosine', 'linear', 'rsqrt', 'wsd')


def make_schedule(cfg, name: str, run: Run) -> optax.Schedule:
    """The learning rate at a step: linear warm-up, then one of `SCHEDULES` to the last step.

    Sources: rsqrt from Vaswani et al. 2017, arXiv:1706.03762, section 5.3, with the cool-down of
    Zhai et al. 2021, arXiv:2106.04560, section 3.5; wsd from Hu et al. 2024,
    arXiv:2404.06395, section 4.

    Raises:
      UserError: unknown schedule, a warm-up and cool-down as long as the run, or a missing warm-up
        or cool-down that the schedule needs.
    """
    if name not in SCHEDULES:
        raise UserError(
            f'config.optim.schedule: {name!r} is not known{rules.nearest(name, SCHEDULES)}; '
            f'choose from {", ".join(SCHEDULES)}'
        )
    warmup, cooldown = _lengths(cfg, name, run)
    rest, last = run.steps - warmup, 0.0
    if cooldown or name in ('cosine', 'linear'):
        last = cfg.lr * not_negative('config.optim.lr_end', cfg.lr_end)
    after = {
        'constant': lambda: optax.constant_schedule(cfg.lr),
        'cosine': lambda: optax.cosine_decay_schedule(cfg.lr, rest, alpha=cfg.lr_end),
        'linear': lambda: optax.linear_schedule(cfg.lr, last, rest),
        'rsqrt': lambda: lambda step: cfg.lr * jnp.sqrt(warmup / (warmup + jnp.maximum(step, 0))),
        'wsd': lambda: optax.constant_schedule(cfg.lr),
    }[name]()
    pieces, bounds = [after], []
    if warmup:
        pieces, bounds = [optax.linear_schedule(0.0, cfg.lr, warmup), after], [warmup]
    if cooldown:
        pieces.append(optax.linear_schedule(float(after(rest - cooldown)), last, cooldown))
        bounds.append(run.steps - cooldown)
    return optax.join_schedules(pieces, bounds) if bounds else after


def _lengths(cfg, name: str, run: Run) -> tuple[int, int]:
    """The steps of warm-up and cool-down; only some schedules have a cool-down."""
    warmup, cooldown = steps_of(cfg.warmup, 'config.optim.warmup', run), 0
    if name in ('rsqrt', 'wsd'):
        cooldown = steps_of(cfg.cooldown, 'config.optim.cooldown', run)
    if warmup + cooldown >= run.steps:
        also = f' and config.optim.cooldown={cfg.cooldown!r}' if cooldown else ''
        raise UserError(
            f'config.optim.warmup={cfg.warmup!r}{also} must be less than the {run.steps} steps of '
            'the run; shorten it'
        )
    if name == 'rsqrt' and not warmup:
        raise UserError(
            "config.optim.schedule: 'rsqrt' falls from the end of the warm-up; set "
            "config.optim.warmup, as in '1000 steps'"
        )
    if name == 'wsd' and not cooldown:
        raise UserError(
            "config.optim.schedule: 'wsd' falls in the cool-down; set config.optim.cooldown, as in "
            "'20%'"
        )
    return warmup, cooldown


def not_negative(where: str, value: float) -> float:
    """The value; a UserError that names its key if it is negative or NaN."""
    if not value >= 0:
        raise UserError(f'{where}={value} is negative; it must be 0 or more')
    return value
