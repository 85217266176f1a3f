"""Hugging Face's names of GPT-2 and BERT, including sentence encoders such as MiniLM.

A folder from the Hub also holds config.json (sizes, eps, GELU, class names), tokenizer.json, and
for sentence encoders 1_Pooling/config.json and sentence_bert_config.json.
"""

import re
from typing import Any

from jaxtrain.data.features import TOKENS, feature
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.hub import activation, check_sizes, class_names, read_json
from jaxtrain.weights.origins import torchvision
from jaxtrain.weights.origins.names import (
    DENSE,
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    SAME1,
    SAME2,
    Match,
    Part,
    Row,
    expand,
    row,
)


def _gpt(width: int, depth: int, heads: int) -> dict[str, Any]:
    return {'name': 'gpt', 'width': width, 'depth': depth, 'heads': heads, 'context': 1024}


def _bert(width: int, depth: int, heads: int, pool: str) -> dict[str, Any]:
    sizes = {'width': width, 'depth': depth, 'heads': heads, 'mlp': 4 * width}
    return {'name': 'bert', 'vocabulary': 30522, 'positions': 512, **sizes, 'pool': pool}


MODELS = {
    'gpt2': _gpt(768, 12, 12),
    'distilgpt2': _gpt(768, 6, 12),
    'gpt2_medium': _gpt(1024, 24, 16),
    'gpt2_large': _gpt(1280, 36, 20),
    'gpt2_xl': _gpt(1600, 48, 25),
    'minilm_l6': _bert(384, 6, 12, 'mean'),
    'minilm_l12': _bert(384, 12, 12, 'mean'),
    'bert_base': _bert(768, 12, 12, 'token'),
    'bert_large': _bert(1024, 24, 16, 'token'),
}

QKV = ('query', 'key', 'value')
_TARGET = 'backbone/block_{i}'

GPT_EMBEDDINGS = (
    row('{p}wte.weight', 'backbone/tokens/embedding', SAME2),
    row('{p}wpe.weight', 'backbone/positions/embedding', SAME2),
    row('{p}ln_f.weight', 'backbone/norm/scale', SAME1),
    row('{p}ln_f.bias', 'backbone/norm/bias', SAME1),
)
# Conv1D stores its matrix as (in, out), as jaxtrain does.
GPT_BLOCK = (
    row('{p}h.{i}.ln_1.weight', f'{_TARGET}/norm_1/scale', SAME1),
    row('{p}h.{i}.ln_1.bias', f'{_TARGET}/norm_1/bias', SAME1),
    Row(
        '{p}h.{i}.attn.c_attn.weight',
        tuple(Part(f'{_TARGET}/attention/{n}/kernel', 'i h d -> i (h d)') for n in QKV),
        axis=1,
    ),
    Row(
        '{p}h.{i}.attn.c_attn.bias',
        tuple(Part(f'{_TARGET}/attention/{n}/bias', HEADS_BIAS) for n in QKV),
    ),
    row('{p}h.{i}.attn.c_proj.weight', f'{_TARGET}/attention/out/kernel', 'h d o -> (h d) o'),
    row('{p}h.{i}.attn.c_proj.bias', f'{_TARGET}/attention/out/bias', SAME1),
    row('{p}h.{i}.ln_2.weight', f'{_TARGET}/norm_2/scale', SAME1),
    row('{p}h.{i}.ln_2.bias', f'{_TARGET}/norm_2/bias', SAME1),
    row('{p}h.{i}.mlp.c_fc.weight', f'{_TARGET}/mlp/up/kernel', SAME2),
    row('{p}h.{i}.mlp.c_fc.bias', f'{_TARGET}/mlp/up/bias', SAME1),
    row('{p}h.{i}.mlp.c_proj.weight', f'{_TARGET}/mlp/down/kernel', SAME2),
    row('{p}h.{i}.mlp.c_proj.bias', f'{_TARGET}/mlp/down/bias', SAME1),
)
GPT_IGNORED = (
    # The dot before 'attn' matters: c_attn.bias is a weight.
    (r'(transformer\.)?h\.\d+\.attn\.(masked_)?bias', 'the causal mask'),
    (r'lm_head\.weight', 'tied to the token embedding'),
)

