"""The cases of transformers and sentence-transformers for `make_fields`."""

import copy
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.make_fields import FieldCase
from tests.golden.make_weights import inputs, weight

TOKENS = [[5, 7, 2, 9, 11, 3], [4, 8, 6, 1, 0, 0]]
TEXTS = ['a b c D e', 'f g', 'a b c d e f g h a b c d e f g h']
ACTIVATIONS = ['gelu', 'gelu_new', 'gelu_fast', 'gelu_pytorch_tanh', 'relu', 'silu', 'quick_gelu']
LABELS = {'0': 'cat', '1': 'dog', '2': 'cow'}
# Model -> (config class, model class, fields of the tiny model, input).
BERT = {
    'vocab_size': 20, 'hidden_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 4,
    'intermediate_size': 32, 'max_position_embeddings': 16,
}  # fmt: skip
VIT = {
    'hidden_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'image_size': 16,
    'patch_size': 8, 'num_labels': 3,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any], Any]] = {
    'gpt2': (
        'GPT2Config', 'GPT2LMHeadModel',
        {'vocab_size': 20, 'n_positions': 12, 'n_embd': 24, 'n_layer': 2, 'n_head': 4,
         'bos_token_id': 0, 'eos_token_id': 0},
        TOKENS,
    ),
    'bert': (
        'BertConfig', 'BertForSequenceClassification', {**BERT, 'num_labels': 3}, TOKENS
    ),
    'vit': (
        'ViTConfig', 'ViTForImageClassification', {**VIT, 'intermediate_size': 32}, [16, 16, 3]
    ),
    'dinov2': (
        'Dinov2Config', 'Dinov2ForImageClassification', {**VIT, 'mlp_ratio': 2}, [16, 16, 3]
    ),
    'dinov2_registers': (
        'Dinov2WithRegistersConfig', 'Dinov2WithRegistersForImageClassification',
        {**VIT, 'mlp_ratio': 2, 'num_register_tokens': 2}, [16, 16, 3],
    ),
}  # fmt: skip

# Other legal values of the fields of config classes; a bool is negated.
OTHER: dict[str, list[Any]] = {
    **dict.fromkeys(('n_embd', 'hidden_size'), [32]),
    **dict.fromkeys(('n_layer', 'num_hidden_layers'), [1]),
    **dict.fromkeys(('n_head', 'num_attention_heads'), [2]),
    **dict.fromkeys(('n_positions', 'max_position_embeddings'), [14]),
    **dict.fromkeys(('activation_function', 'hidden_act'), ACTIVATIONS),
    **dict.fromkeys(('layer_norm_epsilon', 'layer_norm_eps'), [0.1]),
    **dict.fromkeys(('bos_token_id', 'eos_token_id'), [7]),
    'vocab_size': [23], 'n_inner': [40], 'intermediate_size': [40], 'mlp_ratio': [3],
    'initializer_range': [0.3], 'type_vocab_size': [3], 'pad_token_id': [3],
    'summary_type': ['first'], 'summary_activation': ['tanh'],
    'image_size': [24, [16, 32]], 'patch_size': [4], 'num_channels': [1], 'encoder_stride': [8],
    'pooler_output_size': [10], 'pooler_act': ['relu'], 'layerscale_value': [0.1],
    'num_register_tokens': [3], 'drop_path_rate': [0.3],
    'out_features': [['stage1']], 'out_indices': [[1]], '_out_features': [['stage1']],
    '_out_indices': [[1]], 'stage_names': [['stem', 'a', 'b']],
    'dtype': ['float64'], 'chunk_size_feed_forward': [2],
    'id2label': [{'0': 'a', '1': 'b', '2': 'c', '3': 'd'}, LABELS], 'label2id': [{'a': 0}],
    'problem_type': ['regression', 'multi_label_classification', 'single_label_classification'],
    'architectures': [['GPT2DoubleHeadsModel'], ['RobertaModel'], None],
    'model_type': ['roberta', 'gpt_neo', 'deit'],
    'transformers_version': ['4.0.0'], '_name_or_path': ['elsewhere'],
    # Fields of earlier versions, and one that no version has.
    'position_embedding_type': ['relative_key', 'absolute'], 'pruned_heads': [{'0': [1]}, {}],
    'torch_dtype': ['float32'], 'gradient_checkpointing': [True], 'n_ctx': [12],
    'finetuning_task': ['mnli'], 'auto_map': [{'AutoModel': 'modeling.Model'}],
    'quantization_config': [{'quant_method': 'gptq'}], 'a_new_field': [1],
}  # fmt: skip
DROPOUT = ('pdrop', 'dropout', 'dropout_prob')
# These are set in the file, since the config class sets them itself or no longer has them.
RAW = (
    'architectures', 'model_type', 'transformers_version', '_name_or_path', 'torch_dtype',
    'position_embedding_type', 'pruned_heads', 'gradient_checkpointing', 'n_ctx',
    'finetuning_task', 'auto_map', 'quantization_config', 'a_new_field', 'dtype',
)  # fmt: skip


