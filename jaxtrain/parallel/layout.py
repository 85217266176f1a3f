"""The layout of a run on its devices: mesh, sharding of parameters, and jit or pmap."""

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
    """How state and batches are distributed over devices.

    Attributes:
      mesh: the devices.
      parallel: the transformation that compiles the train step, 'jit' or 'pmap'.
      replicas: operations across devices within the train step.
      specs: parameter path -> its sharding.
    """

    mesh: Mesh
    parallel: str
    replicas: Replicas
    specs: Mapping[str, PartitionSpec]


def make_layout(cfg, mesh: Mesh, params: Any, tensor: Sequence[tuple[str, int]]) -> Layout:
    """The layout that a config describes.

    Args:
      cfg: the config.
      mesh: the mesh of `config.mesh`.
      params: the model's nested parameters.
      tensor: the model's dimensions that are sharded over `tensor`, see `make_specs`.

    Raises:
      UserError: an invalid sharding rule, or a mesh or number of processes that pmap does not
        support.
    """
    specs = make_specs(cfg.mesh.rules, mesh, params, tensor)
    parallel = cfg.choose('parallel', PARALLEL)
    if parallel == 'pmap' and jax.process_count() > 1:
        # With several processes, pmap cannot be compiled before its first call.
        raise UserError(
            "config.parallel='pmap' supports a single process, but there are "
            f"{jax.process_count()}; set it to 'jit'"
        )
    if parallel == 'pmap' and mesh.shape['data'] != mesh.size:
        raise UserError(
            "config.parallel='pmap' only shards batches; set config.mesh.fsdp and "
            "config.mesh.tensor to 1, or config.parallel to 'jit'"
        )
    return Layout(mesh, parallel, make_replicas(mesh, parallel), specs)
