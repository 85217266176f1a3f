"""The same train steps in PyTorch: timm's ViT and ResNet, and a GPT-2.

    python -m tests.benchmarks.foundation_torch SPEC

SPEC is `foundation.Spec` as JSON. The programs follow PyTorch's usual practice: autocast to
bfloat16 over float32 parameters (which leaves the sums between the blocks of a transformer in
float32), scaled_dot_product_attention, fused optimizers, one group of parameters, and torch.compile
from the uint8 images or tokens to the loss. jaxtrain's step also computes the accuracy and the
norms of gradients and parameters; here only the norm of the gradients is computed, and only to clip
them.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.benchmarks.foundation import BATCHES, Spec, print_out_of_memory, print_report

Batch = tuple[torch.Tensor, torch.Tensor]


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.out(self.attention(self.qkv(self.norm_1(x))))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate='tanh'))

    def attention(self, qkv):
        batch, length, _ = qkv.shape
        query, key, value = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return x.transpose(1, 2).reshape(batch, length, -1)


class GPT(nn.Module):
    """GPT-2, whose output layer is the token embedding."""

    def __init__(self, spec: Spec):
        super().__init__()
        self.tokens = nn.Embedding(spec.outputs, spec.width)
        self.positions = nn.Embedding(spec.size, spec.width)
        self.blocks = nn.ModuleList(Block(spec.width, spec.heads) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


def vit(spec: Spec) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        spec.size, spec.patch, num_classes=spec.outputs, embed_dim=spec.width, depth=spec.depth,
        num_heads=spec.heads,
    )  # fmt: skip


def resnet(spec: Spec) -> nn.Module:
    import timm

    return timm.create_model(f'resnet{spec.depth}', num_classes=spec.outputs)


def adamw(b2: float) -> Callable:
    return lambda p: torch.optim.AdamW(p, 1e-3, (0.9, b2), weight_decay=0.1, fused=True)


def sgd(params) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.1, momentum=0.9, weight_decay=1e-4, fused=True)


CENTRED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Program -> (model, optimizer, largest norm of the gradients or 0, mean and std of pixels).
PROGRAMS = {
    'vit_b16': (vit, adamw(0.999), 1.0, CENTRED),
    'resnet50': (resnet, sgd, 0.0, IMAGENET),
    'gpt2': (GPT, adamw(0.95), 1.0, None),
}
PACKAGES = {'vit_b16': ('torch', 'timm'), 'resnet50': ('torch', 'timm'), 'gpt2': ('torch',)}


def batches(spec: Spec) -> list[Batch]:
    """Batches on the device: uint8 [batch, height, width, 3] and labels, or tokens and targets."""
    if spec.program == 'gpt2':
        stream = torch.from_numpy(np.load(Path(spec.folder) / 'tokens.npy')).long()
        inputs, targets = (part.view(-1, spec.size) for part in (stream[:-1], stream[1:]))
    else:
        with np.load(Path(spec.folder) / 'train.npz') as arrays:
            inputs = torch.from_numpy(arrays['image'])
            targets = torch.from_numpy(arrays['label']).long()
    inputs, targets = inputs.to(spec.device), targets.to(spec.device)
    pairs = zip(inputs.split(spec.batch_size), targets.split(spec.batch_size), strict=True)
    return list(itertools.islice(pairs, BATCHES))


def make_loss(model: nn.Module, spec: Spec, pixels: tuple | None) -> Callable[..., torch.Tensor]:
    """A function (inputs of `batches`, targets) -> the mean loss."""
    mean, std = torch.tensor(pixels or CENTRED, device=spec.device)[..., None, None]

    def normalised(images):
        # As [batch, 3, height, width], this is channels-last without a copy.
        images = images.permute(0, 3, 1, 2).float()
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
        return (images / 255 - mean) / std

    def loss(inputs, targets):
        inputs = normalised(inputs) if pixels else inputs
        with torch.autocast(spec.device, torch.bfloat16):
            outputs = model(inputs)
        return F.cross_entropy(outputs.float().flatten(0, -2), targets.flatten())

    return loss if spec.mode == 'eager' else torch.compile(loss, mode=spec.mode)


def make_steps(spec: Spec) -> tuple[nn.Module, Callable[[int], float]]:
    """The model, and a function (number of steps) -> the last loss, which waits for the device."""
    make, optimizer_of, clip, pixels = PROGRAMS[spec.program]
    model = make(spec).to(spec.device).train()
    model = model.to(memory_format=torch.channels_last) if pixels else model
    params = list(model.parameters())
    optimizer, loss_of = optimizer_of(params), make_loss(model, spec, pixels)
    turns = itertools.cycle(batches(spec))

    def steps(count: int) -> float:
        for batch in itertools.islice(turns, count):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(*batch)
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(params, clip)
            optimizer.step()
        if spec.device == 'cuda':
            torch.cuda.synchronize()
        return loss.item()

    return model, steps


def time_steps(spec: Spec) -> None:
    if spec.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('PyTorch finds no GPU; give --peers-python an environment where it does')
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.benchmark = True
    model, steps = make_steps(spec)
    steps(spec.warmup)
    start = time.perf_counter()
    loss = steps(spec.steps)
    seconds = time.perf_counter() - start
    print_report(
        spec.steps / seconds,
        loss,
        PACKAGES[spec.program],
        params=sum(p.numel() for p in model.parameters()),
        device=torch.cuda.get_device_name() if spec.device == 'cuda' else 'cpu',
    )


def main(spec: str) -> None:
    try:
        time_steps(Spec(**json.loads(spec)))
    except RuntimeError as error:
        # cuBLAS and cuDNN have other messages than PyTorch.
        if not any(word in str(error) for word in ('out of memory', 'ALLOC_FAILED')):
            raise
        print_out_of_memory()


if __name__ == '__main__':
    main(*sys.argv[1:])
