"""The files of sentence-transformers beside a model: its modules, and how they pool."""

from pathlib import Path
from typing import Any

from jaxtrain import json_file
from jaxtrain.errors import UserError
from jaxtrain.json_file import Record
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.schemas.schema import Only, Schema, computed, no_effect

MODULE: Schema = {**computed('type', 'path'), **no_effect('bookkeeping', 'idx', 'name', 'kwargs')}
POOLING: Schema = {
    **computed(
        'word_embedding_dimension', 'embedding_dimension', 'pooling_mode',
        'pooling_mode_cls_token', 'pooling_mode_mean_tokens', 'pooling_mode_max_tokens',
        'pooling_mode_mean_sqrt_len_tokens', 'pooling_mode_weightedmean_tokens',
        'pooling_mode_lasttoken',
    ),
    'include_prompt': Only((True, None), 'texts whose prompt is left out of the pooling'),
}  # fmt: skip
NORMALIZE: Schema = {
    'module_input_name': Only(('sentence_embedding',), 'a norm of the tokens'),
    'module_output_name': Only(('sentence_embedding', None), 'a norm of the tokens'),
}
TRANSFORMER: Schema = {
    **computed('max_seq_length', 'do_lower_case'),
    'transformer_task': Only(('feature-extraction', None), 'another output than hidden states'),
    'modality_config': Only(
        ({'text': {'method': 'forward', 'method_output_name': 'last_hidden_state'}}, None),
        'another input than text, or another output than hidden states',
    ),
    'module_output_name': Only(('token_embeddings', None), 'another output than hidden states'),
    **{
        name: Only((None, {}), 'another tokenisation')
        for name in ('processing_kwargs', 'tokenizer_args', 'tokenizer_name_or_path')
    },
    **{
        name: Only((None, {}), 'the fields of a model that is not as config.json states')
        for name in ('model_args', 'config_args')
    },
    **{
        name: Only((None,), 'queries of another length')
        for name in ('query_length', 'document_length', 'query_expansion')
    },
    **no_effect('the speed', 'unpad_inputs'),
}
SENTENCE: Schema = {
    **no_effect(
        'bookkeeping', '__version__', 'model_type', 'similarity_fn_name', 'prompts', 'requirements',
    ),
    'default_prompt_name': Only((None,), 'a prompt in front of each text'),
    'truncate_dim': Only((None,), 'embeddings of which a part is used'),
}  # fmt: skip

# tokenizer_config.json. The tokens are those of tokenizer.json, which states most of this itself.
TOKENIZER: Schema = {
    **computed('model_max_length', 'do_lower_case'),
    **no_effect(
        'tokenizer.json states it', 'tokenizer_class', 'tokenizer_file', 'added_tokens_decoder',
        'strip_accents', 'tokenize_chinese_chars', 'never_split', 'do_basic_tokenize', 'unk_token',
        'sep_token', 'pad_token', 'cls_token', 'mask_token', 'bos_token', 'eos_token',
        'additional_special_tokens', 'special_tokens_map_file', 'extra_special_tokens',
        'wordpieces_prefix', 'add_special_tokens', 'vocab_file', 'add_prefix_space',
        'full_tokenizer_file', 'tokenizer_type', 'add_bos_token', 'add_eos_token',
        'split_special_tokens', 'special_tokens', 'word_tokenizer_type', 'subword_tokenizer_type',
    ),
    **no_effect(
        'bookkeeping', 'name_or_path', 'backend', 'is_local', 'local_files_only', 'use_fast',
        'model_input_names', 'init_inputs', 'from_slow', 'processor_class', 'auto_map',
        'chat_template', 'transformers_version', 'legacy', 'errors', 'return_tensors',
        'trust_remote_code', 'model_type', 'max_model_input_sizes', '_commit_hash', 'revision',
        'token', 'use_auth_token', 'cache_dir', 'subfolder',
    ),
    **no_effect('only decoding', 'clean_up_tokenization_spaces', 'spaces_between_special_tokens'),
    **no_effect(
        'each call states it', 'max_length', 'max_len', 'pad_to_multiple_of', 'padding', 'stride',
        'truncation', 'truncation_strategy', 'pad_token_type_id', 'return_token_type_ids',
        'do_truncate',
    ),
    'padding_side': Only(('right', None), 'texts that are padded at the start'),
    'truncation_side': Only(('right', None), 'texts that are truncated at the start'),
}  # fmt: skip


