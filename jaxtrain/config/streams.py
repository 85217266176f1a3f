"""The random streams of a run, and their version, which config.json records beside the config.

The random numbers are part of a run's results, so a run that resumes must continue its streams. To
change a stream below, or anything else that changes the numbers of a run of the same config,
increase VERSION, keep the code of the earlier version for runs that recorded it, and pass the
recorded version from here to the code that makes the stream.

Every stream depends on one seed alone (`Streams.seed`), so that resuming needs only the step:

| stream                                      | code                                             |
|---------------------------------------------|--------------------------------------------------|
| order of the training examples, by epoch    | `data.pipeline.train_indices`                    |
| random crops, by position in that order     | `data.pipeline.example_numbers` (Philox)         |
| initial parameters, by path                 | `step.state.init_variables` (jax.random)         |
| augmentation, by step and index in the list | `step.learner.Learner`, `data.on_device.augment` |
| mixup and CutMix, by step                   | `step.learner.Learner`, `data.on_device.mixing`  |
| dropout, by step and part of the batch      | `step.learner.Learner`, `step.gradients`         |

| version | seed of the streams                | order           | rules of optim.clip_norm       |
|---------|------------------------------------|-----------------|--------------------------------|
| 1       | `config.seed`                      | PCG64, an array | equal limits share one norm    |
| 2       | drawn from `config.seed`, see      | per index       | the gradients of each rule are |
|         | `begin`                            |                 | clipped by a norm of their own |
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.errors import UserError

VERSION = 2
# The version of runs that recorded none.
FIRST = 1


@dataclass(frozen=True)
class Streams:
    """The random streams of a run.

    Attributes:
      seed: the seed of all streams, uint32.
      earlier: the seeds of the runs that its weights descend from, the earliest first.
      version: the version of the streams.
    """

    seed: int
    earlier: tuple[int, ...] = ()
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """The entries of config.json."""
        return {'streams': self.version, 'seeds': [*self.earlier, self.seed]}


def begin(
    config_seed: int, regime: str, earlier: tuple[int, ...], kin: tuple[int, ...] = ()
) -> Streams:
    """Returns the streams of a new run.

    Its seed is none of the earlier ones, so that fine-tuning shares no stream with the pretraining,
    and no new head is one that an earlier run began with. Runs of the regime 'full' draw from other
    seeds than the others. Therefore runs from scratch, and those that start from a pretrained
    checkpoint, have the same seed: the arms of a comparison share their new head and the order of
    the data.

    Args:
      config_seed: `config.seed`, 0 to 2**32 - 1.
      regime: `config.regime`.
      earlier: the seeds of the runs that its weights descend from.
      kin: seeds that it does not draw either: those of the runs that the weights of other arms of
        its comparison descend from, so that all arms draw the same seed.
    """
    draws = (_draw(config_seed, int(regime != 'full'), number) for number in itertools.count())
    return Streams(next(seed for seed in draws if seed not in (*earlier, *kin)), earlier)


def _draw(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def of_record(recorded: Mapping[str, Any]) -> Streams:
    """Returns the streams of a run from the content of its config.json."""
    *earlier, seed = seeds_of(recorded)
    return Streams(seed, tuple(earlier), recorded.get('streams', FIRST))


def seeds_of(recorded: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the seeds of a run and of those that its weights descend from, its own last.

    Runs of version 1 used `config.seed`, and recorded no others.
    """
    return tuple(recorded.get('seeds', (recorded['config']['seed'],)))


def check(recorded: Mapping[str, Any], workdir: object) -> None:
    """Raises a UserError if a run uses a version of the random streams that is not supported here.

    Args:
      recorded: the content of its config.json.
      workdir: the run directory, for the message.
    """
    version = recorded.get('streams', FIRST)
    if version not in range(FIRST, VERSION + 1):
        raise UserError(
            f'--workdir={workdir} uses version {version!r} of the random streams, and this version '
            f'of jaxtrain supports versions up to {VERSION}; resume the run with the jaxtrain that '
            'started it, or a later one, or give another folder'
        )
