"""AugReg's names: the npz files of Vision Transformers by Google Research (Steiner et al. 2021,
arXiv:2106.10270), and big_vision's, which are alike.

Numbers lie as they do here. The layers of a block are called by their place among all of it
(LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3) or by that among their kind
(LayerNorm_0, MultiHeadDotProductAttention_0, LayerNorm_1, MlpBlock_0).
"""

from typing import Any

from jaxtrain.data.features import IMAGE, feature
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.origins import timm, torchvision
from jaxtrain.weights.origins.names import SAME1, SAME2, Match, Part, Row, expand, row

SAME3, SAME4 = 'a b c -> a b c', 'a b c d -> a b c d'
MODELS: dict[str, dict[str, Any]] = {
    name: {**fields, 'gelu': 'tanh'}
    for name, fields in timm.MODELS.items()
    if name.startswith('vit_') and fields['patch'][0] in (16, 32, 14, 8)
}
QKV = ('query', 'key', 'value')
PLACES = {'attention': '1', 'norm': '2', 'mlp': '3'}
KINDS = {'attention': '0', 'norm': '1', 'mlp': '0'}

_THEIRS, _OURS = '{p}Transformer/encoderblock_{i}/', 'backbone/block_{i}/'
_ATTENTION = _THEIRS + 'MultiHeadDotProductAttention_{attention}/'
BLOCK = (
    row(_THEIRS + 'LayerNorm_0/scale', _OURS + 'norm_1/scale', SAME1),
    row(_THEIRS + 'LayerNorm_0/bias', _OURS + 'norm_1/bias', SAME1),
    *(row(f'{_ATTENTION}{n}/kernel', f'{_OURS}attention/{n}/kernel', SAME3) for n in (*QKV, 'out')),
    *(row(f'{_ATTENTION}{n}/bias', f'{_OURS}attention/{n}/bias', SAME2) for n in QKV),
    row(_ATTENTION + 'out/bias', _OURS + 'attention/out/bias', SAME1),
    row(_THEIRS + 'LayerNorm_{norm}/scale', _OURS + 'norm_2/scale', SAME1),
    row(_THEIRS + 'LayerNorm_{norm}/bias', _OURS + 'norm_2/bias', SAME1),
    row(_THEIRS + 'MlpBlock_{mlp}/Dense_0/kernel', _OURS + 'mlp/up/kernel', SAME2),
    row(_THEIRS + 'MlpBlock_{mlp}/Dense_0/bias', _OURS + 'mlp/up/bias', SAME1),
    row(_THEIRS + 'MlpBlock_{mlp}/Dense_1/kernel', _OURS + 'mlp/down/kernel', SAME2),
    row(_THEIRS + 'MlpBlock_{mlp}/Dense_1/bias', _OURS + 'mlp/down/bias', SAME1),
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
IGNORED = (
    (r'(params/)?pre_logits/(kernel|bias)', 'of a head that is not there'),
    (r'opt/.*', 'the state of the optimizer'),
)


def rows(
    fields: dict[str, Any],
    outputs: int,
    prefix: str | None = None,
    places: dict[str, str] | None = None,
) -> tuple[Row, ...]:
    """The map of a model with these fields.

    Args:
      fields: of `config.model`.
      outputs: width of the head, 0 without one.
      prefix: what keys begin with.
      places: PLACES or KINDS. By default this and the prefix are those of AugReg, or big_vision's
        ('params/' and KINDS) for a model that only big_vision has: one whose class token, if there
        is one, has no position.
    """
    full = {**timm.DEFAULTS, **fields}
    augreg = full['class_token'] and full['class_position']
    prefix = ('' if augreg else 'params/') if prefix is None else prefix
    places = (PLACES if augreg else KINDS) if places is None else places
    found = expand((*FRONT, *([CLASS] if full['class_token'] else [])), p=prefix)
    parts: tuple[Part, ...]
    if augreg:
        key, parts = (
            'Transformer/posembed_input/pos_embedding',
            (timm.CLASS_POSITION, timm.POSITION),
        )
    else:
        # big_vision adds positions before it puts the class token in front.
        key, parts = 'pos_embedding', (timm.POSITION,)
    found.append(Row(prefix + key, parts, axis=1))
    for i in range(full['depth']):
        found += expand(BLOCK, p=prefix, i=i, **places)
    if outputs:
        found += expand(REPRESENTATION, p=prefix) if full['representation'] else []
        found += expand(HEAD, p=prefix)
    return tuple(found)


def match(archive: Archive, model: str) -> Match:
    """What a file is for one of MODELS. UserError if its positions are no square grid."""
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
    size, _ = timm.image_size(archive, fields, position, '')
    kernel = keys.get(f'{prefix}embedding/kernel')
    channels = kernel.shape[2] if kernel is not None and len(kernel.shape) == 4 else 3
    block = f'{prefix}Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias'
    usual = {**timm.HALF, 'crop': 0.0, 'interpolation': 'bilinear'}
    return Match(
        fields=fields,
        outputs=outputs,
        inputs=feature(IMAGE, *size, channels),
        rows=rows(fields, outputs, prefix, KINDS if block in keys else PLACES),
        ignored=IGNORED,
        preprocessing={**usual, 'channel_order': 'rgb', 'image_size': size},
    )