def read_modules(archive: Archive, width: int) -> dict[str, Any]:
    """Return the model fields `pool` and `unit_length` that the files state.

    Args:
      archive: the weights, which lie beside the files.
      width: width of the hidden states.

    Raises:
      UserError: the files state another computation.
    """
    given, folder = archive.given, archive.folder
    modules = [given.check(m, MODULE) for m in json_file.read_list(folder / 'modules.json') or ()]
    kinds = [m.text('type').rpartition('.')[2] for m in modules]
    # Without modules.json, the folders show which modules there are.
    for path in () if modules else sorted(folder.glob('[1-9]_*')):
        kinds.append(path.name[2:])
    for number, kind in enumerate(kinds):
        if kind not in _KINDS:
            what = modules[number].at('type') if modules else f'{folder}: the module {kind}'
            raise UserError(
                f'{what} is not supported, only {", ".join(_KINDS)}: it needs that module behind '
                'the encoder'
            )
    if [k for k in kinds if k != 'Dropout'] not in _ORDERS:
        raise UserError(
            f'{folder}/modules.json: {", ".join(kinds)} is not supported, only Transformer, '
            'Pooling and Normalize, in this order'
        )
    places = {kind: m.text('path') for kind, m in zip(kinds, modules, strict=False)}
    pooling = given.read(folder / (places.get('Pooling') or '1_Pooling') / 'config.json', POOLING)
    result: dict[str, Any] = {'pool': _pool(pooling, width)} if pooling.values else {}
    if modules or 'Normalize' in kinds:
        result['unit_length'] = 'Normalize' in kinds
    if 'Normalize' in kinds:
        given.read(folder / (places.get('Normalize') or '2_Normalize') / 'config.json', NORMALIZE)
    given.read(folder / 'config_sentence_transformers.json', SENTENCE)
    return result


def read_length(archive: Archive, positions: int) -> int:
    """Return the number of tokens to which texts are truncated. UserError as `read_modules`."""
    given, folder = archive.given, archive.folder
    transformer = given.read(folder / 'sentence_bert_config.json', TRANSFORMER)
    tokenizer = given.read(folder / 'tokenizer_config.json', TOKENIZER)
    lower = _is_lower(folder / 'tokenizer.json')
    if lower is not None:
        for record, values in ((transformer, (True,)), (tokenizer, (True, False))):
            if (
                record.flag('do_lower_case', None) in values
                and record.values['do_lower_case'] != lower
            ):
                raise UserError(
                    f'{record.at("do_lower_case")}, but the normalizer of tokenizer.json has '
                    f'lowercase={str(lower).lower()}; correct one of the files'
                )
    usual = float(positions)
    for record, name in ((transformer, 'max_seq_length'), (tokenizer, 'model_max_length')):
        # Tokenizers without a limit have 1e30.
        if transformer.values and record.number(name, None) is not None:
            if record.number(name) < 1:
                raise UserError(f'{record.at(name)} should be at least 1')
            return int(min(record.number(name), usual))
    return positions


def _is_lower(path: Path) -> bool | None:
    """Whether a tokenizer.json converts texts to lower case; None without a normalizer of BERT."""
    definition = json_file.read(path)
    normalizer = definition.record('normalizer', None) if definition else None
    return normalizer.flag('lowercase', None) if normalizer else None


def _pool(pooling: Record, width: int) -> str:
    """Return the model field `pool` for a 1_Pooling/config.json of either form."""
    for name in ('word_embedding_dimension', 'embedding_dimension'):
        if pooling.integer(name, width) != width:
            raise UserError(f'{pooling.at(name)}, but the hidden states have {width} numbers')
    fields = [name for name in _LEGACY if pooling.flag(name, False)]
    modes = {_LEGACY[name] for name in fields}
    if 'pooling_mode' in pooling:
        mode = pooling.values['pooling_mode']
        stated = {mode} if isinstance(mode, str) else set(pooling.texts('pooling_mode'))
        if modes and stated != modes:
            raise UserError(f'{pooling.at("pooling_mode")}, but also {", ".join(fields)}')
        fields, modes = ['pooling_mode'], stated
    modes = modes or {'mean'}
    if len(modes) > 1 or not modes <= set(_POOLS):
        raise UserError(
            f'{pooling.where}: {", ".join(fields)} with {", ".join(sorted(modes))} is not '
            f'supported, only one of {", ".join(_POOLS)}: it needs that pooling in '
            'jaxtrain/models/bert.py'
        )
    return _POOLS[modes.pop()]


_KINDS = ('Transformer', 'Pooling', 'Normalize', 'Dropout')
_ORDERS: tuple[list[str], ...] = (
    [], ['Pooling'], ['Pooling', 'Normalize'], ['Transformer', 'Pooling'],
    ['Transformer', 'Pooling', 'Normalize'],
)  # fmt: skip
_LEGACY = {
    'pooling_mode_cls_token': 'cls',
    'pooling_mode_max_tokens': 'max',
    'pooling_mode_mean_tokens': 'mean',
    'pooling_mode_mean_sqrt_len_tokens': 'mean_sqrt_len_tokens',
    'pooling_mode_weightedmean_tokens': 'weightedmean',
    'pooling_mode_lasttoken': 'lasttoken',
}
_POOLS = {'mean': 'mean', 'cls': 'first'}
