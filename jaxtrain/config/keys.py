"""Every key of a config with its default, documented. config.py makes configs of them.

A *rule list* is a tuple of `(regex, value)` pairs over parameter paths such as
`backbone/conv_0/kernel`; see `rules.py`. A tuple that holds one bare value stands for
`(('.*', value),)`, so that `--config.optim.clip_norm=1.0` reads as one would expect.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Sections whose keys are not listed in `base()`: they are the fields of a model and the arguments
# of an optax optimizer, and are checked against those where they are built.
OPEN_SECTIONS = ('model', 'optim.args')

# The keys of `config.data` for preprocessing, which belongs to weights. `base()` leaves them open:
# they are None. A run takes a key that is left open from the weights in init_from, or without
# weights from here. Any other value is taken as it is set: c.data.crop = 0.0 stretches images,
# whatever the weights say. c.data.crop = None, or --config.data.crop=None, leaves a key open again.
PREPROCESSING = {
    # (height, width) that every image gets on the host; () keeps the data set's own size.
    'image_size': (),
    # How images are resized to it: 0 stretches them; otherwise the shorter side is resized so that
    # image_size is this share of it (0.875 for 224 of 256), and the middle is cut out.
    'crop': 0.0,
    # How pixels are resized: 'auto' by area if the image shrinks, else bilinear; 'bilinear',
    # 'bicubic' and 'nearest' as PIL does it.
    'interpolation': 'auto',
    # On the device, pixels become (pixel / scale - mean) / std; one value, or one per channel.
    'scale': 255.0,
    'mean': (0.5,),
    'std': (0.5,),
    # 'bgr' first reverses red, green and blue, for weights that were trained so.
    'channel_order': 'rgb',
}


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
    # Parts that a batch is taken in, one after the other, where it does not fit as a whole: the
    # gradients of all its examples (or tokens) are added up before the optimizer's step. BatchNorm
    # sees each part by itself.
    c.accumulate = 1
    # What the model computes in: 'float32', or 'bfloat16', in which parameters, optimizer, norms,
    # softmax and loss stay float32.
    c.precision = 'float32'

    # How devices share the work: an axis of so many of them each, -1 (of one axis) takes the rest.
    # 'data' and 'fsdp' share each batch; over 'fsdp' parameters and optimizer state are cut up too,
    # over 'tensor' the heads and hidden units of layers. Slices of a pod are told apart by 'data'.
    c.mesh = ConfigDict()
    c.mesh.data = -1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1
    # Rule list: parameter path -> how it is cut: an axis for each dimension, as in 'fsdp tensor',
    # with '-' for a dimension that is not; 'replicated'; or 'auto', which cuts the layers of
    # transformers over 'tensor' and the longest other dimension over 'fsdp' where it divides.
    c.mesh.rules = (('.*', 'auto'),)
    # What compiles the step: 'jit', or 'pmap', which only shares batches, over the devices of one
    # process. The mesh and this may differ when a run is resumed.
    c.parallel = 'jit'

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
    # Whose settings hold for restored weights: 'weights' takes theirs for the keys of PREPROCESSING
    # that are left open, and refuses other values of them (but for image_size, crop and
    # interpolation), as it does fields of the model by which they would compute something else;
    # 'config' skips this check, and takes for them what PREPROCESSING has.
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
    # Rule list: 'constant', 'cosine' or 'linear' (the last two fall to lr * lr_end at the end),
    # 'rsqrt' (falls with the square root of the step from the end of the warm-up) or 'wsd', which
    # is constant up to the cool-down.
    c.optim.schedule = (('.*', 'cosine'),)
    # How long the learning rate first rises linearly from 0, and in 'rsqrt' and 'wsd' at the end
    # falls linearly to lr * lr_end: '500 steps', '2.5 epochs', '10000 examples' or, of the run,
    # '5%'.
    c.optim.warmup = '0 steps'
    c.optim.cooldown = '0 steps'
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
    # into DIR/downloads/manual/NAME, as 'imagenet2012' always is; any other must have been prepared
    # as ArrayRecord.
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
    # Names of the files of a corpus in a folder, and of folders in it that are left out.
    c.data.pattern = '*.txt'
    c.data.skip_folders = ()
    # image_size, crop, interpolation, scale, mean, std and channel_order: PREPROCESSING above
    # documents them. They are left open.
    for name, usual in PREPROCESSING.items():
        c.data[name] = placeholder(type(usual))
    # On the device, in order, for training only: tuples of a function of data/augment.py and its
    # arguments, for instance (('shift', 2), ('flip',)).
    c.data.augment = ()
    # On the host, for training only: a part of each image with a share of its area between these
    # two, and with an aspect of 3:4 to 4:3, becomes image_size, as in (0.08, 1.0); () takes all.
    c.data.random_crop = ()
    # On the device, for training only: each image is mixed with another one of the batch, as a
    # whole (mixup) or a rectangle of it (CutMix), in a proportion from Beta(value, value), and so
    # are their labels; 0 does not. With both above 0 a coin decides for each batch.
    c.data.mixup = 0.0
    c.data.cutmix = 0.0
    # Splits that take at most this many MiB decoded are kept in memory; larger ones are decoded
    # batch by batch. May differ when a run is resumed.
    c.data.memory_mib = 2048
    # Host threads that make batches, and batches kept ready. May differ when a run is resumed.
    c.data.threads = 2
    # Processes that make batches in place of those threads, where decoding in Python holds them
    # up; 0 for none. May differ when a run is resumed.
    c.data.workers = 0
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
    # The val metric that decides which checkpoint is the best: '' is the main one of the task,
    # 'accuracy' for 'classify' and 'binary', 'loss' for 'lm'. The task knows which way is better.
    c.best_metric = ''
    # Most recent checkpoints kept besides the best one.
    c.keep = 1
    # (first, last): steps of which a trace is written to the run directory's profile/, for Perfetto
    # or XProf; () for none. May differ when a run is resumed.
    c.profile = ()
    # Seconds that a phase may take without getting on before the run counts as hanging: then every
    # process says where it is, and all exit with code 42, to be started again. 0 waits for ever.
    # May differ when a run is resumed.
    c.budgets = ConfigDict()
    c.budgets.restore = 3600.0
    c.budgets.compile = 7200.0
    # From one call of the train step to the next, the wait for data included.
    c.budgets.step = 1800.0
    # A whole evaluation of val or test.
    c.budgets.eval = 7200.0
    c.budgets.save = 3600.0

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


# Keys that do not change what is computed, and so may differ when a run is resumed.
# A tokenizer is told by its content, not by where it lies.
RESUMABLE = (
    'data.dir',
    'data.memory_mib',
    'data.threads',
    'data.workers',
    'data.prefetch',
    'data.tokenizer',
    'mesh.data',
    'mesh.fsdp',
    'mesh.tensor',
    'mesh.rules',
    'parallel',
    'profile',
    'budgets.restore',
    'budgets.compile',
    'budgets.step',
    'budgets.eval',
    'budgets.save',
)


def _get(config: ConfigDict, path: str) -> Any:
    for name in path.split('.'):
        config = config[name]
    return config
