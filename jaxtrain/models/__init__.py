"""Models by name. Each is a Linen module whose parameters are `{'backbone': ..., 'head': ...}`.

A model's keys in the config are the fields of its class; `make_model` checks them against it. Its
`reads` is the meaning of the feature that it is given, 'image' or 'tokens'.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from jaxtrain.errors import UserError, nearest
from jaxtrain.models.bert import BERT
from jaxtrain.models.cnn import CNN
from jaxtrain.models.gpt import GPT
from jaxtrain.models.mlp import MLP
from jaxtrain.models.parts.family import Family
from jaxtrain.models.parts.transformer import DropPath
from jaxtrain.models.resnet import ResNet
from jaxtrain.models.vgg import VGG
from jaxtrain.models.vit import ViT

MODELS: dict[str, type[Family]] = {
    'bert': BERT,
    'cnn': CNN,
    'gpt': GPT,
    'mlp': MLP,
    'resnet': ResNet,
    'vgg': VGG,
    'vit': ViT,
}
# The layers that draw a random number for each row of a batch.
DROPOUTS = (nn.Dropout, DropPath)


def make_model(cfg, outputs: int) -> Family:
    """The model that `config.model` names, with `outputs` output units.

    Raises:
      UserError: an unknown model, a key that it does not have, or a value of another type.
    """
    cls = MODELS[cfg.choose('name', MODELS)]
    fields = _defaults(cls)
    given = {name: value for name, value in cfg.items() if name != 'name'}
    for name, value in given.items():
        if name not in fields:
            raise UserError(
                f'config.model.{name}: model {cfg.name!r} has no such field'
                f'{nearest(name, fields)}; it has {", ".join(fields)}'
            )
        default = fields[name]
        number = isinstance(default, float) and type(value) is int
        if not number and type(value) is not type(default):
            raise UserError(
                f'config.model.{name}={value!r} is not a {type(default).__name__}, '
                f'like the default {default!r}'
            )
    return cls(outputs=outputs, **given)


def check_inputs(model: Family, meaning: str, tokenizer) -> None:
    """UserError if a model cannot take the inputs of a data set.

    Args:
      model: a model.
      meaning: of the feature that it is to be given.
      tokenizer: of that data, with `size` and `pad`; None for images.
    """
    name = _name(model)
    if meaning != model.READS:
        raise UserError(
            f'config.model: {name} is a model of {_KINDS[model.READS]}, and the data is '
            f'{_KINDS[meaning]}; choose another config.model.name or config.data.source'
        )
    if tokenizer is None:
        return
    room = getattr(model, 'vocabulary', tokenizer.size)
    if tokenizer.size > room:
        raise UserError(
            f'config.model: {name} has {room} tokens, but config.data.tokenizer makes '
            f'{tokenizer.size}; take the tokenizer of the weights, or set config.model.vocabulary'
        )
    pad = getattr(model, 'pad', tokenizer.pad)
    if tokenizer.pad != pad:
        raise UserError(
            f'config.model.pad={pad}, but config.data.tokenizer fills texts up with token '
            f'{tokenizer.pad}; set it to that, or take the tokenizer of the weights'
        )


def describe(model: Family) -> dict[str, Any]:
    """Every field of a model with its value, defaults included, for the resolved config."""
    return {'name': _name(model), **{k: getattr(model, k) for k in _defaults(type(model))}}


def with_defaults(described: Mapping[str, Any]) -> dict[str, Any]:
    """What `describe` gave of a model before its class had some of today's fields, with these."""
    cls = MODELS.get(described['name'])
    return {**(_defaults(cls) if cls else {}), **described}


def split_scan(model: Family, trained: Mapping[str, bool]) -> Family:
    """A model whose blocks are run by loops, with a loop of its own for each stretch of blocks that
    are trained alike; any other model as it is.

    Args:
      model: a Linen module.
      trained: whether a parameter is trained, by its path.
    """
    if not getattr(model, 'scan', False):
        return model
    blocks: dict[int, dict[str, bool]] = {}
    for path, is_trained in trained.items():
        if found := re.fullmatch(r'backbone/block_(\d+)/(.*)', path):
            blocks.setdefault(int(found[1]), {})[found[2]] = is_trained
    ends = tuple(i for i in range(1, len(blocks)) if blocks[i] != blocks[i - 1])
    return model.clone(scan_ends=ends)


def fixed_fields(name: str) -> dict[str, Any]:
    """The fields of a model, with their defaults, that change what restored weights compute but
    show in no shape; {} for a model that does not exist.
    """
    if name not in MODELS:
        return {}
    cls = MODELS[name]
    return {k: default for k, default in _defaults(cls).items() if k in cls.FIXED}


def _defaults(cls: type[Family]) -> dict[str, Any]:
    """The fields of a model's class that a config may set."""
    return {f.name: f.default for f in dataclasses.fields(cls) if f.init and f.name not in _OWN}


def _name(model: Family) -> str:
    return next(name for name, cls in MODELS.items() if type(model) is cls)


_KINDS = {'image': 'images', 'tokens': 'text'}
# Fields that a job sets and no config: scan_ends by `split_scan`, axis for pmap.
_OWN = ('parent', 'name', 'outputs', 'scan_ends', 'axis')
