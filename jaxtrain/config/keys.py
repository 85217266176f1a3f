"""Every key of a config, with its default and its documentation.

A *rule list* is a tuple of `(regex, value)` pairs over parameter paths such as
`backbone/conv_0/kernel`; see `rules.py`. A tuple that holds one bare value stands for
`(('.*', value),)`, so that `--config.optim.clip_norm=1.0` works as expected.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Sections whose keys are not listed in `base()`: the fields of a model and the arguments of an
# optax optimizer. They are checked where the model and the optimizer are built.
OPEN_SECTIONS = ('model', 'optim.args')

# The keys of `config.data` for preprocessing, with the values that apply without pretrained
# weights. `base()` sets them to None, which leaves them open: a run then uses the value of the
# weights in init_from, or without weights the value listed here. Any other value is explicit:
# c.data.crop = 0.0 stretches images, whatever the weights use. c.data.crop = None, or
# --config.data.crop=None, leaves a key open again.
PREPROCESSING = {
    # (height, width) to which the host resizes every image; () keeps the size in the data set.
    'image_size': (),
    # How images are resized to image_size: 0 stretches them; otherwise the shorter side is resized
    # so that image_size is this share of it (0.875 for 224 of 256), and the centre is cropped.
    'crop': 0.0,
    # The first row and column of that centre, where its margins differ by a pixel: 'nearest' rounds
    # half of the difference in sizes to even, as torchvision and timm do; 'down' is transformers'.
    'crop_rounding': 'nearest',
    # How pixels are interpolated: 'auto' averages areas if the image shrinks and is bilinear
    # otherwise; 'bilinear', 'bicubic' and 'nearest' are those of PIL.
    'interpolation': 'auto',
    # The device normalises pixels to (pixel / scale - mean) / std; mean and std are one value, or
    # one per channel.
    'scale': 255.0,
    'mean': (0.5,),
    'std': (0.5,),
    # 'bgr' reverses the channels first, for weights that were trained on BGR images.
    'channel_order': 'rgb',
}


def base() -> ConfigDict:
    """The default of every key. It is locked: only `model` and `optim.args` accept other keys."""
    c = ConfigDict()

    # The kind of run, for tables and result.json: 'scratch', 'full' or 'finetune'. This is a label:
    # init_from and groups below determine what is restored and trained.
    c.regime = 'scratch'
    # Seeds the initial parameters, the order of the data, augmentation and dropout.
    c.seed = 0
    # Length of the run, in optimizer steps or in passes over the training data. Set exactly one.
    c.steps = 0
    c.epochs = 0.0
    # Examples per optimizer step, over all devices and processes.
    c.batch_size = 128
    # Optimizer steps per call of the compiled program, in a loop on the device. More than 1 is
    # faster for models so small that dispatching a step takes longer than the step.
    c.steps_per_call = 1
    # Gradient accumulation: the number of parts into which a batch is split if it does not fit into
    # memory. The parts are processed one after the other, and the gradients of all examples (or
    # tokens) are added up before the optimizer step. BatchNorm normalises each part separately.
    c.accumulate = 1
    # Precision of the model's computation: 'float32', or 'bfloat16', for which parameters,
    # optimizer state, norms, softmax and loss stay in float32.
    c.precision = 'float32'

    # Size of each axis of the device mesh; -1, for one axis at most, takes the remaining devices.
    # Batches are sharded over 'data' and 'fsdp'; parameters and optimizer state are also sharded
    # over 'fsdp', and the heads and hidden units of layers over 'tensor'. Slices of a pod lie along
    # 'data'.
    c.mesh = ConfigDict()
    c.mesh.data = -1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1
    # Rule list: parameter path -> sharding. One axis for each dimension, as in 'fsdp tensor', with
    # '-' for a dimension that is not sharded; 'replicated'; or 'auto', which shards the layers of
    # transformers over 'tensor', and the longest other dimension over 'fsdp' where it is divisible.
    c.mesh.rules = (('.*', 'auto'),)
    # How the step is compiled: 'jit', or 'pmap', which only shards batches, over the devices of one
    # process. This key and the mesh may change when a run is resumed.
    c.parallel = 'jit'

    # The task, which determines loss and metrics. 'classify' is softmax cross-entropy over integer
    # labels; 'binary' is sigmoid cross-entropy with one output, for data with two classes; 'lm' is
    # softmax cross-entropy over the next token of a text, in nats per token.
    c.task = ConfigDict()
    c.task.name = 'classify'
    # Share of the target probability that is spread evenly over all classes, 0 to 1.
    c.task.label_smoothing = 0.0

    # Name of the model, and any field of its class in jaxtrain/models/, for instance
    # c.model.widths = (32, 64) for 'cnn'; other fields keep the defaults of the class. The name ''
    # selects the model of the weights in init_from, except for the fields that are set.
    c.model = ConfigDict()
    c.model.name = 'cnn'

    # Run directory to start from, or a file or folder of pretrained weights (restore.origin names
    # their origin); '' starts from random parameters.
    c.init_from = ''
    # Checkpoint of that run: 'best', 'last' or a step number.
    c.init_checkpoint = 'best'
    c.restore = ConfigDict()
    # Rule list over the paths of parameters and BatchNorm statistics. 'load' restores the value
    # from the checkpoint; 'load OTHER/PATH' restores it from another path of the checkpoint, where
    # \1 is the first group of the rule's regex; 'init' initialises it; 'drop' ignores a key of the
    # checkpoint. 'resize' is 'load' that also adapts position embeddings, patch kernels and first
    # convolutions of another size or number of channels; 'classes' restores the outputs of a head
    # whose classes have the same names, and initialises the others.
    c.restore.rules = (('.*', 'load'),)
    # For a file in init_from: its origin and model, as for `jaxtrain import`.
    c.restore.origin = ''
    c.restore.model = ''
    # The same for fields of the files beside it, such as config.json: values of those that no file
    # states, as in ('num_attention_heads=4',), and names of those to accept without support.
    c.restore.fields = ()
    c.restore.allow_fields = ()
    # Which settings apply to restored weights. 'weights' uses those of the weights for keys of
    # PREPROCESSING that are left open, and rejects other values (except for image_size, crop and
    # interpolation) and model fields that would change what the weights compute. 'config' skips
    # this check, and uses the values listed in PREPROCESSING for keys that are left open.
    c.restore.settings = 'weights'

    # Rule list: parameter path -> name of its group. The group 'frozen' is not trained.
    c.groups = (('.*', 'all'),)
    # BatchNorm in frozen groups: 'frozen' normalises with the restored running statistics and keeps
    # them; 'adapt' normalises with the statistics of the batch and updates the running ones.
    c.frozen_norm = 'frozen'

    c.optim = ConfigDict()
    # Any optax optimizer by name ('sgd', 'adam', 'adamw', 'lion', 'lamb', ...), with its arguments
    # in optim.args, for instance c.optim.args.b2 = 0.95; or 'keras_adam', which applies eps as
    # Keras does.
    c.optim.name = 'adamw'
    c.optim.args = ConfigDict()
    # Peak learning rate.
    c.optim.lr = 1e-3
    # Rule list: factors on the learning rate.
    c.optim.lr_mult = (('.*', 1.0),)
    # Rule list of learning-rate schedules: 'constant'; 'cosine' and 'linear', which fall to
    # lr * lr_end at the end of the run; 'rsqrt', which falls with the inverse square root of the
    # step after the warm-up; or 'wsd', which is constant until the cool-down.
    c.optim.schedule = (('.*', 'cosine'),)
    # Duration of the linear warm-up from 0, and for 'rsqrt' and 'wsd' that of the linear cool-down
    # to lr * lr_end at the end: '500 steps', '2.5 epochs', '10000 examples' or '5%' of the run.
    c.optim.warmup = '0 steps'
    c.optim.cooldown = '0 steps'
    # Final learning rate as a share of lr, for schedules that fall.
    c.optim.lr_end = 0.0
    # Weight decay, and a rule list of factors on it; 0 exempts a parameter.
    c.optim.weight_decay = 0.0
    c.optim.decay_mult = (('.*/kernel', 1.0), ('.*', 0.0))
    # Rule list: maximum global norm of the gradients, computed over the trained parameters that the
    # rule matches; 0 disables clipping.
    c.optim.clip_norm = (('.*', 0.0),)

    # Decay per step of an exponential moving average of the trained parameters, which is then
    # evaluated, and restored by other runs; 0 disables it. At first the average is the plain mean.
    c.ema = 0.0

    c.data = ConfigDict()
    # Source of the examples. Images with labels: 'tfds' reads data.name; the others read data.path,
    # 'folder' (image files, a folder per class), 'manifest' (a CSV or JSONL list of files) or 'npz'
    # (arrays). Texts: 'text' reads a CSV or JSONL list of texts and labels from data.path, and
    # 'corpus' a text file or a folder of them, for the task 'lm'.
    c.data.source = 'tfds'
    # Name of a TFDS data set, optionally with a version ('mnist:3.0.1'). Those that come with
    # jaxtrain ('glyphs/latin_cyrillic', 'glyphs/greek', 'digits') are generated on first use;
    # 'mnist', 'fashion_mnist', 'cifar10' and 'cifar100' are downloaded on first use, or prepared
    # from archives in DIR/downloads/manual/NAME, as 'imagenet2012' always is; any other data set
    # must have been prepared as ArrayRecord.
    c.data.name = ''
    # Folder or file of the other sources. Its splits are the folders (DIR/train/CLASS/*) or files
    # (DIR/train.csv, DIR/train.npz) that train, val and test below name. A folder DIR/CLASS/* or a
    # single file holds one set, which is divided into the splits by these shares: a hash of the
    # example's name and split_seed assigns each example, so that later additions move no other.
    c.data.path = ''
    c.data.shares = (('train', 0.8), ('val', 0.1), ('test', 0.1))
    c.data.split_seed = 0
    # What to do with an image file that cannot be read: 'error' stops, 'skip' leaves it out and
    # counts it (and reads every file once at the start).
    c.data.on_bad_image = 'error'
    # Whether the EXIF orientation of image files is applied.
    c.data.exif = True
    # Folder of TFDS data sets; '' uses the default of TFDS ($TFDS_DATA_DIR or
    # ~/tensorflow_datasets). It may change when a run is resumed.
    c.data.dir = ''
    # Splits, in the notation of TFDS. The best checkpoint is selected on val; test is read once, at
    # the end of the run. '' for val or test disables it.
    c.data.train = 'train'
    c.data.val = 'val'
    c.data.test = 'test'
    # Train on the first n examples of each class, in the order of the data set; 0 uses all.
    c.data.limit = 0
    # Tokens per example of text; longer texts with labels are truncated.
    c.data.length = 128
    # A tokenizer.json (the format of Hugging Face) or 'bytes'; '' uses that of the weights in
    # init_from.
    c.data.tokenizer = ''
    # For a corpus that is a folder: pattern of the file names, and names of folders to leave out.
    c.data.pattern = '*.txt'
    c.data.skip_folders = ()
    # image_size, crop, crop_rounding, interpolation, scale, mean, std and channel_order are
    # documented at PREPROCESSING above, and left open.
    for name, usual in PREPROCESSING.items():
        c.data[name] = placeholder(type(usual))
    # Augmentation on the device, applied in order and in training only: tuples of a function in
    # data/on_device/augment.py and its arguments, for instance (('shift', 2), ('flip',)).
    c.data.augment = ()
    # Random crops on the host, in training only: a part of each image, with a share of its area
    # between these two numbers and an aspect ratio of 3:4 to 4:3, is resized to image_size, as in
    # (0.08, 1.0); () disables them.
    c.data.random_crop = ()
    # Mixup and CutMix on the device, in training only: each image is blended with another image of
    # the batch (mixup), or a rectangle of it is replaced (CutMix), in a proportion drawn from
    # Beta(value, value), and so are the labels; 0 disables it. If both are above 0, one of the two
    # is chosen at random for each batch.
    c.data.mixup = 0.0
    c.data.cutmix = 0.0
    # Splits of at most this many MiB, decoded, are kept in memory; larger ones are decoded batch by
    # batch. It may change when a run is resumed.
    c.data.memory_mib = 2048
    # Host threads that make batches. It may change when a run is resumed.
    c.data.threads = 2
    # Processes that make batches instead of threads, for data whose decoding in Python slows
    # threads down; 0 uses threads. It may change when a run is resumed.
    c.data.workers = 0
    # Batches that are kept ready. It may change when a run is resumed.
    c.data.prefetch = 4

    # Unit of the next three keys: 'steps', or 'epochs' (passes over the training data).
    c.every = 'steps'
    # Steps between lines of metrics.jsonl, whose values are means over those steps.
    c.log_every = 50
    # Steps between evaluations on val; 0 evaluates only at the end. A checkpoint is saved before
    # each.
    c.eval_every = 0
    # Steps between additional checkpoints; 0 saves no additional ones. Only checkpoints that were
    # evaluated can be the best.
    c.save_every = 0
    # Examples per evaluation step; 0 uses batch_size.
    c.eval_batch_size = 0
    # The val metric that decides which checkpoint is the best; '' uses the main metric of the task,
    # 'accuracy' for 'classify' and 'binary', 'loss' for 'lm'. The task defines whether more is
    # better.
    c.best_metric = ''
    # Number of recent checkpoints to keep besides the best one.
    c.keep = 1
    # (first, last) step of a trace for Perfetto or XProf, written to profile/ in the run directory;
    # () disables it. It may change when a run is resumed.
    c.profile = ()
    # Seconds that each phase may take without progress before the run counts as hanging: every
    # process then writes its stack traces, and all exit with code 42, to be started again. 0 never
    # times out. They may change when a run is resumed.
    c.budgets = ConfigDict()
    c.budgets.restore = 3600.0
    c.budgets.compile = 7200.0
    # From one call of the train step to the next, including the wait for data.
    c.budgets.step = 1800.0
    # One evaluation of all of val or test.
    c.budgets.eval = 7200.0
    c.budgets.save = 3600.0

    # Variants of this config file that `jaxtrain compare` trains.
    c.compare = ConfigDict()
    # Trained once, first; arms with an init_from start from its checkpoint. '' trains no such
    # variant.
    c.compare.pretrain = 'full'
    # Trained side by side; the first is the baseline of the comparison.
    c.compare.arms = ('scratch', 'linear', 'finetune')
    # Paired seeds per arm, counting up from config.seed.
    c.compare.seeds = 5

    c.lock()
    for section in OPEN_SECTIONS:
        _get(c, section).unlock()
    return c


# Keys that do not change what is computed, and so may change when a run is resumed. data.tokenizer
# is a path: the content of the tokenizer is compared instead.
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
