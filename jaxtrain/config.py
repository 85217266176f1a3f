"""The base config with every key documented, and the closed config that the program reads.

A config file starts from `base()` and changes what differs:

    from jaxtrain.config import base

    def get_config(variant='scratch'):
        c = base()
        c.data.name = 'digits'
        ...
        return c

Nothing is silently ignored. A key that does not exist is an error when it is set (with the nearest
one that does); a value of another type is an error; and a key that was changed but that this run
never reads is an error before the first step (`Config.require_read`).

A *rule list* is a tuple of `(regex, value)` pairs over parameter paths such as
`backbone/conv_0/kernel`; see `rules.py`. A tuple that holds one bare value stands for
`(('.*', value),)`, so that `--config.optim.clip_norm=1.0` reads as one would expect.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxtrain.errors import UserError

# Sections whose keys are not listed in `base()`: they are the fields of a model and the arguments
# of an optax optimizer, and are checked against those where they are built.
OPEN_SECTIONS = ('model', 'optim.args')


def base() -> ConfigDict:
    """The default of every key. Locked: only `model` and `optim.args` take keys not listed here."""
    c = ConfigDict()

    # What kind of run this is, for tables and result.json: 'scratch', 'full' or 'finetune'. What
    # makes it so are init_from and groups below.
    c.regime = 'scratch'
    # Seeds the initial parameters, the order of the data, augmentation and dropout.
    c.seed = 0
    # How long to train: optimizer steps, or passes over the training data. Set exactly one.
    c.steps = 0
    c.epochs = 0.0
    # Examples per optimizer step, over all devices and processes together.
    c.batch_size = 128
    # Optimizer steps that are handed to the device at once, in one loop compiled there. More than 1
    # pays for models so small that the hand-over takes longer than the step.
    c.steps_per_call = 1

    # What is learned: loss and metrics. 'classify' is softmax cross-entropy over integer labels,
    # 'binary' is sigmoid cross-entropy with one output, for data of two classes, 'lm' is softmax
    # cross-entropy over the next token of a text, in nats per token.
    c.task = ConfigDict()
    c.task.name = 'classify'
    # Share of the target probability that is spread over all classes, 0 to 1.
    c.task.label_smoothing = 0.0

    # The model, by name, and any field of its class in jaxtrain/models/ (for instance
    # c.model.widths = (32, 64) for 'cnn'); fields not set keep the class's own defaults. With the
    # name '' it is the model of the weights in init_from, but for the fields that are set.
    c.model = ConfigDict()
    c.model.name = 'cnn'

    # Run directory to start from, or a file or folder of weights from elsewhere (restore.origin
    # says whence); '' starts from random parameters.
    c.init_from = ''
    # Which checkpoint of it: 'best', 'last' or a step number.
    c.init_checkpoint = 'best'
    c.restore = ConfigDict()
    # Rule list over parameter (and BatchNorm statistics) paths: 'load' takes the checkpoint's
    # value; 'load OTHER/PATH' that of another path of it, where \1 is the rule's first group;
    # 'init' a fresh one; 'drop' says that a key of the checkpoint is not wanted. 'resize' also
    # takes position embeddings, patch kernels and first convolutions of another size or number of
    # channels; 'classes' takes the outputs of a head whose classes have the same names, the others
    # are fresh.
    c.restore.rules = (('.*', 'load'),)
    # For a file in init_from: its origin and model, as of `jaxtrain import`.
    c.restore.origin = ''
    c.restore.model = ''
    # Whose settings hold for restored weights: 'weights' takes theirs for the keys of preprocessing
    # that are left open below (data.image_size to data.channel_order), and refuses others, as it
    # does fields of the model by which they would compute something else; 'config' asks nobody.
    c.restore.settings = 'weights'

    # Rule list: parameter path -> name of its group. The group called 'frozen' is not trained.
    c.groups = (('.*', 'all'),)
    # What BatchNorm does in frozen groups: 'frozen' normalises with the restored running
    # statistics and keeps them; 'adapt' normalises with the batch and updates them.
    c.frozen_norm = 'frozen'

    c.optim = ConfigDict()
    # Any optimizer of optax by its name ('sgd', 'adam', 'adamw', 'lion', 'lamb', ...), with its
    # own arguments in optim.args, for instance c.optim.args.b2 = 0.95; or 'keras_adam', which has
    # its eps where Keras has it.
    c.optim.name = 'adamw'
    c.optim.args = ConfigDict()
    # Peak learning rate.
    c.optim.lr = 1e-3
    # Rule list: factor on the learning rate.
    c.optim.lr_mult = (('.*', 1.0),)
    # Rule list: 'constant', 'cosine' or 'linear' (the last two fall to lr * lr_end at the end).
    c.optim.schedule = (('.*', 'cosine'),)
    # Steps over which the learning rate first rises linearly from 0.
    c.optim.warmup_steps = 0
    # Last learning rate as a share of lr, for schedules that fall.
    c.optim.lr_end = 0.0
    # Weight decay, and a rule list of factors on it: 0 spares a parameter.
    c.optim.weight_decay = 0.0
    c.optim.decay_mult = (('.*/kernel', 1.0), ('.*', 0.0))
    # Rule list: largest global norm of the gradients, taken over the trained parameters that the
    # same rule matches; 0 does not clip.
    c.optim.clip_norm = (('.*', 0.0),)

    # Decay per step of an exponential moving average of the trained parameters, which is then what
    # is evaluated and handed on; 0 keeps none. Early on the average is the plain mean so far.
    c.ema = 0.0

    c.data = ConfigDict()
    # Where images and labels come from: 'tfds' (data.name), or from data.path 'folder' (of images,
    # a folder per class), 'manifest' (a CSV or JSONL list of files) or 'npz' (arrays). Where texts
    # come from: data.path as 'text' (a CSV or JSONL list of texts and labels), or as 'corpus' (a
    # folder of text files, or a single one) for the task 'lm'.
    c.data.source = 'tfds'
    # A TFDS data set by its name, with a version if need be ('mnist:3.0.1'). Those that come with
    # jaxtrain ('glyphs/latin_cyrillic', 'glyphs/greek', 'digits') are made on first use; 'mnist',
    # 'fashion_mnist', 'cifar10' and 'cifar100' are fetched on first use, or made from archives put
    # into DIR/downloads/manual/NAME; any other must have been prepared as ArrayRecord.
    c.data.name = ''
    # The folder or file of the other sources. Its splits are folders (DIR/train/CLASS/*) or files
    # (DIR/train.csv, DIR/train.npz) by the names in train, val and test below. A folder DIR/CLASS/*
    # or a single file holds one set, which is dealt out to the splits by these shares, by a hash of
    # each example's name and split_seed: what is added later moves nothing.
    c.data.path = ''
    c.data.shares = (('train', 0.8), ('val', 0.1), ('test', 0.1))
    c.data.split_seed = 0
    # An image file that cannot be read is an 'error', or it is left out and counted: 'skip' (for
    # which every file is read once at the start).
    c.data.on_bad_image = 'error'
    # Whether image files are turned upright as their EXIF orientation says.
    c.data.exif = True
    # Where TFDS keeps its data sets; '' is TFDS's own choice ($TFDS_DATA_DIR or
    # ~/tensorflow_datasets). May differ when a run is resumed.
    c.data.dir = ''
    # Splits, in TFDS's notation. Choices (the best checkpoint) are made on val; test is read once,
    # at the end. '' for either leaves it out.
    c.data.train = 'train'
    c.data.val = 'val'
    c.data.test = 'test'
    # Train on the first n examples of each class in the order of the data set; 0 takes all.
    c.data.limit = 0
    # Of text: tokens of an example; longer texts with labels lose their end.
    c.data.length = 128
    # A tokenizer.json (Hugging Face's format), or 'bytes'; '' is that of the weights in init_from.
    c.data.tokenizer = ''
    # Names of the files of a corpus in a folder.
    c.data.pattern = '*.txt'
    # The seven keys below are left open: they are then those of the weights in init_from, or else
    # what the comments call the usual.
    # (height, width) that every image gets on the host; usually () keeps the data set's own size.
    c.data.image_size = ()
    # How it gets it: 0 stretches it, which is the usual; otherwise its shorter side is resized so
    # that image_size is this share of it (0.875 for 224 of 256), and the middle is cut out.
    c.data.crop = 0.0
    # How pixels are resized: 'auto' by area if the image shrinks, else bilinear, which is the
    # usual; 'bilinear', 'bicubic' and 'nearest' as PIL does it.
    c.data.interpolation = ''
    # On the device, pixels become (pixel / scale - mean) / std; one value, or one per channel.
    # Usually 255, (0.5,) and (0.5,).
    c.data.scale = 0.0
    c.data.mean = ()
    c.data.std = ()
    # 'bgr' first turns red, green, blue around, for weights that were made so; usually 'rgb'.
    c.data.channel_order = ''
    # On the device, in order, for training only: tuples of a function of data/augment.py and its
    # arguments, for instance (('shift', 2), ('flip',)).
    c.data.augment = ()
    # Splits that take at most this many MiB decoded are kept in memory; larger ones are decoded
    # batch by batch. May differ when a run is resumed.
    c.data.memory_mib = 2048
    # Host threads that make batches, and batches kept ready. May differ when a run is resumed.
    c.data.threads = 2
    c.data.prefetch = 4

    # Whether the three below count 'steps', or 'epochs', passes over the training data.
    c.every = 'steps'
    # Steps between lines of metrics.jsonl (their values are means over those steps).
    c.log_every = 50
    # Steps between evaluations on val; 0 evaluates only at the end. A checkpoint follows each.
    c.eval_every = 0
    # Steps between further checkpoints; 0 makes none but those. Only checkpoints that were
    # evaluated can be the best.
    c.save_every = 0
    # Examples per evaluation step; 0 takes batch_size.
    c.eval_batch_size = 0
    # The val metric that decides which checkpoint is the best ('loss' is minimised, all other
    # metrics are maximised).
    c.best_metric = 'accuracy'
    # Most recent checkpoints kept besides the best one.
    c.keep = 1

    # Read by `jaxtrain compare`: variants of this config file.
    c.compare = ConfigDict()
    # Trained once; the arms that have an init_from start from its checkpoint. '' for none.
    c.compare.pretrain = 'full'
    # Trained side by side; the first is the one that the others are held against.
    c.compare.arms = ('scratch', 'linear', 'finetune')
    # Paired seeds per arm, counted up from config.seed.
    c.compare.seeds = 5

    c.lock()
    for section in OPEN_SECTIONS:
        _get(c, section).unlock()
    return c


def known_variant(variant: str, variants: tuple[str, ...]) -> None:
    """UserError, with the nearest, unless a config file knows the variant that was asked for."""
    if variant not in variants:
        raise UserError(
            f'--config: there is no variant {variant!r}{nearest(variant, variants)}; '
            f'choose from {", ".join(variants)}'
        )


# Keys that do not change what is computed, and so may differ when a run is resumed.
# A tokenizer is told by its content, not by where it lies.
RESUMABLE = ('data.dir', 'data.memory_mib', 'data.threads', 'data.prefetch', 'data.tokenizer')


class Config:
    """A read-only config that remembers which keys were read.

    Sections and keys are attributes; there is no `get` with a default, because every key has its
    default in `base()` and nowhere else.
    """

    def __init__(self, tree: Mapping[str, Any], _path: str = '', _read: set[str] | None = None):
        self._tree, self._path = tree, _path
        self._read = set() if _read is None else _read

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_') or name not in self._tree:
            raise AttributeError(f'config.{self._path}{name}')
        value, path = self._tree[name], self._path + name
        if isinstance(value, Mapping):
            return Config(value, path + '.', self._read)
        self._read.add(path)
        return value

    def items(self) -> Iterator[tuple[str, Any]]:
        """The keys and values of an open section."""
        return ((name, getattr(self, name)) for name in self._tree)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> 'Config':
        """The config that config.json holds, whose lists were tuples."""
        return cls(_tuples(tree))

    def to_dict(self) -> dict[str, Any]:
        return _deep(self._tree)

    def replace(self, **changes: Any) -> 'Config':
        """A copy, with nothing read yet; `__` stands for the dot: `replace(data__limit=5)`."""
        flat = dict(flatten(self._tree))
        for name, value in changes.items():
            key = name.replace('__', '.')
            if key not in flat:
                raise KeyError(key)
            flat[key] = value
        return Config(unflatten(flat))

    def updated(self, **sections: Mapping[str, Any]) -> 'Config':
        """A copy with other values in some sections, which shares what was read."""
        tree = {name: {**self._tree[name], **values} for name, values in sections.items()}
        return Config({**self._tree, **tree}, self._path, self._read)

    def choose(self, name: str, allowed) -> Any:
        """The value of a key that must be one of `allowed`; UserError with the nearest if not."""
        value = getattr(self, name)
        if value not in allowed:
            raise UserError(
                f'config.{self._path}{name}={value!r} is not known{nearest(value, allowed)}; '
                f'choose from {", ".join(sorted(map(str, allowed)))}'
            )
        return value

    def require_read(self, but: tuple[str, ...] = ()) -> None:
        """UserError if a key was changed from its default and nothing has read it."""
        defaults = dict(flatten(base().to_dict()))
        for path, value in flatten(self._tree):
            changed = path not in defaults or defaults[path] != value
            if changed and path not in self._read and not path.startswith(but):
                raise UserError(
                    f'config.{path}={value!r} was set, but nothing in this run reads it; '
                    'remove it, or set the key that puts it to use'
                )


def flatten(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    """`{'a': {'b': 1}}` -> `('a.b', 1)`. An empty section has no items."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f'{prefix}{name}.')
        else:
            yield prefix + name, value


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`; sections of `base()` that have no keys stay as empty ones."""
    tree: dict[str, Any] = {}
    for section in OPEN_SECTIONS:
        _descend(tree, section.split('.'))
    for path, value in flat.items():
        *parents, name = path.split('.')
        _descend(tree, parents)[name] = value
    return tree


def is_open(path: str) -> bool:
    """Whether a key belongs to a section whose keys are checked where they are used."""
    return path.rsplit('.', 1)[0] in OPEN_SECTIONS


def nearest(word: Any, known) -> str:
    """`' (did you mean X?)'` for the nearest known word, or `''`."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f' (did you mean {close[0]!r}?)' if close else ''


def _descend(tree: dict, names: list[str]) -> dict:
    for name in names:
        tree = tree.setdefault(name, {})
    return tree


def _deep(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _deep(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _get(config: ConfigDict, path: str) -> Any:
    for name in path.split('.'):
        config = config[name]
    return config
