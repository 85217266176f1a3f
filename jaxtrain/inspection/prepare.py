"""Jobs for commands that train nothing, and so need no examples."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxtrain.config import Config
from jaxtrain.data.sources.absent import absent_source, is_here
from jaxtrain.data.sources.open import Source, open_source
from jaxtrain.loop.cadence import make_cadence
from jaxtrain.loop.ignored import Checked, require_used
from jaxtrain.loop.job import Job, make_job


def prepare(cfg: Config, devices: Sequence[jax.Device] = ()) -> Job:
    """Makes the job, with all checks that `train` makes before it compiles.

    Args:
      cfg: the config.
      devices: devices to compile for; () for those of this machine.

    Raises:
      UserError: anything that would prevent `train` from starting on these devices.
    """
    job = make_job(cfg, devices=devices, opens=open_or_absent)
    cadence = make_cadence(job.cfg, job, open_or_absent)
    # The description of absent examples does not depend on the keys for reading them.
    return require_used(cfg, Checked(job, cadence), () if is_here(cfg.data) else ('data.',))


def open_or_absent(data, *args: Any, **options: Any) -> Source:
    """Opens a source, or one without examples for a data set that is not on this machine: its size
    and shape are known, and nothing is downloaded.
    """
    return (open_source if is_here(data) else absent_source)(data, *args, **options)
