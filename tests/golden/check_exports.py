"""Checks that the reference packages load what `jaxtrain export` writes, and compute the same.

The script has two halves, because no environment has both sets of packages. In the project's
environment it writes a file for every case of make_weights that can be exported (Keras's cannot),
with the float64 logits of our model and, for timm and transformers, config.json beside it. In the
environment that make_weights names it builds each reference model, by config.json if there is one,
loads the file strictly, and compares the logits.

    python -m tests.golden.check_exports write FOLDER   # in the project's environment
    python -m tests.golden.check_exports read FOLDER    # in the reference environment

Strictly means load_state_dict(strict=True) for torchvision and timm. For transformers, which ties
GPT-2's lm_head by itself, it means that no key is missing, unexpected or of another shape, except
that DINOv2's mask token may be missing, which only pretraining needs. timm reads from an npz only
the keys that it needs, so the keys must also equal those of `npz_shapes`. A file has the origin's
usual naming.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from tests.golden import make_weights
from tests.golden.make_weights import CASES, Case, family

LIMIT = 1e-12
DATA = {
    'crop': 0.9, 'interpolation': 'bicubic', 'scale': 255.0, 'mean': (0.5,), 'std': (0.5,),
}  # fmt: skip


def written() -> dict[str, Case]:
    """The cases that can be exported, each once and in the usual naming."""
    once = {family(name): (name, case) for name, case in CASES.items()}
    return {n: case for n, case in once.values() if case.origin != 'keras' and not case.naming}


def suffix(case: Case) -> str:
    return '.npz' if case.origin == 'augreg' else '.safetensors'


def write(folder: Path) -> None:
    """The half in the project's environment."""
    import jax

    jax.config.update('jax_enable_x64', True)
    from jaxtrain.inference.export_weights import encoded
    from jaxtrain.models import with_defaults
    from jaxtrain.weights.origins.configs import Exported, config
    from tests.weights.test_parity import apply, leaves_of, table

    for name, case in written().items():
        model, leaves, variables = leaves_of(name)
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        rows = table(name)
        values = {path: np.asarray(leaf) for path, leaf in leaves.items()}
        (target / f'model{suffix(case)}').write_bytes(encoded(rows, values, suffix(case)))
        shapes = {path: leaf.shape for path, leaf in values.items()}
        data = {**DATA, 'image_size': case.shape[:2]}
        exported = Exported(with_defaults(case.fields), data, case.outputs, (), shapes)
        if content := config(case.origin, exported):
            (target / 'config.json').write_text(json.dumps(content))
        np.save(target / 'logits.npy', apply(name, model, variables))
        print(f'{name}: {len(rows)} arrays', flush=True)


def read(folder: Path) -> None:
    """The half in the reference environment. SystemExit if a case has an error above LIMIT."""
    import torch

    make_weights.declare_operators()
    worst = 0.0
    print('| case | keys | max error / max |')
    print('|---|---|---|')
    for name, case in written().items():
        with torch.no_grad():
            model, count = _loaded(case, folder / name / f'model{suffix(case)}')
            theirs = make_weights.logits(model, case)
        ours = np.load(folder / name / 'logits.npy')
        error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        worst = max(worst, error)
        print(f'| {name} | {count} | {error:.1e} |', flush=True)
    if not worst <= LIMIT:
        raise SystemExit(f'an error of {worst:.1e} is above {LIMIT:.0e}')


def _loaded(case: Case, file: Path):
    """The reference model with the weights of a file, and the number of arrays in the file."""
    from safetensors.torch import load_file

    if case.origin == 'timm':
        import timm

        model = timm.create_model(f'local-dir:{file.parent}', pretrained=True)
        model = model.double().eval()
        model.load_state_dict(load_file(file), strict=True)
        return model, len(load_file(file))
    model = make_weights.build(case)
    if case.origin == 'augreg':
        with np.load(file) as arrays:
            weights = {key: arrays[key] for key in arrays.files}
        shapes = {key: array.shape for key, array in weights.items()}
        assert shapes == make_weights.npz_shapes(case), {*shapes} ^ {*make_weights.npz_shapes(case)}
        make_weights.load_npz(model, case, weights)
        return model, len(weights)
    state = load_file(file)
    if case.origin == 'huggingface':
        again = make_weights.from_folder(
            type(model), str(file.parent), case, 'embeddings.mask_token'
        )
        return again, len(state)
    model.load_state_dict(state, strict=True)
    return model, len(state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('half', choices=('write', 'read'))
    parser.add_argument('folder', type=Path)
    args = parser.parse_args()
    {'write': write, 'read': read}[args.half](args.folder)


if __name__ == '__main__':
    main()
