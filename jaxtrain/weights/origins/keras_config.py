"""Comparison of Keras's model config with the networks of keras.applications.

Every layer of the backbone must have the class, inputs and fields that it has there. What may
differ is read: the size of images, the eps of norms, the pooling, and the activations of the top.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtrain.errors import UserError
from jaxtrain.json_file import Record
from jaxtrain.models.resnet import STAGES
from jaxtrain.models.vgg import CONVOLUTIONS
from jaxtrain.weights.schemas.keras import LAYERS, Layer, Network
from jaxtrain.weights.schemas.schema import Given, computed

# What a file of weights alone does not state; a flag may.
UNSTATED = computed('image_size', 'pooling', 'epsilon')
POOLINGS = {'avg': 'mean', 'max': 'max'}
POOLS = {'GlobalAveragePooling2D': 'mean', 'GlobalMaxPooling2D': 'max', 'Flatten': 'flatten'}
LINEAR, RELU = ('linear', None), ('relu',)
_WHOLE = 'save the network as keras.applications makes it'


@dataclass(frozen=True)
class Place:
    """A layer as keras.applications has it.

    Attributes:
      kind: its class.
      inputs: names of its inputs; () is the layer before, ('',) the input of the network.
      fields: field -> values that mean the same.
    """

    kind: str
    inputs: tuple[str, ...]
    fields: Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Reading:
    """What a model config states.

    Attributes:
      image_size: height and width of the images, () where any are accepted.
      channels: of the images.
      eps: added to the variance in BatchNorm, None without such layers.
      pool: 'mean', 'max' or 'flatten'; '' if the network ends with positions.
      task: the task that the last activation is for, '' without a top.
      preprocessing: keys of `config.data` that a layer of the network stands for.
    """

    image_size: tuple[int, ...]
    channels: int
    eps: float | None
    pool: str
    task: str
    preprocessing: Mapping[str, Any]


def stated(given: Given, where: str, reading: Reading | None) -> Reading:
    """Add what the user states to what a file states; UserError if they differ."""
    values: dict[str, Any] = {}
    if reading:
        pool = {name: theirs for theirs, name in POOLINGS.items()}.get(reading.pool)
        values = {'pooling': pool, 'epsilon': reading.eps, 'image_size': [*reading.image_size]}
        values = {name: value for name, value in values.items() if value}
    record = given.complete(Record(where, values), UNSTATED)
    pooling, size = record.text('pooling', ''), record.numbers('image_size', ())
    if pooling not in ('', *POOLINGS):
        raise UserError(f'{record.at("pooling")} should be avg or max')
    if size and (len(size) != 2 or any(side < 1 or side % 1 for side in size)):
        raise UserError(f'{record.at("image_size")} should be [height, width]')
    pool = POOLINGS.get(pooling, reading.pool if reading else '')
    rest = (reading.channels, reading.task, reading.preprocessing) if reading else (3, '', {})
    image = tuple(int(side) for side in size)
    return Reading(image, rest[0], record.number('epsilon', None), pool, *rest[1:])


def read_vgg(network: Network, depth: int, given: Given) -> Reading:
    """Compare a network with a VGG, whose layers form a chain. UserError if it differs."""
    places = _vgg(depth)
    layers = [layer for layer in network.layers if layer.kind != 'Rescaling']
    for layer, name in zip(layers, places, strict=False):
        # Other names are those that Keras generates; such layers are taken in their order.
        if layer.name in places and layer.name != name:
            raise UserError(f'{network.where}: layer {layer.name!r} takes the place of {name!r}')
    if len(layers) < len(places):
        raise UserError(f'{network.where}: it ends before {list(places)[len(layers)]!r}; {_WHOLE}')
    named = zip([layer.name for layer in layers], places.values(), strict=False)
    return _read(network, dict(named), given)


def read_resnet(network: Network, depth: int, given: Given) -> Reading:
    """Compare a network with a ResNet, by the names of its layers. UserError if it differs."""
    places = resnet(depth)
    if missing := places.keys() - {layer.name for layer in network.layers}:
        raise UserError(f'{network.where}: layer {min(missing)!r} is missing; {_WHOLE}')
    return _read(network, places, given)


def _read(network: Network, places: Mapping[str, Place], given: Given) -> Reading:
    last, eps, tail = '', {}, []
    aliases, preprocessing = {network.source: ''}, {}
    for layer in network.layers:
        inputs = tuple(aliases.get(name, name) for name in layer.inputs) or ('',)
        place = places.get(layer.name)
        if layer.kind == 'Rescaling' and inputs == ('',):
            aliases[layer.name], preprocessing = '', _rescaling(layer, given)
        elif place is None:
            if inputs != (last,):
                raise _stranger(network, layer)
            tail.append(layer)
            last = layer.name
        else:
            expected = place.inputs or (last,)
            if tail or layer.kind != place.kind or sorted(inputs) != sorted(expected):
                raise _stranger(network, layer)
            config = layer.check(given, place.fields)
            if place.kind == 'BatchNormalization':
                eps[config.number('epsilon', 1e-3)] = config
            last = layer.name
    if len(eps) > 1:
        other = list(eps.values())[1]
        raise UserError(f'{other.at("epsilon")}, but other layers have {next(iter(eps))}; {_WHOLE}')
    *size, channels = network.image
    known = tuple(side for side in size if side is not None)
    pool, task = _tail(network, tail, given)
    return Reading(
        known if len(known) == 2 else (),
        channels or 3,
        next(iter(eps), None),
        pool,
        task,
        preprocessing,
    )


def _tail(network: Network, tail: list[Layer], given: Given) -> tuple[str, str]:
    """Return (pooling, task) of the layers after the backbone."""
    pool, activations, units = '', [], 0
    for number, layer in enumerate(tail):
        if layer.kind in POOLS and not number:
            layer.check(given, {})
            pool = POOLS[layer.kind]
        elif layer.kind == 'Dense':
            config = layer.check(given, {})
            activations.append((config, config.text('activation', None) or 'linear'))
            units = config.integer('units')
        elif layer.kind in ('Activation', 'Softmax') and activations:
            config = layer.check(given, {})
            kind = 'softmax' if layer.kind == 'Softmax' else config.text('activation')
            before = activations.pop()
            activations.append((config, kind) if before[1] == 'linear' else before)
            if before[1] != 'linear':
                raise _stranger(network, layer)
        else:
            raise _stranger(network, layer)
    if not activations:
        return pool, ''
    for config, kind in activations[:-1]:
        if kind != 'relu':
            raise UserError(f'{config.at("activation")} of a hidden layer is not supported, only '
                            '"relu"')  # fmt: skip
    config, kind = activations[-1]
    tasks = {'sigmoid': 'binary', 'linear': 'binary'} if units == 1 else {
        'softmax': 'classify', 'linear': 'classify', 'sigmoid': 'multilabel',
    }  # fmt: skip
    if kind not in tasks:
        raise UserError(
            f'{config.at("activation")} of the last layer is not supported for {units} outputs, '
            f'only {" or ".join(tasks)}'
        )
    return pool, tasks[kind]


def _rescaling(layer: Layer, given: Given) -> dict[str, Any]:
    """Return the preprocessing that x * scale + offset stands for."""
    config = layer.check(given, {})
    scale, offset = config.number('scale'), config.number('offset', 0.0)
    if not scale:
        raise UserError(f'{config.at("scale")} should not be 0')
    return {'scale': 1 / scale, 'channel_order': 'rgb', 'mean': (-offset,), 'std': (1.0,)}


def _stranger(network: Network, layer: Layer) -> UserError:
    known = '' if layer.kind in LAYERS else ', a class that is not supported'
    return UserError(
        f'{network.where}: layer {layer.name!r} ({layer.kind}, after '
        f'{", ".join(layer.inputs) or "nothing"}) is not part of the network{known}; {_WHOLE}'
    )


def _conv(kernel: int, stride: int, padding: str, activation: tuple) -> dict[str, tuple]:
    pair = {'kernel_size': kernel, 'strides': stride}
    return {
        **{name: ([value, value], value) for name, value in pair.items()},
        'padding': (padding,),
        'activation': activation,
    }


def _max_pool(window: int) -> Place:
    fields = {'pool_size': ([window, window], window), 'strides': ([2, 2], 2)}
    return Place('MaxPooling2D', (), {**fields, 'padding': ('valid',)})


def _vgg(depth: int) -> dict[str, Place]:
    places = {}
    for block, count in enumerate(CONVOLUTIONS[depth], start=1):
        for i in range(1, count + 1):
            places[f'block{block}_conv{i}'] = Place('Conv2D', (), _conv(3, 1, 'same', RELU))
        places[f'block{block}_pool'] = _max_pool(2)
    return places


def resnet(depth: int) -> dict[str, Place]:
    """Return the layers of keras.applications' ResNet by name."""
    relu = {'activation': RELU}

    def padding(side: int) -> dict[str, tuple]:
        return {'padding': ([[side, side], [side, side]], side, [side, side])}

    places = {
        'conv1_pad': Place('ZeroPadding2D', ('',), padding(3)),
        'conv1_conv': Place('Conv2D', ('conv1_pad',), _conv(7, 2, 'valid', LINEAR)),
        'conv1_bn': Place('BatchNormalization', ('conv1_conv',), {}),
        'conv1_relu': Place('Activation', ('conv1_bn',), relu),
        'pool1_pad': Place('ZeroPadding2D', ('conv1_relu',), padding(1)),
        'pool1_pool': Place('MaxPooling2D', ('pool1_pad',), _max_pool(3).fields),
    }
    before = 'pool1_pool'
    for stage, count in enumerate(STAGES[depth][0], start=2):
        for block in range(1, count + 1):
            places |= _block(f'conv{stage}_block{block}', before, block, stage)
            before = f'conv{stage}_block{block}_out'
    return places


