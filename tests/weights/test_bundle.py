"""Settings of weights: they fill what the config leaves open, and conflicts are refused."""

import pytest

from jaxtrain.config import Config, base
from jaxtrain.config.keys import PREPROCESSING
from jaxtrain.errors import UserError
from jaxtrain.runs.folder import RunDir
from jaxtrain.weights.bundle import Bundle, of_run, resolve, resumed, with_recorded_metric

STORED = {
    'image_size': (224, 224),
    'crop': 0.875,
    'crop_rounding': 'down',
    'interpolation': 'bicubic',
    'scale': 1.0,
    'mean': (103.9, 116.8, 123.7),
    'std': (1.0,),
    'channel_order': 'bgr',
}
CNN = {'name': 'cnn', 'widths': (8, 16), 'padding': 'SAME', 'dropout': 0.0}


def bundle(**data) -> Bundle:
    return Bundle('runs/there', CNN, {**STORED, **data}, ('cat', 'dog'))


def config(model=None, **changes) -> Config:
    c = base()
    for name, value in (model or {}).items():
        c.model[name] = value
    return Config(c.to_dict()).replace(**changes)


def fault(cfg, weights) -> str:
    with pytest.raises(UserError) as caught:
        resolve(cfg, weights)
    return str(caught.value)


def test_preprocessing_keys_are_open_by_default():
    data = base().to_dict()['data']
    assert {key: data[key] for key in PREPROCESSING} == dict.fromkeys(STORED)


def test_open_keys_get_defaults_without_weights():
    data = resolve(config(), None).to_dict()['data']
    assert (data['scale'], data['mean'], data['std']) == (255.0, (0.5,), (0.5,))
    assert (data['channel_order'], data['interpolation']) == ('rgb', 'auto')
    assert (data['image_size'], data['crop']) == ((), 0.0)


def test_open_keys_are_taken_from_the_weights():
    data = resolve(config(), bundle()).to_dict()['data']
    assert {key: data[key] for key in STORED} == STORED


def test_set_keys_are_kept_without_weights():
    data = resolve(config(data__scale=2.0, data__std=(0.1,)), None).to_dict()['data']
    assert (data['scale'], data['std']) == (2.0, (0.1,))


@pytest.mark.parametrize(
    'changes',
    [
        {'data__scale': 255.0},
        {'data__mean': (0.5,)},
        {'data__std': (0.2, 0.2, 0.2)},
        {'data__channel_order': 'rgb'},
    ],
)
def test_preprocessing_that_differs_from_the_weights_is_an_error(changes):
    ((name, value),) = changes.items()
    key = name.split('__')[1]
    message = fault(config(**changes), bundle())
    assert f'config.data.{key}={value!r}, but the weights of runs/there use' in message
    assert repr(STORED[key]) in message and "config.restore.settings='config'" in message


def test_the_same_preprocessing_may_be_repeated():
    resolve(config(data__channel_order='bgr', data__mean=STORED['mean']), bundle())


def test_settings_config_lets_the_config_prevail():
    cfg = config(data__scale=255.0, restore__settings='config')
    data = resolve(cfg, bundle()).to_dict()['data']
    assert (data['scale'], data['channel_order'], data['image_size']) == (255.0, 'rgb', ())


def test_size_crop_and_interpolation_may_differ():
    cfg = config(data__image_size=(64, 96), data__crop=1.0, data__interpolation='bilinear')
    data = resolve(cfg, bundle()).to_dict()['data']
    assert (data['image_size'], data['crop']) == ((64, 96), 1.0)
    assert (data['interpolation'], data['scale']) == ('bilinear', 1.0)


def test_default_values_can_be_set_explicitly():
    cfg = config(data__image_size=(), data__crop=0.0)
    data = resolve(cfg, bundle()).to_dict()['data']
    assert (data['image_size'], data['crop']) == ((), 0.0)


def test_model_without_a_name_is_taken_from_the_weights():
    model = resolve(config({'name': '', 'dropout': 0.5}), bundle()).to_dict()['model']
    assert model == {**CNN, 'dropout': 0.5}


def test_a_model_without_a_name_needs_weights():
    assert "config.model.name='' is the model of the weights" in fault(config({'name': ''}), None)


def test_fields_that_no_shape_depends_on_must_agree():
    message = fault(config({'name': 'cnn', 'padding': 'VALID'}), bundle())
    assert "config.model.padding='VALID', but the weights of runs/there" in message
    assert "with 'SAME'" in message
    resolve(config({'name': 'cnn', 'padding': 'SAME', 'widths': (4,)}), bundle())
    resolve(config({'name': 'cnn', 'padding': 'VALID'}, restore__settings='config'), bundle())


def test_unknown_value_of_settings():
    cfg = config(restore__settings='mine')
    message = fault(cfg, None)
    assert "config.restore.settings='mine'" in message and 'config, weights' in message


def test_bundle_of_a_run(pretrained):
    weights = of_run(pretrained)
    assert weights.classes == tuple('0123456789')
    assert (weights.data['scale'], weights.data['mean']) == (255.0, (0.5,))
    assert weights.model['widths'] == (8, 16)


def test_resumed_run_keeps_its_settings(tmp_path):
    began = resolve(config(), bundle())
    RunDir(tmp_path).claim({**began.to_dict(), 'model': CNN})
    changes = {'data__std': (2.0,), 'data__image_size': ()}
    again = resumed(config({'name': ''}, **changes), tmp_path).to_dict()
    assert (again['data']['scale'], again['data']['crop']) == (1.0, 0.875)
    # The run directory refuses these later.
    assert (again['data']['std'], again['data']['image_size']) == ((2.0,), ())
    assert CNN.items() <= again['model'].items()


def test_missing_model_field_of_an_old_run_is_its_default(tmp_path):
    RunDir(tmp_path).claim({**resolve(config(), None).to_dict(), 'model': {'name': 'cnn'}})
    weights = of_run(tmp_path)
    assert weights.model['padding'] == 'SAME'
    assert "with 'SAME'" in fault(config({'name': 'cnn', 'padding': 'VALID'}), weights)


@pytest.mark.parametrize(
    'before, given, after',
    [('accuracy', '', 'accuracy'), ('loss', '', 'loss'), ('accuracy', 'loss', 'loss')],
)
def test_resumed_run_keeps_its_best_metric(before, given, after, tmp_path):
    """The main metric of a task can change between versions: that of language models did."""
    old = resolve(config(task__name='lm', best_metric=before), None)
    RunDir(tmp_path).claim({**old.to_dict(), 'model': CNN})
    cfg = config(task__name='lm', best_metric=given)
    assert resumed(cfg, tmp_path).best_metric == after


@pytest.mark.parametrize(('given', 'after'), [('', 'accuracy'), ('loss', 'loss')])
def test_run_without_a_checkpoint_keeps_its_best_metric(given, after, tmp_path):
    """Such a run starts again, and its config.json must agree with the config."""
    old = resolve(config(task__name='lm', best_metric='accuracy'), None)
    RunDir(tmp_path).claim({**old.to_dict(), 'model': CNN})
    cfg = config(task__name='lm', best_metric=given)
    assert with_recorded_metric(cfg, tmp_path).best_metric == after
    assert with_recorded_metric(cfg, tmp_path / 'new').best_metric == given
