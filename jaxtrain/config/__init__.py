"""Configs. What a config file imports is here."""

from jaxtrain.config.closed import Config, known_variant
from jaxtrain.config.keys import base

__all__ = ['Config', 'base', 'known_variant']
