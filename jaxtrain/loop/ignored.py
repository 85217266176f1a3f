"""Keys that a config sets but that have no effect on this run, each with the reason.

A key that nothing reads is an error (`Config.require_read`). These are read, but the values of
other keys leave them nothing to do, which the run reports in one line.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from jaxtrain.config import Config, rules
from jaxtrain.loop.cadence import Cadence
from jaxtrain.loop.job import Job
from jaxtrain.params.partition import make_partition


@dataclass(frozen=True)
class Checked:
    """A job and its cadence."""

    job: Job
    cadence: Cadence

    @property
    def cfg(self) -> Config:
        return self.job.cfg

    @property
    def evaluates(self) -> bool:
        return bool(self.cadence.val or self.cadence.test)

    def is_due(self, every: int) -> bool:
        """Whether what is due every so many steps or epochs is due before the run ends."""
        return every * self.cadence.unit <= self.cadence.steps * self.cadence.batch_size

    def clips(self) -> bool:
        """Whether the gradient of a trained parameter is clipped."""
        where, part = 'config.optim.clip_norm', self.job.learner.part
        rule_list = rules.parse(self.cfg.optim.clip_norm, where, (int, float))
        limits = rules.assign(rule_list, part.groups, where)
        return any(limits[path] for path in part.trainable)

    def freezes_norms(self) -> bool:
        """Whether a BatchNorm is frozen, whatever frozen_norm is."""
        cfg = self.cfg.updated(frozen_norm='frozen')
        return bool(make_partition(cfg, *self.job.learner.variables).frozen_norms)


# Key -> (whether it has an effect, the reason if it has none).
USES: Mapping[str, tuple[Callable[[Checked], bool], str]] = {
    'steps_per_call': (
        lambda run: run.cfg.steps_per_call in run.cadence.calls(0).counts,
        'an evaluation, a checkpoint or the end is due before so many steps are done',
    ),
    'log_every': (
        lambda run: run.is_due(run.cadence.log_every),
        'the run ends before its first line',
    ),
    'eval_every': (
        lambda run: run.is_due(run.cadence.eval_every),
        'the run ends before its first evaluation',
    ),
    'save_every': (
        lambda run: run.is_due(run.cadence.save_every),
        'the run ends before its first checkpoint',
    ),
    'eval_batch_size': (lambda run: run.evaluates, 'nothing is evaluated'),
    'budgets.eval': (lambda run: run.evaluates, 'nothing is evaluated'),
    'best_metric': (lambda run: bool(run.cadence.val), 'config.data.val is empty'),
    'mesh.rules': (
        lambda run: run.cfg.mesh.fsdp != 1 or run.cfg.mesh.tensor != 1,
        'the mesh shards no parameters',
    ),
    'init_checkpoint': (lambda run: not run.cfg.restore.origin, 'config.init_from is a file'),
    'restore.settings': (lambda run: bool(run.cfg.init_from), 'config.init_from is empty'),
    'frozen_norm': (lambda run: run.freezes_norms(), 'no BatchNorm is frozen'),
    'optim.lr_mult': (
        lambda run: any(factor != 1 for factor in run.job.optimizer.lr_mult.values()),
        'the factor of all trained parameters is 1',
    ),
    'optim.weight_decay': (
        lambda run: any(run.job.optimizer.decay.values()),
        'config.optim.decay_mult is 0 for all trained parameters',
    ),
    'optim.clip_norm': (lambda run: run.clips(), 'the limit of all trained parameters is 0'),
    'data.crop_rounding': (lambda run: bool(run.cfg.data.crop), 'config.data.crop is 0'),
    'data.interpolation': (
        lambda run: bool(run.cfg.data.image_size or run.cfg.data.crop or run.cfg.data.random_crop),
        'no image is resized or cropped',
    ),
    'data.threads': (lambda run: not run.cfg.data.workers, 'config.data.workers make the batches'),
}


def require_used(cfg: Config, run: Checked, but: tuple[str, ...] = ()) -> Job:
    """Returns the job with a remark on the keys that have no effect.

    Args:
      cfg: the config as the user wrote it.
      run: the job and its cadence.
      but: as in `Config.require_read`.

    Raises:
      UserError: a key was changed but never read.
    """
    changed = cfg.changed()
    unused = {
        key: reason for key, (works, reason) in USES.items() if key in changed and not works(run)
    }
    for field, reason in run.job.learner.model.idle().items():
        if f'model.{field}' in changed:
            unused[f'model.{field}'] = reason
    but, remarks = ('compare.', *but), run.job.remarks
    if 'init_from' in cfg.given and not cfg.init_from:
        remarks += (f'config.init_from is empty: the regime is {cfg.regime!r}',)
        # The config file may set keys for the weights that the command line takes away.
        spare = [key for key in cfg.spare(but) if key not in cfg.given]
        unused |= dict.fromkeys(spare, 'nothing reads it without weights')
        but += tuple(spare)
    cfg.require_read(but)
    if unused:
        text = ', '.join(f'config.{key} ({reason})' for key, reason in unused.items())
        remarks += (f'ignored: {text}',)
    return replace(run.job, remarks=remarks)