def cases() -> list[FieldCase]:
    made = []
    for model in MODELS:
        made += list(_of_config(model))
    return [*made, *_redundant(), *_of_processors(), *_of_sentences()]


def _of_config(model: str) -> Iterator[FieldCase]:
    import transformers

    config_class, model_class, fields, sizes = MODELS[model]
    cls = getattr(transformers, config_class)
    base = cls(**fields).to_dict()
    yield _case(model, '', None, fields, sizes)
    names = [n for n in dict.fromkeys((*base, *OTHER)) if n in base or n in RAW]
    for name in (*names, *([] if 'out_features' in base else [])):
        for value in _others(name, base.get(name)):
            if value != base.get(name) or name in RAW:
                yield _case(model, name, value, fields, sizes)


def _others(name: str, usual: Any) -> list[Any]:
    if isinstance(usual, bool):
        return [not usual]
    if name.endswith(DROPOUT):
        return [0.3]
    if name not in OTHER:
        raise SystemExit(f'name another legal value of {name} (usually {usual!r}) in OTHER')
    return OTHER[name]


def _case(model: str, name: str, value: Any, fields: dict, sizes: Any) -> FieldCase:
    """Compute the outputs of a model in which one field is changed."""
    import transformers

    config_class, model_class, _, _ = MODELS[model]
    changed = {**fields, name: value} if name and name not in RAW else dict(fields)
    if name == 'output_attentions':  # other implementations do not return them
        changed['attn_implementation'] = 'eager'
    if name == 'id2label':
        changed.pop('num_labels', None)
    if name == 'image_size':
        sizes = [value, value, 3] if isinstance(value, int) else [*value, 3]
    if name == 'num_channels':
        sizes = [*sizes[:2], value]
    case = FieldCase(
        'huggingface', model, 'config.json' if name else '', name, value, {}, {}, sizes
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            config = getattr(transformers, config_class)(**changed)
            cls = getattr(transformers, model_class)
            case.arrays = write_weights(cls(config), folder)
            path = Path(folder) / 'config.json'
            content = json.loads(path.read_text())
            if name and (name in RAW or name not in content):
                content[name] = value
                path.write_text(json.dumps(content))
            case.files = {'config.json': content}
            case.outputs = _outputs(read_model(cls, folder), sizes, content.get('pad_token_id'))
        except Exception as error:
            case.error = f'{type(error).__name__}: {error}'[:200]
    if not case.files:
        config = getattr(transformers, config_class)(**fields)
        case.files = {'config.json': {**config.to_dict(), name: value}}
    return case


def write_weights(model, folder: str) -> dict[str, list[int]]:
    """Save a model whose arrays are made from their keys in the file; return their shapes."""
    import torch
    from safetensors.torch import load_file, save_file

    model.save_pretrained(folder)
    path = os.path.join(folder, 'model.safetensors')
    shapes = {k: tuple(v.shape) for k, v in load_file(path).items()}
    arrays = {k: torch.from_numpy(weight(k, s)) for k, s in shapes.items()}
    save_file(arrays, path, metadata={'format': 'pt'})
    return {k: list(s) for k, s in shapes.items()}


def read_model(cls, folder: str):
    import torch

    model, info = cls.from_pretrained(folder, output_loading_info=True, dtype=torch.float64)
    assert not (info['missing_keys'] or info['unexpected_keys'] or info['mismatched_keys']), info
    return model.double().eval()


def _outputs(model, sizes: Any, pad: int | None) -> np.ndarray:
    import torch

    model.config.return_dict = True  # the outputs are read by name
    with torch.no_grad():
        if isinstance(sizes[0], list):
            tokens = torch.tensor(sizes)
            mask = (tokens != pad).long() if model.config.model_type == 'bert' else None
            out = model(input_ids=tokens, attention_mask=mask, return_dict=True)
        else:
            x = inputs(tuple(sizes)).transpose(0, 3, 1, 2).copy()
            out = model(torch.from_numpy(x), return_dict=True)
    return out.logits.numpy()


def _redundant() -> Iterator[FieldCase]:
    """GPT-2 with an output layer in the file although config.json ties it to the embedding."""
    import transformers
    from safetensors.torch import load_file

    _, _, fields, sizes = MODELS['gpt2']
    cls = transformers.GPT2LMHeadModel
    config = transformers.GPT2Config(**fields, tie_word_embeddings=False)
    for tied in (True, None):
        case = FieldCase(
            'huggingface', 'gpt2', 'config.json', 'tie_word_embeddings', tied, {}, {}, sizes
        )
        with tempfile.TemporaryDirectory() as folder:
            case.arrays = write_weights(cls(config), folder)
            path = Path(folder) / 'config.json'
            content = json.loads(path.read_text())
            content.pop('tie_word_embeddings')
            content |= {} if tied is None else {'tie_word_embeddings': tied}
            path.write_text(json.dumps(content))
            case.files = {'config.json': content}
            assert 'lm_head.weight' in load_file(os.path.join(folder, 'model.safetensors'))
            case.outputs = _outputs(read_model(cls, folder), sizes, None)
        yield case


PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    'vit': ('ViTImageProcessorPil', {'size': {'height': 16, 'width': 16}}),
    'dinov2': (
        'BitImageProcessorPil',
        {'size': {'shortest_edge': 20}, 'crop_size': {'height': 16, 'width': 16}},
    ),
}
PROCESSOR_VALUES: dict[str, list[Any]] = {
    'size': [
        16, 20, {'height': 16, 'width': 16}, {'shortest_edge': 17}, {'height': 20, 'width': 18},
    ],
    'crop_size': [16, 14, {'height': 16, 'width': 12}],
    'resample': [0, 1, 2, 3, 4, 5],
    'rescale_factor': [1 / 127.5, 1.0],
    'image_mean': [[0.1, 0.2, 0.3], [0.4, 0.4, 0.4]],
    'image_std': [[0.1, 0.2, 0.3], [1.0, 1.0, 1.0]],
    'do_resize': [False], 'do_rescale': [False], 'do_normalize': [False],
    'do_center_crop': [True, False], 'do_convert_rgb': [True, False],
    'default_to_square': [True, False], 'do_pad': [True, False],
    'pad_size': [{'height': 20, 'width': 20}],
    'image_processor_type': ['ViTImageProcessor', 'BitImageProcessor', 'CLIPImageProcessor'],
    'a_new_field': [1],
}  # fmt: skip
PICTURE = (17, 24)  # with crops whose margins differ by a pixel


