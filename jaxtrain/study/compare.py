"""Comparison of regimes: one checkpoint, several arms on the same data, paired seeds, a verdict.

Every arm is a variant of one config file, and each of its runs is an ordinary run of `train` in a
folder of its own. So an interrupted comparison resumes where it stopped, and each run can be
inspected separately. Each run selects its checkpoint on val, and reads test once, with that one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain import storage
from jaxtrain.config import Config, streams
from jaxtrain.config.files import load
from jaxtrain.data.sources.open import data_name, open_source
from jaxtrain.errors import UserError
from jaxtrain.loop.extension import LENGTH, check_begun
from jaxtrain.loop.train import prepare, train
from jaxtrain.optim.schedules import not_negative
from jaxtrain.pod.join import alone
from jaxtrain.runs.folder import RunDir, read_config
from jaxtrain.runs.metric import Metric
from jaxtrain.study import report
from jaxtrain.study.baselines import baselines
from jaxtrain.study.comparison import Arm, Comparison
from jaxtrain.study.pairs import pairs_of
from jaxtrain.study.stats import interval, share_interval
from jaxtrain.study.verdict import Question, verdict
from jaxtrain.tasks.task import WEIGHT
from jaxtrain.tasks.tasks import task_of
from jaxtrain.terminal import Terminal
from jaxtrain.weights import restore


def compare(path: str, overrides: list[str], workdir: str, full: str = '') -> dict[str, Any]:
    """Runs a comparison, or the rest of it, and writes its report.

    Args:
      path: a config file, without a variant; its `compare` section names the arms.
      overrides: `--config.key=value` arguments, applied to every variant.
      workdir: folder of the comparison.
      full: a finished run to start from; '' trains the variant `compare.pretrain` first.

    Returns:
      The content of compare.json.

    Raises:
      UserError: wrong input.
      Preempted: stopped by SIGTERM; the same command resumes the comparison.
    """
    if ':' in path:
        raise UserError(f'--config={path}: give the file without a variant; compare runs several')
    settings = load(path, overrides)
    arms, seeds = settings.compare.arms, settings.compare.seeds
    if seeds < 1 or len(arms) < 2 or len(set(arms)) < len(arms):
        raise UserError('config.compare needs seeds of at least 1 and at least two different arms')
    tolerance = not_negative('config.compare.tolerance', settings.compare.tolerance)
    folder = RunDir(storage.on_disk(workdir, 'compare'))
    folder.check_writable()
    name = settings.compare.pretrain or 'checkpoint'
    name = f'{name}, to start from' if name in arms else name
    pretrains = bool(settings.compare.pretrain) and not full
    start = str(folder.path / settings.compare.pretrain) if pretrains else full
    configs = {arm: _from(start, load(f'{path}:{arm}', overrides)) for arm in arms}
    metric = _metric(path, configs)
    rows = [_arm(name, [Path(full)], metric)] if full else []
    numbers = range(settings.seed, settings.seed + seeds)
    runs = {arm: [folder.path / arm / f'seed_{n}' for n in numbers] for arm in arms}
    kin = _check_arms(path, configs, runs, pretrains)
    if pretrains:
        cfg = load(f'{path}:{settings.compare.pretrain}', overrides)
        _check_length(cfg, Path(start))
        _run(cfg, start, settings.compare.pretrain, Terminal())
        rows.append(_arm(name, [Path(start)], metric))
    if start:
        kin = streams.seeds_of(read_config(start))
    # The outer loop is over seeds, so that an interrupted comparison has complete pairs.
    for place, seed in enumerate(numbers):
        for arm, cfg in configs.items():
            title, cfg = f'{arm} seed {seed}', cfg.replace(seed=seed)
            _run(cfg, runs[arm][place], title, Terminal(quiet=True, title=title), kin)

    rows += [_arm(arm, folders, metric) for arm, folders in runs.items()]
    question = _question(rows, runs, metric, tolerance)
    notes = [*_left_out(folder.path, runs), *_unpaired(runs)]
    result = Comparison(
        path, rows, runs, question, verdict(question), _baselines(runs, metric), notes
    )
    _publish(folder, result)
    return result.to_json()


def _publish(folder: RunDir, result: Comparison) -> None:
    """Writes the files of a comparison, and prints it."""
    folder.write_json('compare.json', result.to_json())
    report.write(folder, result)
    print(f'\n{report.text_table(result)}\n\n{result.verdict.text}\n')
    for note in result.notes:
        print(f'{note}\n')
    print(f'written to {folder.path}/report.md')


def _question(
    rows: list[Arm], runs: Mapping[str, list[Path]], metric: Metric, tolerance: float
) -> Question:
    """What the verdict is made from: the scores of all runs."""
    scores = {arm: _scores(folders, metric) for arm, folders in runs.items()}
    seeds, examples = next(iter(scores.values())).shape
    costs = {row.name: row.flops for row in rows if row.name in runs}
    return Question(metric, tolerance, costs, pairs_of(scores, metric), seeds, examples)


def _baselines(runs: Mapping[str, list[Path]], metric: Metric) -> dict[str, float]:
    """The scores without training on the test split of the runs."""
    written = read_config(next(iter(runs.values()))[0])
    data, classes = Config.from_json(written['config']).data, tuple(written['data']['classes'])
    return baselines(open_source(data, data.test, 'config.data.test', classes=classes), metric)


def _left_out(folder: Path, runs: Mapping[str, list[Path]]) -> list[str]:
    """A line that names the runs of the folder that are not part of the comparison, if any."""
    inside = {run for folders in runs.values() for run in folders}
    others = (path.parent for path in sorted(folder.glob('*/seed_*/config.json')))
    names = [str(run.relative_to(folder)) for run in others if run not in inside]
    return [f'Not part of this comparison: {", ".join(names)}.'] if names else []


def _unpaired(runs: Mapping[str, list[Path]]) -> list[str]:
    """A line that names the seeds at which arms have different random streams, if any."""
    drawn = {
        run: streams.of_record(read_config(run)) for folders in runs.values() for run in folders
    }
    names = [
        run.name.removeprefix('seed_')
        for run, *others in zip(*runs.values(), strict=True)
        if any(
            (drawn[run].version, drawn[run].seed) != (drawn[other].version, drawn[other].seed)
            for other in others
        )
    ]
    if not names:
        return []
    return [
        f'Not paired at seed {", ".join(names)}: some arms have another initial head and order of '
        "the data than others, because an earlier version began them, or because of config.regime='"
        "full'. Intervals hold; pairing would make them narrower."
    ]


def _from(full: str, cfg: Config) -> Config:
    """The config of an arm; if it starts from a checkpoint, then from the common one."""
    return cfg.replace(init_from=full) if cfg.init_from and full else cfg


def _metric(path: str, configs: Mapping[str, Config]) -> Metric:
    """The metric of the comparison: the main metric of the arms' task.

    Raises:
      UserError: the arms have different main metrics, or it is not a mean over examples.
    """
    tasks = {arm: task_of(cfg) for arm, cfg in configs.items()}
    metrics = {arm: task.metric(task.main) for arm, task in tasks.items()}
    (first, shared), *others = metrics.items()
    for arm, metric in others:
        if metric != shared:
            raise UserError(
                f'{path}: the main metric of {first} is {shared.name} and that of {arm} is '
                f'{metric.name}; give all arms the same config.task.name'
            )
    if not shared.is_mean:
        raise UserError(
            f'{path}: arms of config.task.name={configs[first].task.name!r} cannot be compared '
            f'yet: its main metric {shared.name} is not a mean over examples, as intervals require'
        )
    return shared


def _check_arms(
    path: str, configs: dict[str, Config], runs: Mapping[str, list[Path]], pretrains: bool
) -> tuple[int, ...]:
    """Checks all arms, before any is trained, and prints what their configs may not do as expected.

    Returns:
      The seeds of the runs that their weights descend from.

    Raises:
      UserError: anything that would stop an arm.
    """
    tests = {arm: (data_name(cfg.data), cfg.data.test) for arm, cfg in configs.items()}
    (first, shared), *others = tests.items()
    for arm, test in others:
        if test != shared:
            raise UserError(
                f'{path}: {first} is tested on {shared} and {arm} on {test}; arms can be compared '
                'only on the same data and the same config.data.test'
            )
    remarks: dict[str, list[str]] = {}
    kin: set[int] = set()
    for arm, cfg in configs.items():
        for split in ('val', 'test'):
            if not getattr(cfg.data, split):
                raise UserError(
                    f'config.data.{split} is empty in {path}:{arm}; a comparison needs val to '
                    'select checkpoints and test to compare arms, so set both'
                )
        last = cfg.replace(seed=cfg.seed + len(runs[arm]) - 1)
        job, _ = prepare(last, resumes=pretrains)  # the weights to start from may not exist yet
        kin |= set(job.streams.earlier)
        for remark in job.remarks:
            remarks.setdefault(remark, []).append(arm)
        _check_begun(cfg, runs[arm])
    for remark, names in remarks.items():
        print(f'{", ".join(names)}: {remark}')
    return tuple(kin)


def _check_begun(cfg: Config, runs: list[Path]) -> None:
    """Raises a UserError if the first run of an arm that has begun has another config."""
    for number, run in enumerate(runs):
        if (run / 'config.json').exists():
            cfg = cfg.replace(seed=cfg.seed + number)
            job, _ = prepare(cfg, True, run)
            check_begun(RunDir(run), job, cfg.unread())
            return


def _check_length(cfg: Config, start: Path) -> None:
    """Raises a UserError if the checkpoint that arms start from would be trained further."""
    if not RunDir(start).result():
        return
    for key in LENGTH:
        value, old = getattr(cfg, key), read_config(start)['config'][key]
        if value != old:
            raise UserError(
                f'config.{key} is {old} in {start}, from which arms have started, and {value} '
                'here; give another --workdir, or change only the arms'
            )


def _run(
    cfg: Config, workdir: str | Path, title: str, terminal: Terminal, kin: tuple[int, ...] = ()
) -> None:
    before = RunDir(Path(workdir)).result()
    with alone() as pod:
        result = train(cfg, workdir, terminal, pod, kin)
    seconds = sum(result['seconds'].values())
    task = task_of(cfg)
    val = result['metrics']['val'][task.main]
    spent = 'done before' if result == before else f'{seconds:.1f} s'
    print(f'{title:20} val {task.main} {val:.3f}  {spent}', flush=True)


def _arm(name: str, runs: list[Path], metric: Metric) -> Arm:
    results = []
    for run in runs:
        result = RunDir(run).result()
        if result is None:
            raise UserError(f'{run} is not a finished run (it has no result.json)')
        results.append(result)
    config = read_config(runs[0])['config']
    first, scores = results[0], _scores(runs, metric)
    return Arm(
        name=name,
        data=data_name(Config.from_json(config).data),
        init=_began(runs[0], config),
        seeds=len(runs),
        params_total=first['params_total'],
        params_trainable=first['params_trainable'],
        opt_state_bytes=first['opt_state_bytes'],
        examples_seen=first['examples_seen'],
        flops=first['flops_per_step'] * first['steps'],
        seconds=float(np.mean([sum(r['seconds'].values()) for r in results])),
        score=(share_interval if metric.percent else interval)(scores),
        by_seed=tuple(float(x) for x in scores.mean(1)),
    )


def _began(workdir: Path, config: dict[str, Any]) -> str:
    """Names what a run started from; weights of which it loaded nothing do not count."""
    plan = storage.read_json(workdir / 'restore.json') or {'leaves': ()}
    if not any(leaf['action'] in restore.TAKEN for leaf in plan['leaves']):
        return 'random'
    return f'{Path(config["init_from"]).name} ({config["init_checkpoint"]})'


def _scores(runs: list[Path], metric: Metric) -> np.ndarray:
    """The metric for each run and test example, float [runs, examples]."""
    tables = {run: dict(np.load(run / 'test.npz')) for run in runs}
    for run, rows in tables.items():
        if metric.name not in rows:
            raise UserError(f'{run} has no test {metric.name}, by which the arms are compared')
    return np.stack([by_example(rows, metric.name) for rows in tables.values()])


def by_example(rows: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A column of test.npz, float [examples], whose plain mean is the metric.

    If examples have weights, each value is replaced by its contribution to the weighted mean: the
    plain mean of the contributions and its variance are those of the weighted mean (the usual
    linearisation of a ratio).
    """
    values = rows[name]
    if WEIGHT not in rows:
        return values
    weight = rows[WEIGHT].astype(np.float64)
    mean = np.average(values.astype(np.float64), weights=weight)
    return mean + weight / weight.mean() * (values - mean)
