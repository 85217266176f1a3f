"""Public figures of accelerators, with which a program's time and memory are compared."""

from dataclasses import dataclass

GB, GIB = 1e9, 2**30


@dataclass(frozen=True)
class Chip:
    """Figures of one JAX device: a chip, or half a chip for TPU7x.

    Attributes:
      name: the name of the chip.
      hbm_bytes: the size of its memory.
      peak_bf16_flops: operations per second in dense products of bfloat16 matrices.
      hbm_bandwidth: bytes per second, from and to its memory.
      ici_bandwidth: bytes per second that it can send over all its links to other chips together
        (ICI, NVLink); makers often publish the sum of both directions, which is twice this.
      dcn_bandwidth: bytes per second over the network between slices; 0 if it is not published.
      clock: cycles per second, which is `peak_bf16_flops` divided by the operations of its matrix
        units in a cycle; 0 if the compiler does not report cycles.
      devices_per_chip: JAX devices that share a chip; the published figures of the chip are these
        times this number.
      source: where the figures are published.
    """

    name: str
    hbm_bytes: float
    peak_bf16_flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    clock: float
    devices_per_chip: int
    source: str


_TPU = 'https://docs.cloud.google.com/tpu/docs/'
_V4 = _TPU + 'v4; links: Jouppi et al. 2023, arXiv:2304.01433, table 4'
_A100 = 'NVIDIA A100 Tensor Core GPU data sheet (SXM)'
_H100 = 'NVIDIA H100 Tensor Core GPU data sheet (SXM; half of the figure with sparsity)'
_H200 = 'NVIDIA H200 Tensor Core GPU data sheet (SXM; half of the figure with sparsity)'

# Matrix units: v4 and v5p 8 of 128 x 128 per chip, v5e 4; v6e 4 of 256 x 256.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip('TPU v4', 32 * GIB, 275e12, 1228 * GB, 300 * GB, 0.0, 1.05e9, 1, _V4),
        Chip('TPU v5e', 16 * GIB, 197e12, 819 * GB, 200 * GB, 3.125 * GB, 1.50e9, 1, _TPU + 'v5e'),
        Chip('TPU v5p', 95 * GIB, 459e12, 2765 * GB, 600 * GB, 6.25 * GB, 1.75e9, 1, _TPU + 'v5p'),
        Chip('TPU v6e', 32 * GIB, 918e12, 1638 * GB, 400 * GB, 12.5 * GB, 1.75e9, 1, _TPU + 'v6e'),
        Chip('TPU7x', 96 * GIB, 1153.5e12, 3690 * GB, 300 * GB, 0.0, 0.0, 2, _TPU + 'tpu7x'),
        Chip('NVIDIA A100 40GB', 40 * GB, 312e12, 1555 * GB, 300 * GB, 0.0, 0.0, 1, _A100),
        Chip('NVIDIA A100 80GB', 80 * GB, 312e12, 2039 * GB, 300 * GB, 0.0, 0.0, 1, _A100),
        Chip('NVIDIA H100', 80 * GB, 989e12, 3350 * GB, 450 * GB, 0.0, 0.0, 1, _H100),
        Chip('NVIDIA H200', 141 * GB, 989e12, 4800 * GB, 450 * GB, 0.0, 0.0, 1, _H200),
    )
}


def chip_of(device) -> Chip | None:
    """The chip of a JAX device; None for CPUs and for accelerators that are not listed."""
    return CHIPS.get(KINDS.get(device.device_kind, ''))


# `device_kind` in JAX -> chip. PCIe cards are slower than cards of the same name, and not listed.
KINDS = {
    'TPU v4': 'TPU v4',
    'TPU v5 lite': 'TPU v5e',
    'TPU v5e': 'TPU v5e',
    'TPU v5': 'TPU v5p',
    'TPU v5p': 'TPU v5p',
    'TPU v6 lite': 'TPU v6e',
    'TPU v6e': 'TPU v6e',
    'TPU7x': 'TPU7x',
    'NVIDIA A100-SXM4-40GB': 'NVIDIA A100 40GB',
    'NVIDIA A100-SXM4-80GB': 'NVIDIA A100 80GB',
    'NVIDIA H100 80GB HBM3': 'NVIDIA H100',
    'NVIDIA H200': 'NVIDIA H200',
}
