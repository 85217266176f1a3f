"""Fields that the config.json of every model of transformers may have.

They are those of PreTrainedConfig, also of earlier versions, and those that other programs add.
"""

from jaxtrain.weights.schemas.schema import NoEffect, Only, Schema, computed, no_effect

BASE: Schema = {
    **no_effect(
        'bookkeeping', 'transformers_version', '_name_or_path', 'name_or_path', '_commit_hash',
        'finetuning_task', 'task_specific_params', 'license', 'language', 'label2id', 'vocab_file',
        'xla_device', 'tokenizer_class', 'prefix', 'base_model', 'total_flos', '_num_labels',
        'sentence_transformers', 'library_name', 'pipeline_tag', 'tags', 'custom_pipelines',
        'attribute_map', '_auto_class', 'output_past', 'model_name', 'processor_class',
    ),
    **no_effect(
        'the format of the outputs', 'output_attentions', 'output_hidden_states', 'return_dict',
        'use_cache', 'torchscript', 'use_return_dict', 'keys_to_ignore_at_inference',
    ),
    **no_effect(
        'the precision or the speed', 'dtype', 'torch_dtype', 'use_bfloat16', 'tf_legacy_loss',
        'chunk_size_feed_forward', '_attn_implementation', 'attn_implementation',
        '_attn_implementation_internal', '_attn_implementation_autoset', 'gradient_checkpointing',
        '_experts_implementation', '_output_attentions', 'bf16', 'fp16', 'fuse_matmul',
        'use_memory_efficient_attention',
    ),
    **no_effect('only initial values', 'initializer_range', 'initializer_factor'),
    **no_effect(
        'only generation', 'bad_words_ids', 'begin_suppress_tokens', 'diversity_penalty',
        'do_sample',
        'early_stopping', 'encoder_no_repeat_ngram_size', 'encoder_repetition_penalty',
        'epsilon_cutoff', 'eta_cutoff', 'exponential_decay_length_penalty', 'forced_bos_token_id',
        'forced_eos_token_id', 'length_penalty', 'max_length', 'min_length', 'no_repeat_ngram_size',
        'num_beam_groups', 'num_beams', 'num_return_sequences', 'output_scores',
        'remove_invalid_values', 'repetition_penalty', 'return_dict_in_generate',
        'suppress_tokens', 'temperature', 'top_k', 'top_p', 'typical_p', 'max_new_tokens',
        'bos_token_id', 'eos_token_id', 'sep_token_id', 'cls_token_id', 'mask_token_id',
        'unk_token_id', 'decoder_start_token_id', 'eos_token_ids', 'bos_token_ids',
        'pad_token_id', 'assistant_confidence_threshold', 'assistant_lookbehind',
        'num_assistant_tokens', 'num_assistant_tokens_schedule', 'target_lookbehind',
    ),
    **computed('id2label', 'num_labels'),
    'problem_type': Only(
        (None, 'single_label_classification'), 'another task than classification into one class'
    ),
    **{
        name: Only((False, None), 'a decoder with cross-attention')
        for name in ('is_encoder_decoder', 'add_cross_attention', 'tie_encoder_decoder')
    },
    'is_decoder': Only((False, None), 'another mask of attention'),
    'cross_attention_hidden_size': Only((None,), 'a decoder with cross-attention'),
    'pruned_heads': Only(({}, None), 'blocks with different numbers of heads'),
    'quantization_config': Only((None,), 'weights that are quantised'),
    'auto_map': Only((None, {}), 'the code of its authors'),
    'adapters': Only((None, {}), 'adapters'),
    'custom_architecture': Only((None, ''), 'the code of its authors'),
    'tie_word_embeddings': NoEffect('there is no output layer over tokens'),
}  # fmt: skip


def kind(model_type: tuple[str, ...], architectures: tuple[str, ...], needs: str) -> Schema:
    """Return the fields that name the model, which other kinds of models do not match."""
    return {
        'model_type': Only(model_type, needs),
        'architectures': Only((*([name] for name in architectures), None, []), needs),
    }
