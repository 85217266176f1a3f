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

| version | seed of the streams              | order           | rules of optim.clip_norm       |
|---------|----------------------------------|-----------------|--------------------------------|
| 1       | `config.seed`                    | PCG64, an array | equal limits share one norm    |
| 2       | from `config.seed` and a lineage | per index       | the gradients of each rule are |
|         |                                  |                 | clipped by a norm of their own |

The lineage of a run is the regimes of the runs that its weights descend from, the earliest first,
and its own. The seed differs between the runs of a lineage, so that fine-tuning shares no stream
with the pretraining, and no new head is one that an earlier run began with. The seed is the same
for runs from scratch and for those that start from a pretrained checkpoint, so that
the arms of a comparison share their new head and the order of the data.
"""

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
      config_seed: `config.seed`, 0 to 2**32 - 1.
      lineage: the regimes of the runs that the weights descend from, and of this run.
      version: the version of the streams.
    """

    config_seed: int
    lineage: tuple[str, ...]
    version: int = VERSION

    @property
    def seed(self) -> int:
        """The seed of all streams, uint32."""
        if self.version == FIRST:
            return self.config_seed
        *before, own = (regime == 'full' for regime in self.lineage)
        entropy = (self.config_seed, int(not own), before.count(own))
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def to_json(self) -> dict[str, Any]:
        """The entries of config.json."""
        return {'streams': self.version, 'lineage': list(self.lineage)}


def of_record(recorded: Mapping[str, Any], seed: int) -> Streams:
    """Returns the streams of a run.

    Args:
      recorded: the content of its config.json.
      seed: its `config.seed`.
    """
    lineage = tuple(recorded.get('lineage', (recorded['config']['regime'],)))
    return Streams(seed, lineage, recorded.get('streams', FIRST))


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
