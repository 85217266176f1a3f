"""Flags that several commands share. A flag whose default is None is required."""

from absl import flags
from absl.flags import FlagValues


def config(values: FlagValues) -> None:
    string(values, 'config', None, 'config file, as FILE.py or FILE.py:VARIANT')


def workdir(values: FlagValues) -> None:
    string(values, 'workdir', None, 'run directory')


def checkpoint(values: FlagValues) -> None:
    string(values, 'checkpoint', 'best', "'best', 'last' or a step number")


def string(values: FlagValues, name: str, default: str | None, text: str) -> None:
    flags.DEFINE_string(name, default, text, flag_values=values)


def integer(values: FlagValues, name: str, default: int, text: str) -> None:
    flags.DEFINE_integer(name, default, text, flag_values=values)


def number(values: FlagValues, name: str, default: float, text: str) -> None:
    flags.DEFINE_float(name, default, text, flag_values=values)


def switch(values: FlagValues, name: str, text: str) -> None:
    flags.DEFINE_bool(name, False, text, flag_values=values)
