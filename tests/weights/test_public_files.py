"""Fields that config.json files of public models have, and that change nothing, are accepted."""

import pytest

from jaxtrain.errors import UserError
from jaxtrain.json_file import Record
from jaxtrain.weights.schemas.bert import BERT
from jaxtrain.weights.schemas.gpt2 import GPT2
from jaxtrain.weights.schemas.schema import Given
from jaxtrain.weights.schemas.sentence import TOKENIZER
from jaxtrain.weights.schemas.vit import DINOV2, VIT

# All fields of PretrainedConfig that early versions of transformers wrote into each file.
EARLY = {
    'finetuning_task': None, 'is_decoder': False, 'num_labels': 2, 'output_attentions': False,
    'output_hidden_states': False, 'output_past': True, 'pruned_heads': {}, 'torchscript': False,
    'use_bfloat16': False, 'bad_words_ids': None, 'bos_token_id': None, 'do_sample': False,
    'early_stopping': False, 'eos_token_id': None, 'eos_token_ids': None, 'id2label': {'0': 'a'},
    'is_encoder_decoder': False, 'label2id': {'a': 0}, 'length_penalty': 1.0, 'max_length': 20,
    'min_length': 0, 'no_repeat_ngram_size': 0, 'num_beams': 1, 'num_return_sequences': 1,
    'pad_token_id': None, 'prefix': None, 'repetition_penalty': 1.0, 'temperature': 1.0,
    'top_k': 50, 'top_p': 1.0, 'xla_device': None, 'task_specific_params': {'a': {'b': 1}},
    'gradient_checkpointing': False, '_num_labels': 1, 'tokenizer_class': None,
}  # fmt: skip
PUBLIC = {
    'gpt2': (GPT2, {'n_special': 0, 'predict_special_tokens': True, 'n_ctx': 1024}),
    'bert': (BERT, {'directionality': 'bidi', 'pooler_fc_size': 768, 'pooler_type': 'first'}),
    'vit': (VIT, {'encoder_stride': 16}),
    'dinov2': (DINOV2, {'interpolate_antialias': True, 'interpolate_offset': 0.0}),
    'tokenizer': (TOKENIZER, {'full_tokenizer_file': None, 'do_lower_case': True}),
}


@pytest.mark.parametrize('name', PUBLIC)
def test_fields_of_public_files_are_accepted(name):
    schema, fields = PUBLIC[name]
    early = {} if name == 'tokenizer' else EARLY
    record = Record('config.json', {**early, **fields})
    assert Given().check(record, schema).values == record.values


@pytest.mark.parametrize('schema', [BERT, VIT, DINOV2])
def test_a_decoder_is_refused(schema):
    with pytest.raises(UserError, match='is_decoder=true'):
        Given().check(Record('config.json', {'is_decoder': True}), schema)
