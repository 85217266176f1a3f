"""Keras's model config: the layers of a saved model, in the forms of Keras 2 and 3.

The config is the attribute `model_config` of an .h5 file, and config.json in a .keras archive; a
.weights.h5 file has none. Nested models are flattened, and layers that compute nothing outside
training are passed over.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtrain import json_file
from jaxtrain.errors import UserError
from jaxtrain.json_file import Record
from jaxtrain.weights.schemas.schema import Given, Only, Schema, computed, no_effect

# Classes that pass on their input outside training.
PASSIVE = (
    'Dropout', 'SpatialDropout2D', 'GaussianDropout', 'GaussianNoise', 'AlphaDropout',
    'ActivityRegularization', 'RandomFlip', 'RandomRotation', 'RandomZoom', 'RandomContrast',
    'RandomBrightness', 'RandomTranslation',
)  # fmt: skip
_TRAINING = no_effect(
    'states how the layer was made or trained', 'name', 'trainable', 'dtype', 'input_dtype',
    'batch_input_shape', 'batch_shape', 'sparse', 'ragged', 'optional', 'momentum',
    'activity_regularizer', 'synchronized', 'renorm_clipping', 'renorm_momentum', 'fused',
    'virtual_batch_size', 'moving_mean_initializer', 'moving_variance_initializer',
    *(f'{array}_{kind}' for array in ('kernel', 'bias', 'beta', 'gamma')
      for kind in ('initializer', 'regularizer', 'constraint')),
)  # fmt: skip
_OTHER = 'another network'
_LAST = Only(('channels_last', None), 'images [height, width, channels]')


def _only(*values: Any) -> Only:
    return Only(values, _OTHER)


# The fields of each class; `Layer.check` adds those whose value depends on the place.
LAYERS: dict[str, Schema] = {
    'ZeroPadding2D': {'data_format': _LAST},
    'Conv2D': {
        'data_format': _LAST, 'dilation_rate': _only([1, 1], 1), 'groups': _only(1),
        'use_bias': _only(True), **computed('filters'),
    },
    'BatchNormalization': {
        'center': _only(True), 'scale': _only(True), 'renorm': _only(False),
        'axis': _only(3, -1, [3], [-1]), **computed('epsilon'),
    },
    'Activation': computed('activation'),
    'Add': {},
    'MaxPooling2D': {'data_format': _LAST},
    'GlobalAveragePooling2D': {'data_format': _LAST, 'keepdims': _only(False)},
    'GlobalMaxPooling2D': {'data_format': _LAST, 'keepdims': _only(False)},
    'Flatten': {'data_format': _LAST},
    'Dense': {
        'use_bias': _only(True), 'quantization_config': _only(None), 'lora_rank': _only(None),
        'lora_alpha': _only(None), **computed('units', 'activation'),
    },
    'Softmax': {'axis': _only(-1)},
    'Rescaling': computed('scale', 'offset'),
}  # fmt: skip
_CALL: Schema = {'mask': _only(None), 'training': _only(None, False)}


@dataclass(frozen=True)
class Layer:
    """A layer at its place in the network.

    Attributes:
      name: its name.
      kind: its class.
      config: its fields.
      inputs: names of the layers whose outputs it takes.
      call: the arguments of its call beside the inputs.
    """

    name: str
    kind: str
    config: Record
    inputs: tuple[str, ...]
    call: Record

    def check(self, given: Given, expected: Mapping[str, tuple[Any, ...]]) -> Record:
        """Return the fields of a layer, whose class must be in LAYERS.

        Args:
          given: what the user states.
          expected: field -> values, the usual one first, of fields that depend on the place.

        Raises:
          UserError: a field is unknown or has another value.
        """
        given.check(self.call, _CALL)
        here = {name: Only(values, _OTHER) for name, values in expected.items()}
        return given.check(self.config, {**_TRAINING, **LAYERS[self.kind], **here})


@dataclass(frozen=True)
class Network:
    """A model.

    Attributes:
      where: the file, for messages.
      layers: in the order of the file, without those that compute nothing outside training.
      source: the name of the input, '' if it is not a layer.
      image: height, width and channels of the images, None where any are accepted.
    """

    where: str
    layers: tuple[Layer, ...]
    source: str
    image: tuple[int | None, ...]


def read(text: str | bytes, where: str, given: Given) -> Network:
    """Read a model config.

    Raises:
      UserError: it is damaged, or its layers do not form one network with one input.
    """
    record = json_file.parse(text, where)
    walk = _Walk(where, given)
    try:
        walk.add(record.values, ())
        ((source, first),) = walk.sources
        shape = first.get('batch_shape') or first['batch_input_shape']
        sides = tuple(side if side is None else int(side) for side in shape[1:])
    except UserError:
        raise
    except Exception as error:  # a damaged config raises anything
        raise UserError(
            f'{where} is not one network with one input, as Keras saves it '
            f'({type(error).__name__}); save its weights alone, with model.save_weights'
        ) from error
    return Network(where, tuple(walk.layers), source, sides)


@dataclass
class _Walk:
    """Collects the layers of a model, and of the models in it."""

    where: str
    given: Given
    layers: list[Layer] = field(default_factory=list)
    sources: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def add(self, model: Mapping[str, Any], feeds: tuple[str, ...]) -> str:
        """Add the layers of a model with these inputs, and return the name of its output."""
        config = model['config']
        layers = config if isinstance(config, list) else config['layers']
        chain = not any('inbound_nodes' in layer for layer in layers)  # a Sequential
        outputs: dict[str, str] = {}
        unfed, last = list(feeds), feeds[0] if feeds else ''
        for layer in layers:
            name = layer.get('name') or layer['config']['name']
            calls = layer.get('inbound_nodes') or []
            if len(calls) > 1:
                raise UserError(
                    f'{self.where}: layer {name!r} is used {len(calls)} times, which is not '
                    'supported; save a model that uses each layer once'
                )
            if layer['class_name'] == 'InputLayer' and feeds:
                last = outputs[name] = unfed.pop(0)
                continue
            used, call = _call(calls[0]) if calls else ((), {})
            inputs = tuple(outputs[each] for each in used)
            inputs = (last,) if chain and last else inputs
            last = outputs[name] = self._layer(name, layer, inputs, call)
        if chain:
            return last
        ends = config['output_layers']
        (end,) = [ends] if isinstance(ends[0], str) else ends
        return outputs[end[0]]

    def _layer(
        self, name: str, layer: Mapping[str, Any], inputs: tuple[str, ...], call: dict[str, Any]
    ) -> str:
        """Add one layer, and return the name of its output."""
        kind, config = layer['class_name'], layer['config']
        if isinstance(config, list) or 'layers' in config:
            return self.add(layer, inputs)
        if kind == 'InputLayer' or not inputs:
            self.sources.append((name if kind == 'InputLayer' else '', config))
        if kind == 'InputLayer':
            return name
        arguments = Record(self.where, call, f'{name}.')
        idle = kind in PASSIVE or (kind == 'Activation' and config['activation'] == 'linear')
        if idle and len(inputs) == 1:
            self.given.check(arguments, _CALL)
            return inputs[0]
        config = Record(self.where, config, f'{name}.')
        self.layers.append(Layer(name, kind, config, inputs, arguments))
        return name


def _call(node: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return (names of the layers whose outputs a call takes, its other arguments)."""
    if isinstance(node, dict):  # Keras 3
        return tuple(_histories(node['args'])), dict(node['kwargs'])
    entries = [node] if isinstance(node[0], str) else node  # Keras 2
    arguments = [entry[3] for entry in entries if len(entry) > 3]
    return tuple(entry[0] for entry in entries), {k: v for x in arguments for k, v in x.items()}


def _histories(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for inner in value:
            yield from _histories(inner)
    elif value['class_name'] == '__keras_tensor__':
        yield value['config']['keras_history'][0]
    else:
        raise ValueError
