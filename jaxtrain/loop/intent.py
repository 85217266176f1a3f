"""Whether a new run does what its config says: its regime, and the groups that it freezes.

`train`, `plan`, `inspect` and `compare` all check it before anything is compiled. Runs that have
begun are not checked, so that those of earlier versions resume.

| regime     | weights                          | frozen groups                                   |
|------------|----------------------------------|-------------------------------------------------|
| 'finetune' | some must be loaded              | only of parameters that are loaded              |
| 'scratch'  | none                             | no whole backbone; parts of it are reported     |
| 'full'     | none, or it is reported that the | as for 'scratch'; no parameters that are loaded |
|            | run continues from others        |                                                 |
"""

import difflib
import re
from collections.abc import Mapping

from jaxtrain.config import Config, rules
from jaxtrain.errors import UserError
from jaxtrain.params.partition import FROZEN
from jaxtrain.weights.restore import TAKEN, Plan

EXAMPLE = "(('backbone/.*', 'frozen'), ('.*', 'head'))"
_OPPOSITES = ('un', 'not', 'non', 'never')


def check_groups(cfg: Config) -> None:
    """Raises a UserError if `config.groups` has a name that was probably meant to be otherwise.

    These are names that are hardly anything but a rule, as in 'backbone/.*=frozen', and names that
    are similar to 'frozen', whose parameters would be trained.
    """
    for _, name in rules.parse(cfg.groups, 'config.groups', str):
        if not re.fullmatch(r'\w[\w .+-]*', name):
            raise UserError(
                f'config.groups={cfg.groups!r}: {name!r} is not the name of a group, which has '
                f'letters and digits; write rules as {EXAMPLE}'
            )
        if _is_like_frozen(name):
            raise UserError(
                f'config.groups: the parameters of a group called {name!r} would be trained; did '
                f'you mean {FROZEN!r}? Otherwise choose a name that is less similar'
            )


def check_regime(cfg: Config, groups: Mapping[str, str], plan: Plan | None) -> tuple[str, ...]:
    """Checks the regime against what is restored and frozen.

    Args:
      cfg: the config.
      groups: parameter path -> name of its group.
      plan: the restore plan; None if nothing is restored, or if the weights do not exist yet.

    Returns:
      Lines that report what may not be expected.

    Raises:
      UserError: the run would not do what the regime says.
    """
    if cfg.regime == 'finetune' and not cfg.init_from:
        raise UserError(
            "config.regime='finetune' starts from weights, but config.init_from is empty; name a "
            "run directory or a file there, or set config.regime='scratch'"
        )
    loads = _loads(cfg, plan)
    if cfg.regime == 'finetune' and not loads:
        raise UserError(
            f"config.regime='finetune', but config.restore.rules load nothing of {cfg.init_from}; "
            "give the backbone a rule with 'load', or set config.regime='scratch'"
        )
    if cfg.regime == 'scratch' and loads:
        raise UserError(
            "config.regime='scratch' starts from random parameters, but config.restore.rules load "
            f"some from config.init_from={cfg.init_from!r}; set config.regime='finetune', or "
            "config.init_from=''"
        )
    if cfg.init_from and not plan:
        return ()
    loaded = set(plan.paths(*TAKEN)) if plan else set()
    frozen = [path for path, group in groups.items() if group == FROZEN]
    if cfg.regime == 'full' and (kept := [path for path in frozen if path in loaded]):
        raise UserError(
            f"config.regime='full' trains all parameters, but config.groups freeze {_some(kept)}, "
            "which are loaded; set config.regime='finetune'"
        )
    remarks = _check_random(cfg, groups, [path for path in frozen if path not in loaded])
    if cfg.regime == 'full' and loaded:
        remarks = (*remarks, f"regime 'full' continues from the weights of {cfg.init_from}")
    return remarks


def _loads(cfg: Config, plan: Plan | None) -> bool:
    """Whether weights are loaded; judged by the rules alone if the weights do not exist yet."""
    if plan or not cfg.init_from:
        return bool(plan and plan.paths(*TAKEN))
    rule_list = rules.parse(cfg.restore.rules, 'config.restore.rules', str)
    return any(action.split(' ')[0] in TAKEN for _, action in rule_list)


def _check_random(cfg: Config, groups: Mapping[str, str], frozen: list[str]) -> tuple[str, ...]:
    """Checks frozen parameters that are random."""
    if not frozen:
        return ()
    trained = [path for path, group in groups.items() if group != FROZEN]
    fault = f'config.groups freeze {_some(frozen)}, which start from random values'
    if cfg.regime == 'finetune':
        raise UserError(
            f"{fault}; let config.restore.rules load them, or give them another group than 'frozen'"
        )
    if all(path.startswith('head/') for path in trained):
        raise UserError(
            f"{fault}, so that nothing but the head is trained; set config.groups=(('.*', 'all'),) "
            "to train everything, or config.regime='finetune' and config.init_from to load weights"
        )
    return (f'{fault} and keep them',)


def _is_like_frozen(name: str) -> bool:
    """Whether a name is not 'frozen', but probably means it."""
    words = re.findall('[a-z]+', name.lower())
    if name == FROZEN or any(word.startswith(_OPPOSITES) for word in words):
        return False
    return any(
        re.match('fr[eo]*z', word) or difflib.SequenceMatcher(None, word, FROZEN).ratio() >= 0.8
        for word in words
    )


def _some(paths: list[str]) -> str:
    more = f' and {len(paths) - 1} more parameters' if len(paths) > 1 else ''
    return f'{paths[0]}{more}'
