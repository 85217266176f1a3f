"""torchvision's names of the Vision Transformer."""

from typing import Any

from jaxtrain.data.features import IMAGE, feature
from jaxtrain.errors import UserError
from jaxtrain.json_file import Record
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.origins import positions, timm, torchvision
from jaxtrain.weights.origins.names import (
    CONV,
    DENSE,
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    SAME1,
    Match,
    Part,
    Row,
    expand,
    row,
)
from jaxtrain.weights.schemas.schema import computed

STATE_DICTS = torchvision.STATE_DICTS
MODELS = {name: timm.MODELS[name] for name in ('vit_b16', 'vit_b32', 'vit_l16', 'vit_l32')}

QKV = ('query', 'key', 'value')
_LAYER = 'encoder.layers.encoder_layer_{i}.'
BLOCK = (
    row(_LAYER + 'ln_1.weight', 'backbone/block_{i}/norm_1/scale', SAME1),
    row(_LAYER + 'ln_1.bias', 'backbone/block_{i}/norm_1/bias', SAME1),
    Row(
        _LAYER + 'self_attention.in_proj_weight',
        tuple(Part(f'backbone/block_{{i}}/attention/{n}/kernel', HEADS_IN) for n in QKV),
    ),
    Row(
        _LAYER + 'self_attention.in_proj_bias',
        tuple(Part(f'backbone/block_{{i}}/attention/{n}/bias', HEADS_BIAS) for n in QKV),
    ),
    row(
        _LAYER + 'self_attention.out_proj.weight',
        'backbone/block_{i}/attention/out/kernel',
        HEADS_OUT,
    ),
    row(_LAYER + 'self_attention.out_proj.bias', 'backbone/block_{i}/attention/out/bias', SAME1),
    row(_LAYER + 'ln_2.weight', 'backbone/block_{i}/norm_2/scale', SAME1),
    row(_LAYER + 'ln_2.bias', 'backbone/block_{i}/norm_2/bias', SAME1),
    row(_LAYER + 'mlp.{up}.weight', 'backbone/block_{i}/mlp/up/kernel', DENSE),
    row(_LAYER + 'mlp.{up}.bias', 'backbone/block_{i}/mlp/up/bias', SAME1),
    row(_LAYER + 'mlp.{down}.weight', 'backbone/block_{i}/mlp/down/kernel', DENSE),
    row(_LAYER + 'mlp.{down}.bias', 'backbone/block_{i}/mlp/down/bias', SAME1),
)
FRONT = (
    row('conv_proj.weight', 'backbone/patch/kernel', CONV),
    row('conv_proj.bias', 'backbone/patch/bias', SAME1),
    row('class_token', 'backbone/class_token', 'n d -> 1 n d'),
    Row('encoder.pos_embedding', (timm.CLASS_POSITION, timm.POSITION), axis=1),
    row('encoder.ln.weight', 'backbone/norm/scale', SAME1),
    row('encoder.ln.bias', 'backbone/norm/bias', SAME1),
)
HEAD = (
    row('heads.head.weight', 'head/logits/kernel', DENSE),
    row('heads.head.bias', 'head/logits/bias', SAME1),
)


def rows(fields: dict[str, Any], outputs: int, old: bool = False) -> tuple[Row, ...]:
    """Return the map; `old` is for torchvision before 0.12, which names the layers of an MLP."""
    names = {'up': 'linear_1', 'down': 'linear_2'} if old else {'up': '0', 'down': '3'}
    blocks = [r for i in range(fields['depth']) for r in expand(BLOCK, i=i, **names)]
    return (*FRONT, *blocks, *(HEAD if outputs else ()))


def match(archive: Archive, model: str) -> Match:
    """Match a file to one of MODELS. UserError if its positions do not form a square grid."""
    fields = dict(MODELS[model])
    record = archive.given.complete(
        Record(archive.given.flags[0], {}), computed('image_size', 'num_heads')
    )
    heads = record.integer('num_heads', fields['heads'])
    if heads < 1 or fields['width'] % heads:
        raise UserError(f'{record.at("num_heads")} does not divide the width {fields["width"]}')
    fields['heads'] = heads
    outputs = torchvision.head_outputs(archive, 'heads.head.bias')
    sizes = positions.sizes_of(record, 'image_size', strict=True)
    key = 'encoder.pos_embedding'
    grid = positions.find(archive, positions.Positions(key, fields['patch'], sizes=sizes))
    size, channels = grid.size, torchvision.channels_of(archive, 'conv_proj.weight')
    # torchvision resizes images to 242 before the crop for vit_l_16, to 256 for the others.
    crop = 224 / 242 if model == 'vit_l16' and size == (224, 224) else 0.875
    usual = {**torchvision.PREPROCESSING, 'crop': crop, 'image_size': size}
    settings, words = torchvision.for_weights(archive.given, usual)
    if 'num_heads' not in record:
        words = (*words, f'num_heads={heads} (--field=num_heads=NUMBER states another)')
    old = any(key.endswith('mlp.linear_1.weight') for key in archive.arrays)
    return Match(
        fields=fields,
        outputs=outputs,
        inputs=feature(IMAGE, *size, channels),
        rows=rows(fields, outputs, old),
        preprocessing=torchvision.for_channels(settings, channels),
        assumed=(*words, *grid.assumed),
    )
