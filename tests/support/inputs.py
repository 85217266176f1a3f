"""Inputs of models in tests: features of a given shape, and sources that hold no examples."""

from typing import Any

import numpy as np

from jaxtrain.data.features import Feature, classified_image, continued_tokens, feature
from jaxtrain.data.images.transforms import Decode, Resize, Transforms
from jaxtrain.data.sources.source import Source
from jaxtrain.models import MODELS
from jaxtrain.step import state
from jaxtrain.weights.origins.names import Match


def input_of(name: str, shape: tuple[int, ...]) -> Feature:
    """The input feature of the model of that name, with a given shape."""
    return feature(MODELS[name].READS, *shape)


def abstract_variables(model, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """`state.abstract_variables` for inputs of a given shape."""
    return state.abstract_variables(model, feature(model.READS, *shape))


def match_of(fields: dict, outputs: int, shape: tuple[int, ...], rows: tuple) -> Match:
    """A match for inputs of a given shape."""
    return Match(fields, outputs, input_of(fields['name'], shape), rows)


def image_source(size: int, shape: tuple[int, ...], classes: tuple[str, ...]) -> Source:
    """A source of `size` images with classes, which cannot be fetched."""
    return Source(None, size, classified_image(*shape), 'image', classes)


def window_source(size: int, length: int, tokenizer) -> Source:
    """A source of `size` windows of text, which cannot be fetched."""
    return Source(None, size, continued_tokens(length), 'tokens', tokenizer=tokenizer)


def decode(data: bytes, shape: tuple[int, int, int], upright: bool = False) -> np.ndarray:
    """An encoded image as it is evaluated, at (height, width, channels)."""
    return Transforms(shape, (Decode(shape[2], upright), Resize(shape[:2])))(data)