_LAYER = '{p}encoder.layer.{i}.'


def _both(source: str, target: str, kernel: str = '') -> tuple[Row, ...]:
    """Return the rows of a dense layer with this kernel pattern, or of a norm if it is empty."""
    weight, bias = ('weight', 'bias') if kernel else ('{scale}', '{shift}')
    return (
        row(f'{source}.{weight}', f'{target}/{"kernel" if kernel else "scale"}', kernel or SAME1),
        row(f'{source}.{bias}', f'{target}/bias', SAME1),
    )


BERT_EMBEDDINGS = (
    row('{p}embeddings.word_embeddings.weight', 'backbone/tokens/embedding', SAME2),
    row('{p}embeddings.position_embeddings.weight', 'backbone/positions/embedding', SAME2),
    row('{p}embeddings.token_type_embeddings.weight', 'backbone/types/embedding', SAME2),
    *_both('{p}embeddings.LayerNorm', 'backbone/norm'),
)
BERT_HEADS = tuple(
    r
    for n in QKV
    for r in (
        row(_LAYER + f'attention.self.{n}.weight', f'{_TARGET}/attention/{n}/kernel', HEADS_IN),
        row(_LAYER + f'attention.self.{n}.bias', f'{_TARGET}/attention/{n}/bias', HEADS_BIAS),
    )
)
BERT_BLOCK = (
    *BERT_HEADS,
    row(_LAYER + 'attention.output.dense.weight', f'{_TARGET}/attention/out/kernel', HEADS_OUT),
    row(_LAYER + 'attention.output.dense.bias', f'{_TARGET}/attention/out/bias', SAME1),
    *_both(_LAYER + 'attention.output.LayerNorm', f'{_TARGET}/norm_1'),
    *_both(_LAYER + 'intermediate.dense', f'{_TARGET}/mlp/up', DENSE),
    *_both(_LAYER + 'output.dense', f'{_TARGET}/mlp/down', DENSE),
    *_both(_LAYER + 'output.LayerNorm', f'{_TARGET}/norm_2'),
)
POOLER = _both('{p}pooler.dense', 'backbone/pooler', DENSE)
CLASSIFIER = _both('classifier', 'head/logits', DENSE)
BERT_IGNORED = (
    (r'(bert\.)?embeddings\.position_ids', 'the numbers 0, 1, 2, ...'),
    (r'cls\..*', 'heads used only in pretraining'),
)
POOLER_IGNORED = ((r'(bert\.)?pooler\.dense\.(weight|bias)', 'not used by this embedding'),)


def rows(
    fields: dict[str, Any], outputs: int, prefix: str | None = None, old: bool = False
) -> tuple[Row, ...]:
    """Return the map of a model with these fields.

    Args:
      fields: fields of `config.model`.
      outputs: width of the head, 0 without a head; for GPT-2 the vocabulary size.
      prefix: the prefix of all keys: 'transformer.', 'bert.' (with a head) or ''.
      old: whether norms are named gamma and beta, as in early BERT files.
    """
    if fields['name'] == 'gpt':
        prefix = 'transformer.' if prefix is None else prefix
        blocks = [r for i in range(fields['depth']) for r in expand(GPT_BLOCK, p=prefix, i=i)]
        untied = (
            ()
            if fields.get('tied', True)
            else (row('lm_head.weight', 'head/logits/kernel', DENSE),)
        )
        return (*expand(GPT_EMBEDDINGS, p=prefix), *blocks, *untied)
    names = {'scale': 'gamma', 'shift': 'beta'} if old else {'scale': 'weight', 'shift': 'bias'}
    names['p'] = ('bert.' if outputs else '') if prefix is None else prefix
    table = expand(BERT_EMBEDDINGS, **names)
    for i in range(fields['depth']):
        table += expand(BERT_BLOCK, i=i, **names)
    table += expand(POOLER, **names) if fields['pool'] == 'token' else []
    return (*table, *(CLASSIFIER if outputs else ()))


