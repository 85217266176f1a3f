"""The three programs in Keras on JAX, as its tutorials write them: compile and fit.

    KERAS_BACKEND=jax python -m tests.benchmarks.peers_keras PROGRAM FOLDER STEPS

Epochs with at least STEPS steps compile and warm up, and as many more count. The clock is read only
at the ends of epochs, where fit() waits for the device: with a callback at every batch, it would
wait there too.
"""

import sys
import time

import keras
import numpy as np
from keras import layers

from tests.benchmarks.contestant import report
from tests.benchmarks.data import read


def mnist_mlp() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dense(128, activation='relu'),
            layers.Dense(64, activation='relu'),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer='adam', loss=loss, metrics=['accuracy'])
    return model


def cifar10_cnn() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(32, (3, 3), activation='relu'),
            layers.MaxPooling2D((2, 2)),
            layers.Conv2D(64, (3, 3), activation='relu'),
            layers.MaxPooling2D((2, 2)),
            layers.Conv2D(64, (3, 3), activation='relu'),
            layers.Flatten(),
            layers.Dense(64, activation='relu'),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer='adam', loss=loss, metrics=['accuracy'])
    return model


def vgg16_head() -> keras.Model:
    backbone = keras.applications.VGG16(include_top=False, weights=None, input_shape=(150, 150, 3))
    backbone.trainable = False
    inputs = keras.Input((150, 150, 3))
    x = keras.applications.vgg16.preprocess_input(inputs)
    x = layers.Flatten()(backbone(x))
    x = layers.Dense(256, activation='relu')(x)
    model = keras.Model(inputs, layers.Dense(1, activation='sigmoid')(x))
    optimizer = keras.optimizers.RMSprop(learning_rate=2e-5)
    model.compile(optimizer=optimizer, loss='binary_crossentropy', metrics=['accuracy'])
    return model


# Program -> (model, batch size, preprocessing of the images before fit()).
PROGRAMS = {
    'mnist_mlp': (mnist_mlp, 64, lambda x: (x.astype(np.float32) / 255 - 0.5) / 0.5),
    'cifar10_cnn': (cifar10_cnn, 32, lambda x: x.astype(np.float32) / 255),
    'vgg16_head': (vgg16_head, 20, lambda x: x),
}


class EpochTimes(keras.callbacks.Callback):
    """Records the time at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_epoch_end(self, epoch, logs=None):
        float(logs['loss'])
        self.ends.append(time.perf_counter())


def plan(examples: int, batch_size: int, steps: int) -> tuple[int, int]:
    """(steps per epoch, epochs) for at least `steps` steps; fit() ends an epoch with its data."""
    epoch = min(steps, examples // batch_size)
    return epoch, -(-steps // epoch)


def main(program: str, folder: str, steps: str) -> None:
    make, batch_size, prepare = PROGRAMS[program]
    images, labels = read(f'{folder}/train.npz')
    epoch, epochs = plan(len(images), batch_size, int(steps))
    images, labels = prepare(images[: epoch * batch_size]), labels[: epoch * batch_size]
    model, times = make(), EpochTimes()
    model.fit(
        images, labels, batch_size=batch_size, epochs=2 * epochs, verbose=0, callbacks=[times]
    )
    seconds = times.ends[-1] - times.ends[epochs - 1]
    report(epoch * epochs / seconds, 'keras', 'jax')


if __name__ == '__main__':
    main(*sys.argv[1:])
