"""What timm's config.json, or a checkpoint of its training program, states about weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtrain import json_file
from jaxtrain.errors import UserError
from jaxtrain.json_file import Record
from jaxtrain.models.resnet import EXPANSION, STAGES
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.origins.positions import Size, sizes_of
from jaxtrain.weights.schemas import timm as schema
from jaxtrain.weights.schemas.schema import Given, Only

POOLS = {'token': 'token', 'avg': 'mean', 'max': 'max', 'avgmax': 'avgmax'}
GELUS = {None: 'erf', 'gelu': 'erf', 'gelu_tanh': 'tanh'}
INTERPOLATIONS = ('bicubic', 'bilinear', 'nearest')
EXAMPLES = {'vit': ('vit_base_patch16_224',), 'resnet': ('resnet50',)}


@dataclass(frozen=True)
class Stated:
    """What is stated about weights.

    Attributes:
      known: whether an architecture that is known is stated.
      described: whether there is a config.json, or a checkpoint that names its architecture.
      args: the arguments with which timm makes the model.
      pool: the pooling, in our word; '' if it is not stated.
      sizes: as in `positions.Positions`.
      preprocessing: keys of `config.data`.
      classes: class names by output.
    """

    known: bool
    described: bool
    args: Record
    pool: str = ''
    sizes: tuple[tuple[Size, bool], ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def read(archive: Archive, fields: Mapping[str, Any], outputs: int) -> Stated:
    """Read what is stated about the weights of a model.

    Args:
      archive: the file.
      fields: the fields of `config.model` by the name of the model.
      outputs: width of the head, 0 without a head.

    Raises:
      UserError: a file is damaged, contradicts the arrays, or states what is refused.
    """
    given, family = archive.given, fields['name']
    path = archive.folder / 'config.json'
    written = json_file.read(path) or _of_checkpoint(archive)
    top = written or Record(given.flags[0], {})
    flat = 'pretrained_cfg' not in top
    top = _checked(top, {**schema.TOP, **(schema.PRETRAINED if flat else {})}, given, family)
    if flat:
        pretrained = top
    else:
        pretrained = _inner(top, 'pretrained_cfg')
        pretrained = _checked(pretrained, schema.PRETRAINED, given, family)
    implied = _implied(top.text('architecture', pretrained.text('architecture', '')), family)
    allowed = schema.VIT if family == 'vit' else schema.RESNET
    model_args = _checked(_inner(top, 'model_args'), allowed, given, family)
    args = Record(model_args.where, {**implied, **model_args.values}, model_args.prefix)
    _check_sizes(args, top, fields)
    _check_outputs((args, top, pretrained), outputs)
    return Stated(
        known='architecture' in top or 'architecture' in pretrained,
        described=written is not None,
        args=args,
        pool=_pool(model_args, top, args),
        sizes=_sizes(model_args, pretrained, args),
        preprocessing=_preprocessing(pretrained),
        classes=_classes(top, pretrained, outputs),
    )


def _of_checkpoint(archive: Archive) -> Record | None:
    """Return what timm's training program saves beside weights, in the form of config.json."""
    beside = archive.beside
    arguments = getattr(beside.get('args'), '__dict__', {})
    name = arguments.get('model') or beside.get('arch')
    # Without arguments, timm saves the name of the class.
    if not isinstance(name, str) or name in ('resnet', 'visiontransformer'):
        return None
    args = {**(arguments.get('model_kwargs') or {})}
    args |= {ours: arguments.get(theirs) for ours, theirs in (('global_pool', 'gp'),)}
    args |= {name: arguments.get(name) for name in ('num_classes', 'in_chans', 'img_size')}
    values = {
        'architecture': name,
        'model_args': {key: value for key, value in args.items() if value is not None},
    }
    names = ('mean', 'std', 'crop_pct', 'interpolation', 'input_size')
    cfg = {key: arguments[key] for key in names if arguments.get(key) not in (None, '')}
    return Record(f'{archive.files[0]}, args', {**values, 'pretrained_cfg': cfg})


def _inner(top: Record, name: str) -> Record:
    """Return the object in a field; one without fields if it is missing or null."""
    return top.record(name, None) or Record(top.where, {}, f'{top.prefix}{name}.')


def _checked(record: Record, allowed: Mapping, given: Given, family: str) -> Record:
    """Check a record, whose architecture must be one that the map was proven for."""
    record = given.complete(record, allowed)
    name = record.text('architecture', None) if 'architecture' in allowed else None
    if name is not None:
        proven = (name,) if _architecture(name, family) else EXAMPLES[family]
        allowed = {**allowed, 'architecture': Only(proven, 'a name map that was proven for it')}
    return given.check(record, allowed)


def _architecture(name: str, family: str) -> tuple[re.Match, dict[str, Any]] | None:
    name = name.split('.')[0].removeprefix('timm/')
    for pattern, args in schema.ARCHITECTURES[family]:
        if match := re.fullmatch(pattern, name):
            return match, args
    return None


