"""`python -m jaxtrain` is the console command `jaxtrain`."""

from jaxtrain.cli import entry

entry()
