"""Tasks by name."""

from dataclasses import replace

from jaxtrain.data.sources.source import Source
from jaxtrain.errors import UserError
from jaxtrain.runs.metric import Metric
from jaxtrain.tasks import binary, classify, lm
from jaxtrain.tasks.task import Task

TASKS = {'classify': classify.TASK, 'binary': binary.TASK, 'lm': lm.TASK}


def task_of(cfg) -> Task:
    """The task that `config.task.name` names. Raises a UserError if it is unknown."""
    return TASKS[cfg.task.choose('name', TASKS)]


def best_metric(cfg) -> Metric:
    """The metric that `config.best_metric` names; by default the main metric of the task.

    Raises:
      UserError: an unknown task, or a metric that the task does not have.
    """
    task = task_of(cfg)
    return task.metric(cfg.best_metric and cfg.choose('best_metric', task.names) or task.main)


def make_task(cfg, source: Source) -> Task:
    """The task that `config.task` describes, for data like that of the source.

    Raises:
      UserError: an unknown task, a task that does not fit the data, or label smoothing outside
        [0, 1].
    """
    task = task_of(cfg)
    if task.smoothing is not None:
        smoothing = cfg.task.label_smoothing
        if not 0 <= smoothing <= 1:
            raise UserError(f'config.task.label_smoothing={smoothing} must lie between 0 and 1')
        task = replace(task, smoothing=smoothing)
    meanings = {feature.meaning for feature in source.features.values()}
    if task.label not in meanings:
        fit = [repr(name) for name, other in TASKS.items() if other.label in meanings]
        raise UserError(
            f'config.task.name={cfg.task.name!r} does not fit data of config.data.source='
            f'{cfg.data.source!r}; set it to {" or ".join(fit)}'
        )
    task.outputs(source)  # raises a UserError if the labels do not fit
    return task
