"""The version of a run's random streams, which config.json records beside the config.

Which numbers a run draws is part of what it is: one that resumes must draw on as it began. So
whoever changes a stream below raises VERSION, keeps the code of the earlier version for runs that
recorded it, and hands the recorded version from here to where the stream is made.

Version 1, of `seed` alone, so that resuming needs the step and nothing else:

| stream                                   | made by                                              |
|------------------------------------------|------------------------------------------------------|
| order of the training examples, by epoch | `data.pipeline.train_indices`, NumPy's PCG64         |
| random crops, by position in that order  | `data.pipeline.example_numbers` (Philox), `data.crop`|
| initial parameters, by their paths       | `state.init_variables`, jax.random                   |
| augmentation, by step and place in list  | `step.learner.Learner`, `data.augment`               |
| mixup and CutMix, by step                | `step.learner.Learner`, `data.mixing`                |
| dropout, by step and part of the batch   | `step.learner.Learner`                               |
"""

from collections.abc import Mapping
from typing import Any

from jaxtrain.errors import UserError

VERSION = 1
# Of runs that recorded none.
FIRST = 1


def check(recorded: Mapping[str, Any], workdir: object) -> None:
    """UserError if a run draws its random numbers in a way that is not known here.

    Args:
      recorded: the content of its config.json.
      workdir: the run directory, for the message.
    """
    version = recorded.get('streams', FIRST)
    if version not in range(FIRST, VERSION + 1):
        raise UserError(
            f'--workdir={workdir} draws its random numbers by version {version!r} of the streams, '
            f'and this jaxtrain knows none later than {VERSION}; resume it with the jaxtrain that '
            'began it, or a later one, or give another folder'
        )
