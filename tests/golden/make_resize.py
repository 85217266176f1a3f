"""Makes resize.npz: arrays that timm has resized to another grid, patch size or number of channels.

This requires torch==2.13.0 and timm==1.0.31. `array` makes the arrays, here and in the tests.
Positions are [rows, columns, width], and kernels [rows, columns, channels, width].

    python -m tests.golden.make_resize
"""

from pathlib import Path

import numpy as np

from tests.golden.make_weights import declare_operators

HERE = Path(__file__).parent
# Case -> (shape, new rows and columns or new channels).
POSITIONS = {
    'up': ((4, 4, 3), (7, 7)),
    'down': ((8, 8, 3), (5, 5)),
    'half': ((14, 14, 2), (7, 7)),
    'oblong': ((6, 6, 3), (4, 9)),
    'from_oblong': ((3, 7, 2), (6, 5)),
    'finer_by_one': ((14, 14, 2), (15, 15)),
}
PATCHES = {
    'up': ((4, 4, 3, 2), (8, 8)),
    'down': ((8, 8, 3, 2), (4, 4)),
    '16_to_14': ((16, 16, 3, 2), (14, 14)),
    '14_to_16': ((14, 14, 3, 2), (16, 16)),
    'oblong': ((6, 6, 1, 2), (4, 8)),
}
CHANNELS = {
    'grey': ((3, 3, 3, 5), 1),
    'two': ((3, 3, 3, 5), 2),
    'four': ((3, 3, 3, 5), 4),
    'seven': ((3, 3, 3, 5), 7),
}


def array(kind: str, case: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array of standard normal numbers."""
    seed = sum(f'{kind}/{case}'.encode())
    return np.random.RandomState(seed).standard_normal(shape).astype('f4')


def main() -> None:
    declare_operators()
    import torch
    from timm.layers import resample_abs_pos_embed, resample_patch_embed
    from timm.models import adapt_input_conv

    resized = {}
    for case, (shape, size) in POSITIONS.items():
        rows = torch.tensor(array('positions', case, shape).reshape(1, -1, shape[2]))
        front = torch.full((1, 1, shape[2]), 9.0)  # that of the class token, which must not change
        out = resample_abs_pos_embed(torch.cat([front, rows], 1), list(size), list(shape[:2]))
        assert (out[:, 0] == 9).all()
        resized[f'positions/{case}'] = out[0, 1:].reshape(*size, -1).numpy()
    for case, (shape, size) in PATCHES.items():
        kernel = torch.tensor(array('patches', case, shape).transpose(3, 2, 0, 1))
        out = resample_patch_embed(kernel, list(size))
        resized[f'patches/{case}'] = out.numpy().transpose(2, 3, 1, 0)
    for case, (shape, count) in CHANNELS.items():
        kernel = torch.tensor(array('channels', case, shape).transpose(3, 2, 0, 1))
        out = adapt_input_conv(count, kernel)
        resized[f'channels/{case}'] = out.numpy().transpose(2, 3, 1, 0)
    np.savez_compressed(HERE / 'resize.npz', **resized)


if __name__ == '__main__':
    main()