def _block(name: str, before: str, number: int, stage: int) -> dict[str, Place]:
    """The layers of a bottleneck, whose first convolution and shortcut have the stride."""
    stride = 2 if number == 1 and stage > 2 else 1
    chain = [('1', 1, stride, 'valid'), ('2', 3, 1, 'same'), ('3', 1, 1, 'valid')]
    places, last = {}, before
    for i, kernel, step, padding in chain:
        places[f'{name}_{i}_conv'] = Place('Conv2D', (last,), _conv(kernel, step, padding, LINEAR))
        last = f'{name}_{i}_bn'
        places[last] = Place('BatchNormalization', (f'{name}_{i}_conv',), {})
        if i != '3':
            places[f'{name}_{i}_relu'] = Place('Activation', (last,), {'activation': RELU})
            last = f'{name}_{i}_relu'
    shortcut = before
    if number == 1:
        shortcut = f'{name}_0_bn'
        fields = _conv(1, stride, 'valid', LINEAR)
        places[f'{name}_0_conv'] = Place('Conv2D', (before,), fields)
        places[shortcut] = Place('BatchNormalization', (f'{name}_0_conv',), {})
    places[f'{name}_add'] = Place('Add', (shortcut, last), {})
    places[f'{name}_out'] = Place('Activation', (f'{name}_add',), {'activation': RELU})
    return places
