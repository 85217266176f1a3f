"""Makes pth_*.pth: files of torch.save in both of its formats, and a pickled model.

This requires torch==2.13.0 and numpy. `arrays` makes the numbers, here and in the tests.

    python -m tests.golden.make_pth
"""

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
NAMES = ('f8', 'f4', 'f2', 'bf16', 'i8', 'i4', 'i2', 'i1', 'u1', 'bool')


def arrays() -> dict[str, np.ndarray]:
    """Key -> the expected array; for bfloat16, the float32 array before rounding."""
    numbers = np.arange(12).reshape(3, 4)
    result = {}
    for name in NAMES:
        dtype = {'bf16': 'f4', 'bool': '?'}.get(name, name)
        result[name] = (numbers % 2 if name == 'bool' else numbers * 3 - (name != 'u1')).astype(
            dtype
        )
    f4 = result['f4']
    return {
        **result,
        'transposed': f4.T,
        'shared.rows': f4[1:],
        'shared.column': f4[:, 2],
        'expanded': np.broadcast_to(f4[0], (3, 4)),
        'scalar': np.array(2.5, 'f4'),
        'empty': np.zeros((0, 3), 'f4'),
        'parameter': f4 * 2,
        'buffer.counter': np.array(7, 'i8'),
    }


def main() -> None:
    from collections import OrderedDict

    import torch

    made = {k: torch.tensor(np.array(v, order='C')) for k, v in arrays().items()}
    made['bf16'] = made['bf16'].bfloat16()
    base = made['f4']
    made |= {
        'transposed': base.T,
        'shared.rows': base[1:],
        'shared.column': base[:, 2],
        'expanded': base[0].expand(3, 4),
        'parameter': torch.nn.Parameter(made['parameter']),
    }
    # A module's state_dict is an OrderedDict with an attribute.
    made = OrderedDict(made)
    made._metadata = OrderedDict({'': {'version': 1}})
    wrapped = {'epoch': 3, 'state_dict': made, 'loss': 0.5}
    for name, new in (('zip', True), ('stream', False)):
        for kind, content in (('', made), ('_wrapped', wrapped)):
            torch.save(content, HERE / f'pth_{name}{kind}.pth', _use_new_zipfile_serialization=new)
    torch.save(torch.nn.Linear(2, 3), HERE / 'pth_zip_module.pth')


if __name__ == '__main__':
    main()
