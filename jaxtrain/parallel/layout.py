"""How a run lies on its devices: the mesh, how parameters are cut over it, and what compiles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from jaxtrain.errors import UserError
from jaxtrain.parallel.replicas import Replicas, make_replicas
from jaxtrain.params.sharding import make_specs

PARALLEL = ('jit', 'pmap')


@dataclass(frozen=True)
class Layout:
    """Where a run's state and batches lie.

    Attributes:
      mesh: the devices.
      parallel: what compiles the train step, 'jit' or 'pmap'.
      replicas: what the train step does about the devices.
      specs: parameter path -> how it is cut over the mesh.
    """

    mesh: Mesh
    parallel: str
    replicas: Replicas
    specs: Mapping[str, PartitionSpec]


def make_layout(cfg, mesh: Mesh, params: Any, tensor: Sequence[tuple[str, int]]) -> Layout:
    """The layout that a config describes.

    Args:
      cfg: the config.
      mesh: that of `config.mesh`.
      params: the model's nested parameters.
      tensor: the model's dimensions that are cut over `tensor`, see `make_specs`.

    Raises:
      UserError: a sharding rule at fault, or devices that pmap cannot share a batch over.
    """
    specs = make_specs(cfg.mesh.rules, mesh, params, tensor)
    parallel = cfg.choose('parallel', PARALLEL)
    if parallel == 'pmap' and jax.process_count() > 1:
        # It cannot be compiled ahead of its first call there.
        raise UserError(
            "config.parallel='pmap' is for the devices of one process, and there are "
            f"{jax.process_count()}; set it to 'jit'"
        )
    if parallel == 'pmap' and mesh.shape['data'] != mesh.size:
        raise UserError(
            "config.parallel='pmap' only shares batches; set config.mesh.fsdp and "
            "config.mesh.tensor to 1, or config.parallel to 'jit'"
        )
    return Layout(mesh, parallel, make_replicas(mesh, parallel), specs)