def match(archive: Archive, model: str) -> Match:
    """Match a file to one of MODELS.

    Raises:
      UserError: config.json describes another model.
    """
    described = read_json(archive)
    fields = {**MODELS[model], **_checked(archive, described, MODELS[model], model)}
    return (_match_gpt if fields['name'] == 'gpt' else _match_bert)(archive, fields, described)


def _match_gpt(archive: Archive, fields: dict[str, Any], described: dict[str, Any]) -> Match:
    prefix = _prefix(archive, 'wte.weight')
    tokens, positions = (_length(archive, f'{prefix}{n}.weight') for n in ('wte', 'wpe'))
    fields = {**fields, 'context': positions or fields['context']}
    if 'lm_head.weight' in archive.arrays and described.get('tie_word_embeddings') is False:
        fields['tied'] = False
    return Match(
        fields=fields,
        outputs=tokens or 50257,
        inputs=feature(TOKENS, fields['context']),
        rows=rows(fields, tokens or 50257, prefix),
        ignored=GPT_IGNORED,
        preprocessing={'length': fields['context']},
        task='lm',
    )


def _match_bert(archive: Archive, fields: dict[str, Any], described: dict[str, Any]) -> Match:
    prefix = _prefix(archive, 'embeddings.word_embeddings.weight')
    start = f'{prefix}embeddings.'
    fields = {
        **fields,
        'vocabulary': _length(archive, f'{start}word_embeddings.weight') or fields['vocabulary'],
        'positions': _length(archive, f'{start}position_embeddings.weight') or fields['positions'],
        'types': _length(archive, f'{start}token_type_embeddings.weight') or 2,
    }
    if f'{prefix}pooler.dense.weight' not in archive.arrays:
        fields['pool'] = 'mean' if fields['pool'] == 'token' else fields['pool']
    outputs = torchvision.head_outputs(archive, 'classifier.bias')
    sentence = read_json(archive, 'sentence_bert_config.json')
    old = any(re.search(r'LayerNorm\.gamma$', key) for key in archive.arrays)
    return Match(
        fields=fields,
        outputs=outputs,
        inputs=feature(TOKENS, fields['positions']),
        rows=rows(fields, outputs, prefix, old),
        ignored=BERT_IGNORED + (POOLER_IGNORED if fields['pool'] != 'token' else ()),
        preprocessing={'length': int(sentence.get('max_seq_length') or fields['positions'])},
        classes=class_names(described, outputs),
    )


def _checked(
    archive: Archive, described: dict[str, Any], fields: dict[str, Any], model: str
) -> dict[str, Any]:
    """Return the model fields in the JSON files. UserError for sizes of another model."""
    sizes = {
        **dict.fromkeys(('n_embd', 'hidden_size'), fields['width']),
        **dict.fromkeys(('n_layer', 'num_hidden_layers'), fields['depth']),
        **dict.fromkeys(('n_head', 'num_attention_heads'), fields['heads']),
    }
    check_sizes(archive, described, sizes, model)
    result: dict[str, Any] = {}
    for key in ('layer_norm_eps', 'layer_norm_epsilon'):
        if key in described:
            result['norm_eps'] = float(described[key])
    for key in ('hidden_act', 'activation_function'):
        result |= activation(archive, described, key)
    if fields['name'] == 'bert':
        result |= _pooling(archive, described)
    return result


def _pooling(archive: Archive, described: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = (
        {'pad': int(described['pad_token_id'])} if described.get('pad_token_id') is not None else {}
    )
    pooling = read_json(archive, '1_Pooling/config.json')
    if pooling.get('pooling_mode_mean_tokens'):
        result['pool'] = 'mean'
    elif pooling.get('pooling_mode_cls_token'):
        result['pool'] = 'first'
    return result


def _prefix(archive: Archive, name: str) -> str:
    """Return the prefix of the key that ends in `name`, '' if there is no such key."""
    start = next((k for k in archive.arrays if k.endswith(name)), name)
    return start.removesuffix(name)


def _length(archive: Archive, key: str) -> int:
    leaf = archive.arrays.get(key)
    return leaf.shape[0] if leaf is not None and leaf.shape else 0