def picture(shape: tuple[int, int]) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (*shape, 3)).astype(np.uint8)


def _of_processors() -> Iterator[FieldCase]:
    import transformers

    for model, (kind, fields) in PROCESSORS.items():
        cls = getattr(transformers, kind)
        names = dict.fromkeys((*cls(**fields).to_dict(), *PROCESSOR_VALUES))
        base = _case(model, '', None, *MODELS[model][2:])
        yield _pixels(base, cls, '', None, fields)
        for name in names:
            if name not in PROCESSOR_VALUES:
                raise SystemExit(f'name another legal value of {name} in PROCESSOR_VALUES')
            for value in PROCESSOR_VALUES[name]:
                yield _pixels(base, cls, name, value, fields)


def _pixels(base: FieldCase, cls: Any, name: str, value: Any, fields: dict) -> FieldCase:
    """Return the case of an image that a processor with one other field makes."""
    file = 'preprocessor_config.json'
    case = copy.copy(base)
    case.file, case.field, case.value = file if name else '', name, value
    case.inputs, case.outputs = {'pixels': list(PICTURE)}, None
    content = {**json.loads(cls(**fields).to_json_string()), **({name: value} if name else {})}
    content.setdefault('image_processor_type', cls.__name__)
    case.files = {**base.files, file: content}
    try:
        import transformers

        kind = content['image_processor_type'].removesuffix('Pil') + 'Pil'
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / file).write_text(json.dumps(content))
            made = getattr(transformers, kind).from_pretrained(folder)
            case.outputs = made(picture(PICTURE), return_tensors='np')['pixel_values'].astype('f4')
            case.outputs = case.outputs.transpose(0, 2, 3, 1)
    except Exception as error:
        case.error = f'{type(error).__name__}: {error}'[:200]
    return case


