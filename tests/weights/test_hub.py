"""The JSON files beside weights: sizes, eps, GELU, class names and preprocessing."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.origins import (
    augreg,
    huggingface_text,
    huggingface_vit,
    timm,
    torchvision,
    torchvision_vit,
)
from tests.support.foreign_files import arrays


def archive(folder: Path, module, model: str, outputs: int, inputs=(224, 224, 3)) -> Archive:
    """Return an archive with the keys of a model in a folder, without a weights file."""
    weights = arrays(module, model, outputs, inputs)
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in weights.items()}
    return Archive(folder, (folder / 'model.safetensors',), 'safetensors', shapes, None)


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
    made = archive(tmp_path_factory.mktemp('none'), huggingface_text, 'minilm_l6', 3, (512,))

    def at(folder: Path) -> Archive:
        return Archive(folder, (folder / 'model.safetensors',), 'safetensors', made.arrays, None)

    return at


def write(folder: Path, name: str = 'config.json', **content) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def test_defaults_without_json_files(tmp_path):
    encoder = archive(tmp_path, huggingface_text, 'minilm_l6', 0, (512,))
    result = huggingface_text.match(encoder, 'minilm_l6')
    assert 'norm_eps' not in result.fields and 'gelu' not in result.fields
    assert result.fields['pool'] == 'mean' and result.classes == ()
    assert result.preprocessing == {'length': 512}


def test_config_json_sets_fields(bert, tmp_path):
    labels = {'0': 'cat', '1': 'dog', '2': 'cow'}
    write(
        tmp_path, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        layer_norm_eps=1e-5, hidden_act='gelu_new', pad_token_id=7, id2label=labels,
    )  # fmt: skip
    write(tmp_path, '1_Pooling/config.json', pooling_mode_cls_token=True)
    write(tmp_path, 'sentence_bert_config.json', max_seq_length=200)
    result = huggingface_text.match(bert(tmp_path), 'minilm_l6')
    names = ('norm_eps', 'gelu', 'pad', 'pool')
    assert [result.fields[name] for name in names] == [1e-5, 'tanh', 7, 'first']
    assert result.classes == ('cat', 'dog', 'cow') and result.preprocessing == {'length': 200}


@pytest.mark.parametrize(
    'content, words',
    [
        ({'hidden_size': 768}, 'hidden_size=768, but minilm_l6 has 384'),
        ({'num_hidden_layers': 12}, 'num_hidden_layers=12, but minilm_l6 has 6'),
        ({'num_attention_heads': 7}, 'num_attention_heads=7 does not divide the width, 384'),
        ({'hidden_act': 'relu'}, 'hidden_act="relu" is not supported, only gelu'),
        ({'layer_norm_eps': '1e-12'}, 'layer_norm_eps="1e-12" should be a number'),
        ({'model_type': 'roberta'}, 'model_type="roberta" is not supported, only "bert"'),
        ({'architectures': ['CamembertModel']}, 'architectures=["CamembertModel"]'),
        ({'rope_theta': 1e4}, 'rope_theta=10000.0 is not a field that is known'),
    ],
)
def test_another_model_is_refused(content, words, bert, tmp_path):
    write(tmp_path, **content)
    with pytest.raises(UserError) as caught:
        huggingface_text.match(bert(tmp_path), 'minilm_l6')
    assert f'{tmp_path}/config.json: {words}' in str(caught.value)


def test_the_length_of_embeddings_is_assumed_without_modules_json(tmp_path):
    encoder = archive(tmp_path, huggingface_text, 'minilm_l6', 0, (512,))
    write(tmp_path, '1_Pooling/config.json', pooling_mode='cls')
    (words,) = [t for t in huggingface_text.match(encoder, 'minilm_l6').assumed if 'pooling' in t]
    assert 'length 1' in words and 'modules.json' in words
    (tmp_path / '2_Normalize').mkdir()
    result = huggingface_text.match(encoder, 'minilm_l6')
    assert result.fields['unit_length'] and not any('pooling' in t for t in result.assumed)


def test_a_classifier_of_single_tokens_is_refused(bert, tmp_path):
    """transformers' BertForTokenClassification has no pooler."""
    write(tmp_path, model_type='bert')
    with pytest.raises(UserError, match='pooler.*pooling_mode=mean'):
        huggingface_text.match(bert(tmp_path), 'minilm_l6')


def test_the_number_of_heads_is_that_of_config_json(bert, tmp_path):
    """No shape depends on it."""
    write(tmp_path, num_attention_heads=6)
    write(tmp_path, '1_Pooling/config.json', pooling_mode_mean_tokens=True)
    assert huggingface_text.match(bert(tmp_path), 'minilm_l6').fields['heads'] == 6


def test_damaged_config_json(bert, tmp_path):
    (tmp_path / 'config.json').write_text('{"hidden_size": 3')
    with pytest.raises(UserError, match='config.json is not valid JSON'):
        huggingface_text.match(bert(tmp_path), 'minilm_l6')


