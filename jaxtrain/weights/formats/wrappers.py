"""Wrappers around PyTorch's weights: of the names of arrays, and of the whole state dict.

DistributedDataParallel, torch.compile, FSDP, AveragedModel and Lightning put their own names before
those of a model (`module.`, `_orig_mod.`, `model.`), in any order and depth. Checkpoints of
trainers hold the state dict beside an optimizer, and sometimes a second one with averaged weights.
"""

from collections.abc import Iterable, Mapping
from typing import Any

# Names before those of a model. No model here begins with one of them.
OUTER = (
    'module', 'model', 'net', 'network', '_orig_mod', '_forward_module', '_fsdp_wrapped_module',
)  # fmt: skip
# Names that stand for nothing anywhere, since compiled or sharded parts of a model have them too.
ANYWHERE = ('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')
# Where checkpoints hold a state dict; the first that one has is taken. Origins may have another
# order, that of their own reader.
STATE_DICTS = (
    'state_dict', 'model', 'model_state_dict', 'module',
    'state_dict_ema', 'model_ema', 'ema_state_dict', 'ema',
)  # fmt: skip
IGNORED = ((r'n_averaged', 'a counter of averaged steps'),)


def plain_names(keys: Iterable[str]) -> tuple[dict[str, str], str]:
    """Return (key without wrappers -> key, a sentence that reports what was removed).

    Keys keep their wrappers if they would be ambiguous without them. The sentence is '' if there
    are none.
    """
    keys = list(keys)
    names = {_plain(key): key for key in keys}
    if len(names) < len(keys):
        return {key: key for key in keys}, ''
    changed = {_difference(key, name): None for name, key in names.items() if key != name}
    if not changed:
        return names, ''
    count = sum(key != name for name, key in names.items())
    return names, f'{count} of {len(names)} keys lose the prefix {" or ".join(changed)}'


def _plain(key: str) -> str:
    parts = key.split('.')
    while len(parts) > 1 and parts[0] in OUTER:
        parts = parts[1:]
    return '.'.join([part for part in parts[:-1] if part not in ANYWHERE] + parts[-1:])


def _difference(key: str, name: str) -> str:
    """Return the prefix that a key loses; for one that loses names elsewhere, those."""
    if key.endswith(name):
        return repr(key.removesuffix(name))
    return ', '.join(repr(f'{part}.') for part in ANYWHERE if f'{part}.' in key)


def choose(content: Mapping[str, Any], order: tuple[str, ...]) -> tuple[Any, str, list[str]]:
    """Return (the state dict of a checkpoint, its name, the names of others that it holds).

    The name is '' if the checkpoint is a state dict itself.
    """
    names = [name for name in (*order, *STATE_DICTS) if isinstance(content.get(name), Mapping)]
    names = [name for name in dict.fromkeys(names) if content[name]]
    if not names:
        return content, '', []
    return content[names[0]], names[0], names[1:]
