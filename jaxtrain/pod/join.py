"""Joins this process to the others of a run, before any device is touched."""

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
      stop: whether all are to stop here.
      peers: who else there is.
    """

    stop: StopRequest
    peers: Peers


@contextmanager
def join(place: Place, facts: Mapping[str, Any], timeout: float) -> Iterator[Pod]:
    """Waits for all processes, has JAX join them, and watches over them while it is open.

    Args:
      place: of this process.
      facts: what must be the same on all of them, JSON values by name.
      timeout: seconds to wait for all to be there.

    Raises:
      UserError, Preempted: as `meet`.
    """
    with StopRequest() as stop, meet(place, facts, timeout, stop.asked_here) as peers:
        if place.processes > 1:
            # JAX's own detection would take one GPU for each process under Slurm, also where a
            # process has several: those that it can see are its own.
            jax.distributed.initialize(
                place.coordinator, place.processes, place.process,
                cluster_detection_method='deactivate',
            )  # fmt: skip
            stop.spread()
        yield Pod(stop, peers)


def alone() -> Any:
    """A context with the pod of a run of one process."""
    return join(Place(), {}, 0.0)
