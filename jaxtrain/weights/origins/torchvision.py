"""torchvision's names: ResNet, VGG and the Vision Transformer, as its state dicts have them.

Preprocessing is that of the weights called IMAGENET1K_V1: 224x224 out of 256, bilinear.
"""

from typing import Any

from jaxtrain.data.features import IMAGE, feature
from jaxtrain.models import resnet as resnets
from jaxtrain.models import vgg as vggs
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.origins.names import CONV, DENSE, SAME1, Match, Row, expand, row

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

IGNORED = ((r'(.*\.)?num_batches_tracked', 'a counter of training'),)


def _norm(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        row(f'{theirs}.weight', f'{ours}/scale', SAME1),
        row(f'{theirs}.bias', f'{ours}/bias', SAME1),
        row(f'{theirs}.running_mean', f'{ours}/mean', SAME1),
        row(f'{theirs}.running_var', f'{ours}/var', SAME1),
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
    """Of ResNet, which timm names alike."""
    counts, bottleneck = resnets.STAGES[fields['depth']]
    found = list(STEM)
    for s, count in enumerate(counts, start=1):
        for b in range(count):
            for i in range(1, 4 if bottleneck else 3):
                found += expand(LAYER, s=s, b=b, i=i)
        # The first stage of the shallow networks keeps its width and size.
        found += expand(DOWN, s=s) if bottleneck or s > 1 else ()
    return (*found, *(FC if outputs else ()))


CONVOLUTION = (
    row('features.{i}.weight', 'backbone/{name}/kernel', CONV),
    row('features.{i}.bias', 'backbone/{name}/bias', SAME1),
)
DENSE_LAYER = (
    row('classifier.{i}.weight', 'head/{name}/kernel', DENSE),
    row('classifier.{i}.bias', 'head/{name}/bias', SAME1),
)
# The first dense layer takes channels, rows, columns there, and rows, columns, channels here.
FIRST_DENSE = (
    row('classifier.0.weight', 'head/dense_0/kernel', '(h w c) o -> o (c h w)', h=7, w=7, c=512),
    row('classifier.0.bias', 'head/dense_0/bias', SAME1),
)


def _vgg_rows(fields: dict, outputs: int) -> tuple[Row, ...]:
    found, i = [], 0
    for block, count in enumerate(vggs.CONVOLUTIONS[fields['depth']], start=1):
        for number in range(1, count + 1):
            found += expand(CONVOLUTION, i=i, name=f'block{block}_conv{number}')
            i += 2  # a ReLU follows each
        i += 1  # and a pooling each block
    if outputs:
        found += FIRST_DENSE
        found += expand(DENSE_LAYER, i=3, name='dense_1')
        found += expand(DENSE_LAYER, i=6, name='logits')
    return tuple(found)


ROWS = {'resnet': resnet_rows, 'vgg': _vgg_rows}
HEADS = {'resnet': 'fc.bias', 'vgg': 'classifier.6.bias'}
STEMS = {'resnet': 'conv1.weight', 'vgg': 'features.0.weight'}


def rows(fields: dict, outputs: int) -> tuple[Row, ...]:
    """The map of a model with these fields; without a head where `outputs` is 0."""
    return ROWS[fields['name']](fields, outputs)


def match(archive: Archive, model: str) -> Match:
    """What a file is for one of MODELS."""
    fields = MODELS[model]
    family = fields['name']
    outputs, channels = head_outputs(archive, HEADS[family]), 3
    stem = archive.arrays.get(STEMS[family])
    if stem is not None and len(stem.shape) == 4:
        channels = stem.shape[1]
    return Match(
        fields=fields,
        outputs=outputs,
        inputs=feature(IMAGE, 224, 224, channels),
        rows=rows(fields, outputs),
        ignored=IGNORED,
        preprocessing={**for_channels(PREPROCESSING, channels), 'image_size': (224, 224)},
    )


def head_outputs(archive: Archive, bias: str) -> int:
    """The length of the head's bias, 0 where the file has none."""
    leaf = archive.arrays.get(bias)
    return leaf.shape[0] if leaf is not None and len(leaf.shape) == 1 else 0


def for_channels(preprocessing: dict, channels: int) -> dict:
    """Preprocessing for images of other than three channels: the mean of the three serves all."""
    if channels == 3:
        return preprocessing
    mean, std = (sum(preprocessing[key]) / len(preprocessing[key]) for key in ('mean', 'std'))
    return {**preprocessing, 'mean': (mean,), 'std': (std,)}
