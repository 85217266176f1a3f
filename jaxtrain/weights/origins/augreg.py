"""AugReg's names: the npz files of Vision Transformers by Google Research (Steiner et al. 2021,
arXiv:2106.10270), and big_vision's, which are similar.

Arrays have the same layout as in jaxtrain. The layers of a block are numbered across all layers
(LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3) or within their kind
(LayerNorm_0, MultiHeadDotProductAttention_0, LayerNorm_1, MlpBlock_0).
"""

from typing import Any

from jaxtrain.data.features import IMAGE, feature
from jaxtrain.json_file import Record
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.origins import positions, timm, torchvision
from jaxtrain.weights.origins.names import SAME1, SAME2, Match, Part, Row, expand, row
from jaxtrain.weights.schemas.schema import Only, Schema, computed

SAME3, SAME4 = 'a b c -> a b c', 'a b c d -> a b c d'
MODELS: dict[str, dict[str, Any]] = {
    name: {**fields, 'gelu': 'tanh'}
    for name, fields in timm.MODELS.items()
    if name.startswith('vit_') and fields['patch'][0] in (16, 32, 14, 8)
}
QKV = ('query', 'key', 'value')
PLACES = {'attention': '1', 'norm': '2', 'mlp': '3'}
KINDS = {'attention': '0', 'norm': '1', 'mlp': '0'}

_SOURCE, _TARGET = '{p}Transformer/encoderblock_{i}/', 'backbone/block_{i}/'
_ATTENTION = _SOURCE + 'MultiHeadDotProductAttention_{attention}/'
BLOCK = (
    row(_SOURCE + 'LayerNorm_0/scale', _TARGET + 'norm_1/scale', SAME1),
    row(_SOURCE + 'LayerNorm_0/bias', _TARGET + 'norm_1/bias', SAME1),
    *(
        row(f'{_ATTENTION}{n}/kernel', f'{_TARGET}attention/{n}/kernel', SAME3)
        for n in (*QKV, 'out')
    ),
    *(row(f'{_ATTENTION}{n}/bias', f'{_TARGET}attention/{n}/bias', SAME2) for n in QKV),
    row(_ATTENTION + 'out/bias', _TARGET + 'attention/out/bias', SAME1),
    row(_SOURCE + 'LayerNorm_{norm}/scale', _TARGET + 'norm_2/scale', SAME1),
    row(_SOURCE + 'LayerNorm_{norm}/bias', _TARGET + 'norm_2/bias', SAME1),
    row(_SOURCE + 'MlpBlock_{mlp}/Dense_0/kernel', _TARGET + 'mlp/up/kernel', SAME2),
    row(_SOURCE + 'MlpBlock_{mlp}/Dense_0/bias', _TARGET + 'mlp/up/bias', SAME1),
    row(_SOURCE + 'MlpBlock_{mlp}/Dense_1/kernel', _TARGET + 'mlp/down/kernel', SAME2),
    row(_SOURCE + 'MlpBlock_{mlp}/Dense_1/bias', _TARGET + 'mlp/down/bias', SAME1),
)  # fmt: skip
FRONT = (
    row('{p}embedding/kernel', 'backbone/patch/kernel', SAME4),
    row('{p}embedding/bias', 'backbone/patch/bias', SAME1),
    row('{p}Transformer/encoder_norm/scale', 'backbone/norm/scale', SAME1),
    row('{p}Transformer/encoder_norm/bias', 'backbone/norm/bias', SAME1),
)
CLASS = row('{p}cls', 'backbone/class_token', 'n d -> 1 n d')
REPRESENTATION = (
    row('{p}pre_logits/kernel', 'head/representation/kernel', SAME2),
    row('{p}pre_logits/bias', 'head/representation/bias', SAME1),
)
HEAD = (
    row('{p}head/kernel', 'head/logits/kernel', SAME2),
    row('{p}head/bias', 'head/logits/bias', SAME1),
)
# What no array shows; the user may state it.
STATED: Schema = {
    **computed('image_size'),
    'pool_type': Only(('gap', 'tok'), 'a head that takes one patch'),
}
IGNORED = (
    (r'(params/)?pre_logits/(kernel|bias)', 'part of a head that is missing'),
    (r'opt/.*', 'the state of the optimizer'),
)


