"""The three programs in PyTorch, as its tutorials write them.

    python -m tests.benchmarks.peers_torch PROGRAM FOLDER STEPS VARIANT

VARIANT is 'loader', a DataLoader over a Dataset that prepares one image at a time, or 'memory',
which takes batches from one prepared tensor. STEPS steps warm up, and as many more count.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.contestant import report
from tests.benchmarks.data import read


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(28 * 28, 128)
        self.fc2 = nn.Linear(128, 64)
        self.fc3 = nn.Linear(64, 10)

    def forward(self, x):
        x = self.flatten(x)
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        return self.fc3(x)


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.conv3 = nn.Conv2d(64, 64, 3)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(64 * 4 * 4, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x):
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.relu(self.conv3(x))
        x = torch.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc2(x)


class VGG16Head(nn.Module):
    """A new head on VGG16's frozen convolutions, without the package torchvision."""

    def __init__(self):
        super().__init__()
        layers, channels = [], 3
        for count, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers).requires_grad_(False)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(512 * 4 * 4, 256), nn.ReLU(), nn.Linear(256, 1)
        )

    def forward(self, x):
        return self.head(self.features(x)).squeeze(1)


def scaled(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


def centred(images: torch.Tensor) -> torch.Tensor:
    return (scaled(images) - 0.5) / 0.5


def caffe(images: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor([103.939, 116.779, 123.68])
    return images.float().flip(-3) - mean[:, None, None]


# Program -> (model, optimizer, loss, batch size, preprocessing of [..., channels, height, width]).
PROGRAMS = {
    'mnist_mlp': (
        MLP, lambda p: torch.optim.Adam(p, lr=1e-3), nn.CrossEntropyLoss, 64, centred,
    ),
    'cifar10_cnn': (
        CNN, lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-7), nn.CrossEntropyLoss, 32, scaled,
    ),
    'vgg16_head': (
        VGG16Head, lambda p: torch.optim.RMSprop(p, lr=2e-5, alpha=0.9, eps=1e-7),
        nn.BCEWithLogitsLoss, 20, caffe,
    ),
}  # fmt: skip

Prepare = Callable[[torch.Tensor], torch.Tensor]
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


class Images(Dataset):
    """A data set that returns one prepared image and its label."""

    def __init__(self, images: np.ndarray, labels: torch.Tensor, prepare: Prepare):
        self.images, self.labels, self.prepare = images, labels, prepare

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = torch.from_numpy(self.images[index]).permute(2, 0, 1).contiguous()
        return self.prepare(image), self.labels[index]


def from_loader(images: np.ndarray, labels: torch.Tensor, size: int, prepare: Prepare) -> Batches:
    loader = DataLoader(Images(images, labels, prepare), batch_size=size, shuffle=True)
    return itertools.chain.from_iterable(itertools.repeat(loader))


def from_memory(images: np.ndarray, labels: torch.Tensor, size: int, prepare: Prepare) -> Batches:
    inputs = prepare(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
    while True:
        for rows in torch.randperm(len(inputs)).split(size):
            yield inputs[rows], labels[rows]


VARIANTS = {'loader': from_loader, 'memory': from_memory}


def main(program: str, folder: str, steps: str, variant: str) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    make, optimizer_of, loss_of, batch_size, prepare = PROGRAMS[program]
    images, labels = read(f'{folder}/train.npz')
    labels = torch.from_numpy(labels)
    labels = labels.float() if loss_of is nn.BCEWithLogitsLoss else labels.long()
    batches = VARIANTS[variant](images, labels, batch_size, prepare)
    model, criterion = make(), loss_of()
    optimizer = optimizer_of([p for p in model.parameters() if p.requires_grad])
    model.train()

    def train(count: int) -> float:
        start, running = time.perf_counter(), 0.0
        for inputs, targets in itertools.islice(batches, count):
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            running += loss.item()
        return count / (time.perf_counter() - start)

    train(int(steps))
    report(train(int(steps)), 'torch')


if __name__ == '__main__':
    main(*sys.argv[1:])
