"""Configs; config files import `base` and `known_variant` from here."""

from jaxtrain.config.closed import Config, known_variant
from jaxtrain.config.keys import base

__all__ = ['Config', 'base', 'known_variant']