def _of_sentences() -> Iterator[FieldCase]:
    """A sentence encoder, whose modules and their files have one other field."""
    with tempfile.TemporaryDirectory() as folder:
        arrays = _sentence_folder(folder)
        yield _embedding(folder, arrays, '', '', None, lambda files: None)
        pooling, legacy = '1_Pooling/config.json', 'pooling_mode_'
        modes = ('cls', 'max', 'mean', 'mean_sqrt_len_tokens', 'weightedmean', 'lasttoken')
        for value in (*modes, ['cls', 'mean'], ['mean']):
            yield _embedding(folder, arrays, pooling, 'pooling_mode', value, None)
        names = ('cls_token', 'max_tokens', 'mean_tokens', 'mean_sqrt_len_tokens',
                 'weightedmean_tokens', 'lasttoken')  # fmt: skip
        for name in names:
            flags = {f'{legacy}{n}': n == name for n in names}
            old = {'word_embedding_dimension': 24, **flags}
            yield _embedding(
                folder, arrays, pooling, f'{legacy}{name}', True,
                lambda files, old=old: files.update({pooling: old}),
            )  # fmt: skip
        both = {
            'word_embedding_dimension': 24,
            f'{legacy}cls_token': True,
            f'{legacy}mean_tokens': True,
        }
        yield _embedding(
            folder, arrays, pooling, f'{legacy}cls_token, {legacy}mean_tokens', True,
            lambda files: files.update({pooling: {'word_embedding_dimension': 24, **both}}),
        )  # fmt: skip
        for file, name, value in (
            (pooling, 'include_prompt', False),
            ('3_Normalize/config.json', 'module_input_name', 'token_embeddings'),
            ('sentence_bert_config.json', 'max_seq_length', 6),
            ('sentence_bert_config.json', 'do_lower_case', True),
            ('sentence_bert_config.json', 'unpad_inputs', True),
            ('sentence_bert_config.json', 'transformer_task', 'fill-mask'),
            ('tokenizer_config.json', 'model_max_length', 6),
            ('tokenizer_config.json', 'padding_side', 'left'),
            ('tokenizer_config.json', 'truncation_side', 'left'),
            ('tokenizer_config.json', 'clean_up_tokenization_spaces', True),
            ('config_sentence_transformers.json', 'default_prompt_name', 'query'),
            ('config_sentence_transformers.json', 'truncate_dim', 12),
            ('config_sentence_transformers.json', 'similarity_fn_name', 'dot'),
        ):
            yield _embedding(folder, arrays, file, name, value, None)
        for what in ('Normalize', 'Dense'):
            yield _embedding(
                folder, arrays, 'modules.json', 'type', what,
                lambda files, what=what: _modules(files, what),
            )  # fmt: skip


def _sentence_folder(folder: str) -> dict[str, list[int]]:
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', *'abcdefgh']
    numbers = {word: i for i, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(numbers, unk_token='[UNK]'))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token='[PAD]', unk_token='[UNK]', cls_token='[CLS]',
        sep_token='[SEP]', model_max_length=16,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as first:
        arrays = write_weights(transformers.BertModel(transformers.BertConfig(**BERT)), first)
        tokenizer.save_pretrained(first)
        options = {'dtype': torch.float64}
        encoder = Transformer(first, model_kwargs=options)
        modules = [encoder, Pooling(24, 'mean'), Normalize()]
        whole = SentenceTransformer(modules=modules, device='cpu', prompts={'query': 'a a'})
        whole.double().save_pretrained(folder)
    return arrays


def _modules(files: dict[str, Any], what: str) -> None:
    if what == 'Normalize':  # it is left out
        files['modules.json'] = files['modules.json'][:2]
        del files['2_Normalize/config.json']
        return
    kind = 'sentence_transformers.base.modules.dense.Dense'
    files['modules.json'].append({'idx': 3, 'name': '3', 'path': '3_Dense', 'type': kind})
    files['3_Dense/config.json'] = {
        'in_features': 24, 'out_features': 24, 'bias': False,
        'activation_function': 'torch.nn.modules.activation.Tanh',
    }  # fmt: skip


def _embedding(
    folder: str, arrays: dict, file: str, name: str, value: Any, change: Callable | None
) -> FieldCase:
    import shutil

    import torch
    from safetensors.torch import save_file
    from sentence_transformers import SentenceTransformer

    file = file.replace('3_Normalize', '2_Normalize')
    files = {
        str(path.relative_to(folder)): json.loads(path.read_text())
        for path in Path(folder).rglob('*.json')
    }
    if change:
        change(files)
    else:
        files[file] = {**files.get(file, {}), name: value}
    case = FieldCase('huggingface', 'sentence', file, name, value, files, arrays, TEXTS)
    with tempfile.TemporaryDirectory() as changed:
        shutil.copytree(folder, changed, dirs_exist_ok=True)
        for path, content in files.items():
            target = Path(changed) / path
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(content))
        if '3_Dense/config.json' in files:
            made = {'linear.weight': torch.from_numpy(weight('linear.weight', (24, 24)))}
            save_file(made, os.path.join(changed, '3_Dense', 'model.safetensors'))
        try:
            options = {'dtype': torch.float64}
            model = SentenceTransformer(changed, device='cpu', model_kwargs=options).double()
            made = model.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)
            case.outputs = made.double().numpy()
        except Exception as error:
            case.error = f'{type(error).__name__}: {error}'[:200]
    return case
