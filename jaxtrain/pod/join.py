"""Connects this process to the others of a run, before any device is used."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

from jaxtrain.pod.meet import meet
from jaxtrain.pod.peers import Peers
from jaxtrain.pod.place import Place
from jaxtrain.pod.stop import StopRequest


@dataclass(frozen=True)
class Pod:
    """What a process shares with the others of its run.

    Attributes:
      stop: the request to stop, which all processes answer at the same step.
      peers: the other processes.
    """

    stop: StopRequest
    peers: Peers


@contextmanager
def join(place: Place, facts: Mapping[str, Any], timeout: float) -> Iterator[Pod]:
    """Waits for all processes, initializes JAX on them, and watches them while it is open.

    Args:
      place: the place of this process.
      facts: what must be the same on all processes, JSON values by name.
      timeout: seconds to wait for all processes to connect.

    Raises:
      UserError, Preempted: see `meet`.
    """
    with StopRequest() as stop, meet(place, facts, timeout, stop.asked_here) as peers:
        if place.processes > 1:
            # Under Slurm, JAX's own detection would assign one GPU to each process, even if a
            # process has several; here a process uses all GPUs that are visible to it.
            jax.distributed.initialize(
                place.coordinator, place.processes, place.process,
                cluster_detection_method='deactivate',
            )  # fmt: skip
            stop.spread()
        yield Pod(stop, peers)


def alone() -> Any:
    """A context with the pod of a run that has one process."""
    return join(Place(), {}, 0.0)
