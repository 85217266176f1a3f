"""Hugging Face's names of GPT-2 and BERT, including sentence encoders such as MiniLM.

A folder from the Hub also holds config.json (sizes, eps, GELU, class names), tokenizer.json, and
for sentence encoders 1_Pooling/config.json and sentence_bert_config.json.
"""

import re
from typing import Any

from jaxtrain.data.features import TOKENS, feature
from jaxtrain.errors import UserError
from jaxtrain.json_file import Record
from jaxtrain.weights.fill import equal
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.hub import activation, check_sizes, class_names, epsilon, head_count
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
from jaxtrain.weights.schemas.bert import BERT
from jaxtrain.weights.schemas.bert import USUAL as BERT_USUAL
from jaxtrain.weights.schemas.gpt2 import GPT2
from jaxtrain.weights.schemas.gpt2 import USUAL as GPT2_USUAL
from jaxtrain.weights.schemas.schema import assumptions
from jaxtrain.weights.schemas.sentence import read_length, read_modules


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
      UserError: a file beside the weights describes another computation.
    """
    return (_match_gpt if MODELS[model]['name'] == 'gpt' else _match_bert)(archive, model)


def _match_gpt(archive: Archive, model: str) -> Match:
    config = archive.given.read(archive.folder / 'config.json', GPT2)
    prefix = _prefix(archive, 'wte.weight')
    tokens, positions = (_length(archive, f'{prefix}{n}.weight') for n in ('wte', 'wpe'))
    fields = {**MODELS[model], 'context': positions or MODELS[model]['context']}
    sizes = {
        **dict.fromkeys(('n_embd', 'hidden_size'), fields['width']),
        **dict.fromkeys(('n_layer', 'num_hidden_layers'), fields['depth']),
        **dict.fromkeys(('n_positions', 'n_ctx', 'max_position_embeddings'), fields['context']),
        'vocab_size': tokens or config.integer('vocab_size', 50257),
    }
    check_sizes(config, sizes, model)
    fields |= {
        'heads': head_count(config, ('n_head', 'num_attention_heads'), fields),
        **epsilon(config, 'layer_norm_epsilon'),
        **activation(config, 'activation_function'),
    }
    if hidden := config.integer('n_inner', None):
        fields['mlp'] = hidden
    if not config.flag('scale_attn_weights', True):
        fields['scale_attention'] = False
    usual = {'n_head': fields['heads'], **GPT2_USUAL}
    tied, ignored, words = _output_layer(archive, config, f'{prefix}wte.weight')
    if not tied:
        fields['tied'] = False
    return Match(
        fields=fields,
        outputs=tokens or 50257,
        inputs=feature(TOKENS, fields['context']),
        rows=rows(fields, tokens or 50257, prefix),
        ignored=(*GPT_IGNORED, *ignored),
        preprocessing={'length': fields['context']},
        assumed=(*assumptions(config, usual), *words),
        task='lm',
    )


def _output_layer(
    archive: Archive, config: Record, embedding: str
) -> tuple[bool, tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Return (whether the output layer is the token embedding, keys to ignore, what is assumed).

    Raises:
      UserError: config.json states an output layer that the file does not have.
    """
    stated, key = config.flag('tie_word_embeddings', True), 'lm_head.weight'
    if key not in archive.arrays:
        if not stated:
            raise UserError(
                f'{config.at("tie_word_embeddings")}, but {archive.path} has no {key}; give the '
                'weights of the whole model'
            )
        return True, (), ()
    if embedding in archive.arrays and equal(archive, key, embedding):
        return True, ((r'lm_head\.weight', 'equal to the token embedding'),), ()
    words = f'{key} is the output layer, since it differs from {embedding}'
    return False, (), (words,) if stated else ()


def _match_bert(archive: Archive, model: str) -> Match:
    config = archive.given.read(archive.folder / 'config.json', BERT)
    prefix = _prefix(archive, 'embeddings.word_embeddings.weight')
    start = f'{prefix}embeddings.'
    fields = dict(MODELS[model])
    for name, key, usual in (
        ('vocabulary', 'word', fields['vocabulary']),
        ('positions', 'position', fields['positions']),
        ('types', 'token_type', 2),
    ):
        fields[name] = _length(archive, f'{start}{key}_embeddings.weight') or usual
    sizes = {
        'hidden_size': fields['width'],
        'num_hidden_layers': fields['depth'],
        'vocab_size': fields['vocabulary'],
        'max_position_embeddings': fields['positions'],
        'type_vocab_size': fields['types'],
    }
    check_sizes(config, sizes, model)
    fields |= {
        'heads': head_count(config, ('num_attention_heads',), fields),
        'mlp': config.integer('intermediate_size', fields['mlp']),
        **epsilon(config, 'layer_norm_eps'),
        **activation(config, 'hidden_act'),
    }
    if (pad := config.integer('pad_token_id', None)) is not None:
        fields['pad'] = pad
    outputs = torchvision.head_outputs(archive, 'classifier.bias')
    fields, words = _pooled(archive, config, fields, outputs)
    old = any(re.search(r'LayerNorm\.gamma$', key) for key in archive.arrays)
    usual = {'num_attention_heads': fields['heads'], **BERT_USUAL}
    return Match(
        fields=fields,
        outputs=outputs,
        inputs=feature(TOKENS, fields['positions']),
        rows=rows(fields, outputs, prefix, old),
        ignored=BERT_IGNORED + (POOLER_IGNORED if fields['pool'] != 'token' else ()),
        preprocessing={'length': read_length(archive, fields['positions'])},
        classes=class_names(config, outputs),
        assumed=(*assumptions(config, usual), *words),
    )


def _pooled(
    archive: Archive, config: Record, fields: dict[str, Any], outputs: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return (fields with those of the pooling, what is assumed). UserError as `read_modules`."""
    stated = read_modules(archive, fields['width'])
    pooler = any(key.endswith('pooler.dense.weight') for key in archive.arrays)
    classifies = 'BertForSequenceClassification' in (config.texts('architectures', None) or ())
    if outputs and (pooler or classifies):
        return {**fields, 'pool': 'token'}, ()
    if 'pool' in stated:
        known = outputs or 'unit_length' in stated
        # sentence-transformers reads no pooling either where there is no modules.json.
        words = (
            f'pooling {stated["pool"]!r} as in 1_Pooling, and embeddings of length 1 (modules.json)'
        )
        return {**fields, **stated}, () if known else (words,)
    if outputs:
        raise UserError(
            f'{archive.path}: a classifier without pooler.dense.weight belongs to single tokens, '
            'which needs another task; if it classifies pooled texts, state '
            f'{archive.given.flags[0]}=pooling_mode=mean, or cls'
        )
    pool = fields['pool'] if pooler or fields['pool'] != 'token' else 'mean'
    words = f'pooling {pool!r} and embeddings of length 1 (1_Pooling/config.json, modules.json)'
    return {**fields, **stated, 'pool': pool}, (words,)


def _prefix(archive: Archive, name: str) -> str:
    """Return the prefix of the key that ends in `name`, '' if there is no such key."""
    start = next((k for k in archive.arrays if k.endswith(name)), name)
    return start.removesuffix(name)


def _length(archive: Archive, key: str) -> int:
    leaf = archive.arrays.get(key)
    return leaf.shape[0] if leaf is not None and leaf.shape else 0