def rows(
    fields: dict[str, Any],
    outputs: int,
    prefix: str | None = None,
    places: dict[str, str] | None = None,
) -> tuple[Row, ...]:
    """Return the map of a model with these fields.

    Args:
      fields: fields of `config.model`.
      outputs: width of the head, 0 without a head.
      prefix: the prefix of all keys.
      places: PLACES or KINDS. By default this and the prefix are AugReg's, or big_vision's
        ('params/' and KINDS) for a model that only big_vision has: one without a class token, or
        whose class token has no position.
    """
    full = {**timm.DEFAULTS, **fields}
    augreg = full['class_token'] and full['class_position']
    prefix = ('' if augreg else 'params/') if prefix is None else prefix
    places = (PLACES if augreg else KINDS) if places is None else places
    table = expand((*FRONT, *([CLASS] if full['class_token'] else [])), p=prefix)
    parts: tuple[Part, ...]
    if augreg:
        key, parts = (
            'Transformer/posembed_input/pos_embedding',
            (timm.CLASS_POSITION, timm.POSITION),
        )
    else:
        # big_vision adds positions before it prepends the class token.
        key, parts = 'pos_embedding', (timm.POSITION,)
    table.append(Row(prefix + key, parts, axis=1))
    for i in range(full['depth']):
        table += expand(BLOCK, p=prefix, i=i, **places)
    if outputs:
        table += expand(REPRESENTATION, p=prefix) if full['representation'] else []
        table += expand(HEAD, p=prefix)
    return tuple(table)


def match(archive: Archive, model: str) -> Match:
    """Match a file to one of MODELS.

    Raises:
      UserError: its positions form no square and nothing states their grid, or the user states
        something that is not computed.
    """
    given = archive.given
    record = given.check(given.complete(Record(given.flags[0], {}), STATED), STATED)
    keys = archive.arrays
    prefix = 'params/' if any(key.startswith('params/') for key in keys) else ''
    fields = dict(MODELS[model])
    position = f'{prefix}Transformer/posembed_input/pos_embedding'
    if f'{prefix}pos_embedding' in keys:
        position, fields['class_position'] = f'{prefix}pos_embedding', False
    if f'{prefix}cls' not in keys:
        fields |= {'class_token': False, 'pool': 'mean', 'class_position': False}
    outputs = torchvision.head_outputs(archive, f'{prefix}head/bias')
    if outputs and f'{prefix}pre_logits/bias' in keys:
        fields['representation'] = keys[f'{prefix}pre_logits/bias'].shape[0]
    sizes = positions.sizes_of(record, 'image_size', strict=True)
    front = int(fields.get('class_position', True))
    place = positions.Positions(position, fields['patch'], (front,), sizes)
    grid = positions.find(archive, place)
    size = grid.size
    kernel = keys.get(f'{prefix}embedding/kernel')
    channels = kernel.shape[2] if kernel is not None and len(kernel.shape) == 4 else 3
    block = f'{prefix}Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias'
    usual = {**timm.HALF, 'crop': 0.0, 'interpolation': 'bilinear'}
    words = [f'preprocessing is to [-1, 1], stretched to {size[0]}x{size[1]}']
    if fields.get('pool') == 'mean' and 'pool_type' not in record:
        words.append('pool_type=gap, since there is no class token')
    return Match(
        fields=fields,
        outputs=outputs,
        inputs=feature(IMAGE, *size, channels),
        rows=rows(fields, outputs, prefix, KINDS if block in keys else PLACES),
        ignored=IGNORED,
        preprocessing={**usual, 'channel_order': 'rgb', 'image_size': size},
        assumed=(*words, *grid.assumed),
    )