def _implied(name: str, family: str) -> dict[str, Any]:
    """Return the arguments that the name of an architecture stands for."""
    known = _architecture(name, family)
    if known is None:
        return {}
    match, args = known
    size = match.groupdict().get('size')
    return {**args, **({'img_size': int(size)} if size else {})}


def _check_sizes(args: Record, top: Record, fields: Mapping[str, Any]) -> None:
    """Raise UserError if a size is not that of the model."""
    if fields['name'] == 'resnet':
        counts, bottleneck = STAGES[fields['depth']]
        expected: dict[str, Any] = {'layers': list(counts)}
        width = 512 * (EXPANSION if bottleneck else 1)
    else:
        width = fields['width']
        patch = fields['patch'][0]
        expected = {
            'embed_dim': width, 'depth': fields['depth'], 'mlp_ratio': fields['mlp'] / width,
            'patch_size': patch if args.values.get('patch_size') == patch else [patch, patch],
        }  # fmt: skip
    pairs = [(args, name, value) for name, value in expected.items()]
    for record, name, value in (*pairs, (top, 'num_features', width)):
        if record.values.get(name, value) not in (value, None):
            raise UserError(f'{record.at(name)}, but the model has {value}; give another --model')


def _check_outputs(records: tuple[Record, ...], outputs: int) -> None:
    for record in records:
        count = record.integer('num_classes', None)
        if count is None:
            continue
        if outputs and count != outputs:
            raise UserError(
                f'{record.at("num_classes")}, but the head has {outputs} outputs; correct the file'
            )
        return  # timm uses the first that is stated


def _pool(model_args: Record, top: Record, args: Record) -> str:
    """Return the pooling; UserError if it is not supported, or stated in two ways."""
    record = model_args if 'global_pool' in model_args else top
    if 'global_pool' not in record:
        record = args
    name = record.text('global_pool', None)
    if name is None:
        return ''
    if 'global_pool' in top and top.text('global_pool', None) not in (name, None):
        raise UserError(
            f'{record.at("global_pool")}, but {top.at("global_pool")}; correct the file'
        )
    if name not in POOLS:
        raise UserError(f'{record.at("global_pool")} is not supported, only {", ".join(POOLS)}')
    return POOLS[name]


def _sizes(model_args: Record, pretrained: Record, args: Record) -> tuple[tuple[Size, bool], ...]:
    """Return the sizes of images that are stated; that of the arguments must fit the positions."""
    sizes = sizes_of(model_args, 'img_size', strict=True)
    if (size := pretrained.numbers('input_size', None)) is not None:
        if len(size) != 3:
            raise UserError(f'{pretrained.at("input_size")} should be [channels, height, width]')
        sizes = (*sizes, ((int(size[1]), int(size[2])), False))
    return sizes or sizes_of(args, 'img_size', strict=False)


def _preprocessing(pretrained: Record) -> dict[str, Any]:
    """Return the keys of `config.data` that are stated, except for the size."""
    result: dict[str, Any] = {}
    mean, std = pretrained.numbers('mean', None), pretrained.numbers('std', None)
    if (mean is None) != (std is None):
        present = 'mean' if std is None else 'std'
        raise UserError(f'{pretrained.at(present)} stands alone; state mean and std, or neither')
    if mean:
        result |= {'mean': mean, 'std': std}
    crop, mode = pretrained.number('crop_pct', None), pretrained.text('crop_mode', None)
    if crop is not None:
        if not 0 < crop <= 1:
            raise UserError(f'{pretrained.at("crop_pct")} should be above 0, and at most 1')
        result['crop'] = crop
    if mode == 'squash' and crop == 1:
        result['crop'] = 0.0
    elif mode not in (None, 'center'):
        raise UserError(f'{pretrained.at("crop_mode")} is not supported, only "center"')
    interpolation = pretrained.text('interpolation', None)
    if interpolation is not None:
        if interpolation not in INTERPOLATIONS:
            raise UserError(
                f'{pretrained.at("interpolation")} is not supported, only '
                f'{", ".join(INTERPOLATIONS)}'
            )
        result['interpolation'] = interpolation
    return result


def _classes(top: Record, pretrained: Record, outputs: int) -> tuple[str, ...]:
    """Return the class names; UserError if their number is not that of the outputs."""
    for record, name in (
        (top, 'label_names'), (top, 'labels'), (top, 'id2label'), (pretrained, 'label_names'),
    ):  # fmt: skip
        value = record.values.get(name)
        if not value or not outputs:
            continue
        if isinstance(value, dict):
            numbers = [str(i) for i in range(len(value))]
            value = [value[i] for i in numbers] if set(numbers) == set(value) else []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise UserError(f'{record.at(name)} should be a list of names')
        if len(value) != outputs:
            raise UserError(
                f'{record.at(name)} has {len(value)} names, but the head has {outputs} outputs; '
                f'correct the file'
            )
        return tuple(value)
    return ()
