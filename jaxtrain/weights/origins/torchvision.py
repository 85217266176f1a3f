"""torchvision's names of ResNet and VGG, as in its state dicts (torchvision_vit.py has the ViT's).

Preprocessing is that of the IMAGENET1K_V1 weights: a 224x224 crop out of 256, bilinear.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxtrain.data.features import IMAGE, feature
from jaxtrain.errors import UserError
from jaxtrain.json_file import Record
from jaxtrain.models import resnet as resnets
from jaxtrain.models import vgg as vggs
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.origins.names import CONV, DENSE, SAME1, Match, Row, expand, row
from jaxtrain.weights.schemas.schema import Given, computed

PREPROCESSING = {
    'crop': 0.875,
    'interpolation': 'bilinear',
    'scale': 255.0,
    'mean': (0.485, 0.456, 0.406),
    'std': (0.229, 0.224, 0.225),
    'channel_order': 'rgb',
}

MODELS: dict[str, dict[str, Any]] = {
    **{f'resnet{depth}': {'name': 'resnet', 'depth': depth} for depth in resnets.STAGES},
    **{
        f'vgg{depth}': {'name': 'vgg', 'depth': depth, 'pool': 7, 'hidden': (4096, 4096)}
        for depth in vggs.CONVOLUTIONS
    },
}

# torchvision's training program keeps averaged weights as 'model_ema', and resumes from 'model'.
STATE_DICTS = ('model', 'state_dict')

IGNORED = ((r'(.*\.)?num_batches_tracked', 'a counter used only in training'),)


def _norm(source: str, target: str) -> tuple[Row, ...]:
    return (
        row(f'{source}.weight', f'{target}/scale', SAME1),
        row(f'{source}.bias', f'{target}/bias', SAME1),
        row(f'{source}.running_mean', f'{target}/mean', SAME1),
        row(f'{source}.running_var', f'{target}/var', SAME1),
    )


STEM = (row('conv1.weight', 'backbone/conv_0/kernel', CONV), *_norm('bn1', 'backbone/norm_0'))
LAYER = (
    row('layer{s}.{b}.conv{i}.weight', 'backbone/stage{s}_block{b}/conv_{i}/kernel', CONV),
    *_norm('layer{s}.{b}.bn{i}', 'backbone/stage{s}_block{b}/norm_{i}'),
)
DOWN = (
    row('layer{s}.0.downsample.0.weight', 'backbone/stage{s}_block0/conv_down/kernel', CONV),
    *_norm('layer{s}.0.downsample.1', 'backbone/stage{s}_block0/norm_down'),
)
FC = (row('fc.weight', 'head/logits/kernel', DENSE), row('fc.bias', 'head/logits/bias', SAME1))


def resnet_rows(fields: dict, outputs: int) -> tuple[Row, ...]:
    """Return the map of a ResNet, which timm names in the same way."""
    counts, bottleneck = resnets.STAGES[fields['depth']]
    table = list(STEM)
    for s, count in enumerate(counts, start=1):
        for b in range(count):
            for i in range(1, 4 if bottleneck else 3):
                table += expand(LAYER, s=s, b=b, i=i)
        # In networks without bottlenecks, the first stage keeps width and size.
        table += expand(DOWN, s=s) if bottleneck or s > 1 else ()
    return (*table, *(FC if outputs else ()))


CONVOLUTION = (
    row('features.{i}.weight', 'backbone/{name}/kernel', CONV),
    row('features.{i}.bias', 'backbone/{name}/bias', SAME1),
)
DENSE_LAYER = (
    row('classifier.{i}.weight', 'head/{name}/kernel', DENSE),
    row('classifier.{i}.bias', 'head/{name}/bias', SAME1),
)
# torchvision flattens features as (channels, rows, columns), jaxtrain as (rows, columns, channels).
FIRST_DENSE = (
    row('classifier.0.weight', 'head/dense_0/kernel', '(h w c) o -> o (c h w)', h=7, w=7, c=512),
    row('classifier.0.bias', 'head/dense_0/bias', SAME1),
)


def _vgg_rows(fields: dict, outputs: int) -> tuple[Row, ...]:
    table, i = [], 0
    for block, count in enumerate(vggs.CONVOLUTIONS[fields['depth']], start=1):
        for number in range(1, count + 1):
            table += expand(CONVOLUTION, i=i, name=f'block{block}_conv{number}')
            i += 2  # a ReLU follows each convolution
        i += 1  # a pooling layer follows each block
    if outputs:
        table += FIRST_DENSE
        table += expand(DENSE_LAYER, i=3, name='dense_1')
        table += expand(DENSE_LAYER, i=6, name='logits')
    return tuple(table)


ROWS = {'resnet': resnet_rows, 'vgg': _vgg_rows}
HEADS = {'resnet': 'fc.bias', 'vgg': 'classifier.6.bias'}
STEMS = {'resnet': 'conv1.weight', 'vgg': 'features.0.weight'}


def rows(fields: dict, outputs: int) -> tuple[Row, ...]:
    """Return the map of a model with these fields; without a head if `outputs` is 0."""
    return ROWS[fields['name']](fields, outputs)


def match(archive: Archive, model: str) -> Match:
    """Match a file to one of MODELS."""
    plain = plain_match(archive, model)
    settings, assumed = for_weights(archive.given, plain.preprocessing or {})
    words = 'layers without parameters, strides and dilation are those of the plain model'
    return replace(plain, preprocessing=settings, assumed=(*assumed, words))


def plain_match(archive: Archive, model: str) -> Match:
    """Match a file of a ResNet or VGG, without what is stated of its preprocessing."""
    fields = MODELS[model]
    family = fields['name']
    outputs, channels = head_outputs(archive, HEADS[family]), channels_of(archive, STEMS[family])
    return Match(
        fields=fields,
        outputs=outputs,
        inputs=feature(IMAGE, 224, 224, channels),
        rows=rows(fields, outputs),
        ignored=IGNORED,
        preprocessing={**for_channels(PREPROCESSING, channels), 'image_size': (224, 224)},
    )


# Preprocessing of torchvision's weights where it differs from that of IMAGENET1K_V1.
WEIGHTS: dict[str, dict[str, Any]] = {
    'IMAGENET1K_V1': {},
    'IMAGENET1K_V2': {'crop': 224 / 232},
    'IMAGENET1K_SWAG_E2E_V1': {'crop': 1.0, 'interpolation': 'bicubic'},
    'IMAGENET1K_SWAG_LINEAR_V1': {'crop': 1.0, 'interpolation': 'bicubic'},
}


def for_weights(given: Given, preprocessing: Mapping) -> tuple[dict, tuple[str, ...]]:
    """Return (preprocessing of the weights that the user names, what is assumed)."""
    record = given.complete(Record(given.flags[0], {}), computed('weights'))
    name = record.text('weights', '')
    if not name:
        words = (
            'preprocessing is that of weights=IMAGENET1K_V1 (--field=weights=NAME states others: '
            f'{", ".join([*WEIGHTS][1:])})'
        )
        return dict(preprocessing), (words,)
    if name not in WEIGHTS:
        raise UserError(f'{record.at("weights")} is not known; choose from {", ".join(WEIGHTS)}')
    return {**preprocessing, **WEIGHTS[name]}, ()


def head_outputs(archive: Archive, bias: str) -> int:
    """Return the length of the head's bias, 0 if the file has no head."""
    leaf = archive.arrays.get(bias)
    return leaf.shape[0] if leaf is not None and len(leaf.shape) == 1 else 0


def channels_of(archive: Archive, kernel: str) -> int:
    """Return the channels of images by the first kernel, [width, channels, rows, columns]."""
    leaf = archive.arrays.get(kernel)
    return leaf.shape[1] if leaf is not None and len(leaf.shape) == 4 else 3


def for_channels(preprocessing: dict, channels: int) -> dict:
    """Return preprocessing for any number of channels: unless it is three, all share one mean."""
    if channels == 3:
        return preprocessing
    mean, std = (sum(preprocessing[key]) / len(preprocessing[key]) for key in ('mean', 'std'))
    return {**preprocessing, 'mean': (mean,), 'std': (std,)}
