"""The content of a comparison: its rows, pairs, baselines and verdict."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtrain.runs.metric import Metric
from jaxtrain.study.stats import Interval
from jaxtrain.study.verdict import Question, Verdict


@dataclass(frozen=True)
class Arm:
    """A row of the table; costs are per run, as means over the seeds.

    Attributes:
      name: the variant of the config file.
      data: the data set for training and test.
      init: 'random', or the checkpoint.
      seeds: number of runs.
      flops: floating point operations of training.
      seconds: total time, including compilation and evaluation.
      score: mean of the test metric with its interval.
      by_seed: the test metric of each run.
    """

    name: str
    data: str
    init: str
    seeds: int
    params_total: int
    params_trainable: int
    opt_state_bytes: int
    examples_seen: int
    flops: float
    seconds: float
    score: Interval
    by_seed: tuple[float, ...]

    def to_json(self, metric: Metric) -> dict[str, Any]:
        """The row in compare.json, in which the key of the score is the name of the metric."""
        return {metric.name if k == 'score' else k: value for k, value in asdict(self).items()}


@dataclass(frozen=True)
class Comparison:
    """The content of a report.

    Attributes:
      config: the config file.
      rows: rows of the table, after that of the run that arms start from, if there is one.
      runs: the folders of each arm's runs.
      question: metric, tolerance and pairs.
      verdict: the conclusion.
      baselines: scores without training, by name.
      notes: lines on runs that are not part of the comparison, or not paired.
    """

    config: str
    rows: list[Arm]
    runs: Mapping[str, list[Path]]
    question: Question
    verdict: Verdict
    baselines: Mapping[str, float]
    notes: list[str]

    @property
    def metric(self) -> Metric:
        return self.question.metric

    @property
    def arms(self) -> list[Arm]:
        """The rows of the arms."""
        return [row for row in self.rows if row.name in self.runs]

    def to_json(self) -> dict[str, Any]:
        """The content of compare.json."""
        return {
            'config': self.config,
            'arms': [row.to_json(self.metric) for row in self.rows],
            'baselines': dict(self.baselines),
            'pairs': [pair.to_json() for pair in self.question.pairs],
            'tolerance': self.question.tolerance,
            'choice': self.verdict.choice,
            'decided': self.verdict.decided,
            'verdict': self.verdict.text,
        }
