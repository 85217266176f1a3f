"""Models by name. Each is a Linen module whose parameters are `{'backbone': ..., 'head': ...}`.

The fields of a model's class are its keys in the config, and `make_model` checks the config against
them. `READS` is the meaning of the input feature, 'image' or 'tokens'.
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
# Layers that draw random numbers for each row of a batch.
DROPOUTS = (nn.Dropout, DropPath)


def make_model(cfg, outputs: int) -> Family:
    """The model that `config.model` names, with `outputs` output units.

    Raises:
      UserError: unknown model, unknown key, or a value of the wrong type.
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
    """Raises a UserError if a model cannot read the inputs of a data set.

    Args:
      model: the model.
      meaning: meaning of the input feature.
      tokenizer: the tokenizer of the data, with `size` and `pad`; None for images.
    """
    name = _name(model)
    if meaning != model.READS:
        raise UserError(
            f'config.model: {name} reads {_KINDS[model.READS]}, but the data is '
            f'{_KINDS[meaning]}; choose another config.model.name or config.data.source'
        )
    if tokenizer is None:
        return
    vocabulary = getattr(model, 'vocabulary', tokenizer.size)
    if tokenizer.size > vocabulary:
        raise UserError(
            f'config.model: {name} has {vocabulary} tokens, but config.data.tokenizer has '
            f'{tokenizer.size}; use the tokenizer of the weights, or set config.model.vocabulary'
        )
    pad = getattr(model, 'pad', tokenizer.pad)
    if tokenizer.pad != pad:
        raise UserError(
            f'config.model.pad={pad}, but config.data.tokenizer pads texts with token '
            f'{tokenizer.pad}; set it to that, or use the tokenizer of the weights'
        )


def describe(model: Family) -> dict[str, Any]:
    """The name and all fields of a model, including defaults, for the resolved config."""
    return {'name': _name(model), **{k: getattr(model, k) for k in _defaults(type(model))}}


def with_defaults(described: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in fields that did not exist yet when `describe` wrote a config."""
    cls = MODELS.get(described['name'])
    return {**(_defaults(cls) if cls else {}), **described}


def split_scan(model: Family, trained: Mapping[str, bool]) -> Family:
    """Splits the loop over a model's blocks where blocks differ in which parameters are trained.

    Args:
      model: a Linen module.
      trained: parameter path -> whether it is trained.

    Returns:
      The model with `scan_ends` set; a model that does not use a loop is returned unchanged.
    """
    if not getattr(model, 'scan', False):
        return model
    blocks: dict[int, dict[str, bool]] = {}
    for path, is_trained in trained.items():
        if match := re.fullmatch(r'backbone/block_(\d+)/(.*)', path):
            blocks.setdefault(int(match[1]), {})[match[2]] = is_trained
    ends = tuple(i for i in range(1, len(blocks)) if blocks[i] != blocks[i - 1])
    return model.clone(scan_ends=ends)


def fixed_fields(name: str) -> dict[str, Any]:
    """The fields in `FIXED`, with their defaults: they change what restored weights compute, but no
    parameter shape shows them. {} for an unknown model.
    """
    if name not in MODELS:
        return {}
    cls = MODELS[name]
    return {k: default for k, default in _defaults(cls).items() if k in cls.FIXED}


def _defaults(cls: type[Family]) -> dict[str, Any]:
    """The fields of a model class that a config can set, with their defaults."""
    fields = dataclasses.fields(cls)
    return {f.name: f.default for f in fields if f.init and f.name not in _INTERNAL}


def _name(model: Family) -> str:
    return next(name for name, cls in MODELS.items() if type(model) is cls)


_KINDS = {'image': 'images', 'tokens': 'text'}
# Fields that are not config keys: `split_scan` sets scan_ends, pmap needs axis.
_INTERNAL = ('parent', 'name', 'outputs', 'scan_ends', 'axis')
