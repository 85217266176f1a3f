"""The regimes side by side: one checkpoint, several arms on the same data, paired seeds, a verdict.

Every arm is a variant of one config file and an ordinary run of `train` in a folder of its own, so
an interrupted comparison goes on where it stopped, and each run can be looked at by itself. Within
a run the checkpoint is chosen on val, and test is read once, with that checkpoint.
"""

from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain import storage
from jaxtrain.config import Config
from jaxtrain.config.files import load
from jaxtrain.data.sources.open import data_name
from jaxtrain.errors import UserError
from jaxtrain.loop.train import prepare, train
from jaxtrain.pod.join import alone
from jaxtrain.runs.run import RunDir, read_config
from jaxtrain.study import report
from jaxtrain.study.stats import interval
from jaxtrain.study.verdict import Arm, Pair, verdict
from jaxtrain.terminal import Terminal
from jaxtrain.weights import restore

# The metric of test.npz that arms are compared by.
METRIC = 'accuracy'


def compare(path: str, overrides: list[str], workdir: str, full: str = '') -> dict[str, Any]:
    """Runs a comparison, or what is left of it, and writes its report.

    Args:
      path: a config file, without a variant; its `compare` section names the arms.
      overrides: `--config.key=value` words, applied to every variant.
      workdir: folder of the comparison.
      full: a finished run to start from; '' trains the variant `compare.pretrain` first.

    Returns:
      The content of compare.json.

    Raises:
      UserError: wrong input; Preempted: stopped by SIGTERM, to be started again.
    """
    if ':' in path:
        raise UserError(f'--config={path}: give the file without a variant; compare runs several')
    settings = load(path, overrides)
    arms, seeds = settings.compare.arms, settings.compare.seeds
    if seeds < 1 or len(arms) < 2:
        raise UserError('config.compare needs seeds of at least 1 and at least two arms')
    folder = RunDir(storage.on_disk(workdir, 'compare'))
    folder.check_writable()
    name = settings.compare.pretrain or 'checkpoint'
    rows = [_arm(name, [Path(full)])] if full else []
    pretrains = bool(settings.compare.pretrain) and not full
    if pretrains:
        full = str(folder.path / settings.compare.pretrain)
    configs = {arm: _from(full, load(f'{path}:{arm}', overrides)) for arm in arms}
    _check_arms(path, configs, pretrains)
    if pretrains:
        _run(load(f'{path}:{settings.compare.pretrain}', overrides), full, 'full', Terminal())
        rows.append(_arm(name, [Path(full)]))
    # Seed by seed, so that an interrupted comparison holds whole pairs.
    for seed in range(settings.seed, settings.seed + seeds):
        for arm, cfg in configs.items():
            title, cfg = f'{arm} seed {seed}', cfg.replace(seed=seed)
            _run(cfg, folder.path / arm / f'seed_{seed}', title, Terminal(quiet=True, title=title))

    runs = {
        arm: [folder.path / arm / f'seed_{settings.seed + n}' for n in range(seeds)] for arm in arms
    }
    rows += [_arm(arm, found) for arm, found in runs.items()]
    scores = {arm: _scores(found) for arm, found in runs.items()}
    pairs = [Pair(b, a, interval(scores[b] - scores[a])) for a, b in combinations(arms, 2)]
    result: dict[str, Any] = {
        'config': path,
        'arms': [asdict(row) for row in rows],
        'pairs': [asdict(pair) for pair in pairs],
        'verdict': verdict(arms, pairs, {row.name: row.accuracy.mean for row in rows}),
    }
    folder.write_json('compare.json', result)
    report.write(folder, path, rows, pairs, result['verdict'], runs)
    print(
        f'\n{report.text_table(rows)}\n\n{result["verdict"]}\n\nwritten to {folder.path}/report.md'
    )
    return result


def _from(full: str, cfg: Config) -> Config:
    """The config of an arm, which starts from the common checkpoint if it starts from any."""
    return cfg.replace(init_from=full) if cfg.init_from and full else cfg


def _check_arms(path: str, configs: dict[str, Config], pretrains: bool) -> None:
    """UserError for whatever would stop an arm, before the first minute is spent on another."""
    tests = {arm: (data_name(cfg.data), cfg.data.test) for arm, cfg in configs.items()}
    (first, shared), *others = tests.items()
    for arm, test in others:
        if test != shared:
            raise UserError(
                f'{path}: {first} is tested on {shared} and {arm} on {test}; arms can be compared '
                'on the same data and the same config.data.test only'
            )
    for arm, cfg in configs.items():
        for split in ('val', 'test'):
            if not getattr(cfg.data, split):
                raise UserError(
                    f'config.data.{split} is empty in {path}:{arm}; a comparison chooses on val '
                    'and compares on test, so give it both'
                )
        prepare(cfg, resumes=pretrains)  # what to start from is not there yet


def _run(cfg: Config, workdir: str | Path, title: str, terminal: Terminal) -> None:
    done = RunDir(Path(workdir)).result() is not None
    with alone() as pod:
        result = train(cfg, workdir, terminal, pod)
    seconds = sum(result['seconds'].values())
    val = result['metrics']['val'][METRIC]
    said = 'done before' if done else f'{seconds:.1f} s'
    print(f'{title:20} val {METRIC} {val:.3f}  {said}', flush=True)


def _arm(name: str, runs: list[Path]) -> Arm:
    results = []
    for run in runs:
        result = RunDir(run).result()
        if result is None:
            raise UserError(f'{run} is not a finished run (it has no result.json)')
        results.append(result)
    config = read_config(runs[0])['config']
    first, scores = results[0], _scores(runs)
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
        accuracy=interval(scores),
        by_seed=tuple(float(x) for x in scores.mean(1)),
    )


def _began(workdir: Path, config: dict[str, Any]) -> str:
    """What a run began with, in words; weights of which it took nothing do not count."""
    plan = storage.read_json(workdir / 'restore.json') or {'leaves': ()}
    if not any(leaf['action'] in restore.TAKEN for leaf in plan['leaves']):
        return 'random'
    return f'{Path(config["init_from"]).name} ({config["init_checkpoint"]})'


def _scores(runs: list[Path]) -> np.ndarray:
    """Right or wrong for each run and test example, float [runs, examples]."""
    return np.stack([np.load(run / 'test.npz')[METRIC] for run in runs])
