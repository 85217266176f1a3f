"""The version of a run's random streams, which config.json records beside the config.

The random numbers are part of a run's results, so a run that resumes must continue its streams. To
change a stream below, increase VERSION, keep the code of the earlier version for runs that recorded
it, and pass the recorded version from here to the code that makes the stream.

The streams of version 1 depend on `seed` alone, so that resuming needs only the step:

| stream                                      | code                                             |
|---------------------------------------------|--------------------------------------------------|
| order of the training examples, by epoch    | `data.pipeline.train_indices` (PCG64)            |
| random crops, by position in that order     | `data.pipeline.example_numbers` (Philox)         |
| initial parameters, by path                 | `step.state.init_variables` (jax.random)         |
| augmentation, by step and index in the list | `step.learner.Learner`, `data.on_device.augment` |
| mixup and CutMix, by step                   | `step.learner.Learner`, `data.on_device.mixing`  |
| dropout, by step and part of the batch      | `step.learner.Learner`, `step.gradients`         |
"""

from collections.abc import Mapping
from typing import Any

from jaxtrain.errors import UserError

VERSION = 1
# The version of runs that recorded none.
FIRST = 1


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
