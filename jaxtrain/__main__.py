"""`python -m jaxtrain` runs the console command `jaxtrain`."""

from jaxtrain.cli import entry

entry()