@pytest.mark.parametrize(
    'labels',
    [{'0': 'a', '1': 'b'}, {'1': 'a', '2': 'b', '3': 'c'}, ['a', 'b', 'c'], {'0': 'a', '1': None}],
)
def test_class_names_that_are_not_those_of_the_head(labels, bert, tmp_path):
    write(tmp_path, id2label=labels)
    write(tmp_path, '1_Pooling/config.json', pooling_mode_mean_tokens=True)
    with pytest.raises(UserError, match='config.json: id2label'):
        huggingface_text.match(bert(tmp_path), 'minilm_l6')


def test_preprocessing_of_hugging_face(tmp_path):
    file = archive(tmp_path, huggingface_vit, 'dinov2_s14', 0, (224, 224, 3))
    before = huggingface_vit.match(file, 'dinov2_s14')
    assert before.preprocessing['mean'] == (0.485, 0.456, 0.406) and before.assumed
    write(
        tmp_path, 'preprocessor_config.json', image_mean=[0.1, 0.2, 0.3], image_std=[0.4] * 3,
        rescale_factor=1 / 127.5, resample=2, do_center_crop=True,
        crop_size={'height': 224, 'width': 224}, size={'shortest_edge': 280},
    )  # fmt: skip
    after = huggingface_vit.match(file, 'dinov2_s14')
    assert after.preprocessing == {
        'image_size': (224, 224), 'scale': 127.5, 'channel_order': 'rgb', 'mean': (0.1, 0.2, 0.3),
        'std': (0.4, 0.4, 0.4), 'crop': 0.8, 'crop_rounding': 'down',
        'interpolation': 'bilinear',
    }  # fmt: skip
    assert len(after.assumed) < len(before.assumed)


def test_preprocessing_and_classes_of_timm(tmp_path):
    file = archive(tmp_path, timm, 'vit_ti16', 2, (32, 32, 3))
    assert timm.match(file, 'vit_ti16').preprocessing['mean'] == (0.5,)
    pretrained = {
        'mean': [0.1, 0.2, 0.3], 'std': [0.4] * 3, 'crop_pct': 0.95, 'interpolation': 'bilinear',
        'input_size': [3, 64, 64], 'label_names': ['cat', 'dog'],
    }  # fmt: skip
    write(tmp_path, pretrained_cfg=pretrained)
    after = timm.match(file, 'vit_ti16')
    names = ('mean', 'std', 'crop', 'interpolation')
    assert [after.preprocessing[name] for name in names] == [
        (0.1, 0.2, 0.3), (0.4, 0.4, 0.4), 0.95, 'bilinear',
    ]  # fmt: skip
    # The image size follows from the positions.
    assert after.preprocessing['image_size'] == (32, 32) and after.classes == ('cat', 'dog')


def test_pretrained_cfg_sets_the_size_of_a_resnet(tmp_path):
    file = archive(tmp_path, timm, 'resnet18', 2)
    write(tmp_path, pretrained_cfg={'input_size': [3, 288, 288]})
    assert timm.match(file, 'resnet18').preprocessing['image_size'] == (288, 288)


@pytest.mark.parametrize('channels', [1, 4])
def test_images_of_other_channels_have_one_mean(channels, tmp_path):
    file = archive(tmp_path, timm, 'resnet18', 2, (224, 224, channels))
    mean = timm.match(file, 'resnet18').preprocessing['mean']
    assert mean == pytest.approx((np.mean([0.485, 0.456, 0.406]),))


IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(
    ('module', 'model', 'expected'),
    [
        # pytorch.org/vision/stable/models: 224 out of 256; for vit_l_16, out of 242.
        (torchvision, 'resnet18', {'crop': 0.875, **IMAGENET}),
        (torchvision, 'vgg16', {'crop': 0.875, **IMAGENET}),
        (torchvision_vit, 'vit_b16', {'crop': 0.875, **IMAGENET}),
        (torchvision_vit, 'vit_l16', {'crop': 224 / 242, **IMAGENET}),
        # github.com/google-research/vision_transformer: the whole image, from -1 to 1.
        (augreg, 'vit_ti16', {'crop': 0.0, 'mean': (0.5,), 'std': (0.5,)}),
    ],
)
def test_preprocessing_without_json_files(module, model, expected, tmp_path):
    result = module.match(Archive(tmp_path, (), '', {}, None), model)
    usual = {'interpolation': 'bilinear', 'scale': 255.0, 'channel_order': 'rgb'}
    assert result.preprocessing == {**usual, 'image_size': (224, 224), **expected}


def test_fewer_channels_share_their_mean_and_std(tmp_path):
    stem = {'conv1.weight': jax.ShapeDtypeStruct((64, 1, 7, 7), np.float32)}
    result = torchvision.match(Archive(tmp_path, (), '', stem, None), 'resnet18')
    assert result.inputs.shape == (224, 224, 1)
    assert result.preprocessing['mean'] == pytest.approx((0.449,), abs=1e-9)
    assert result.preprocessing['std'] == pytest.approx((0.226,), abs=1e-9)
    shared = torchvision.for_channels({'mean': (0.5,), 'std': (0.25,), 'crop': 0.9}, 1)
    assert shared == {'mean': (0.5,), 'std': (0.25,), 'crop': 0.9}
