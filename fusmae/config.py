"""Recipes: frozen dataclasses and model presets; `fusmae/strict_toml.py` reads them.

A recipe owns every number that changes a result. What must not change it (micro-batch,
ZeRO stage, precision) belongs to the DeepSpeed json.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from fusmae.sensor_config import SensorConfig, check_sensors
from fusmae.sensors import check_bands
from fusmae.strict_toml import as_table, build, load_recipe

__all__ = [
    "MODEL_PRESETS",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "PretrainRecipe",
    "RunConfig",
    "SourceConfig",
    "SubsetConfig",
    "as_table",
    "build",
    "load_recipe",
]

# What each one is: `fusmae/model/encoder.py`.
Fusion = Literal["xae_xad", "xad", "xae", "none", "late", "stack"]
Masking = Literal["consistent", "independent"]
Flag = Literal["seasonal_snow", "cloud_or_shadow"]
Resample = Literal["bilinear", "bicubic", "nearest"]
OnBadShard = Literal["error", "skip"]

# (width, depth, heads, decoder_width, decoder_depth, decoder_heads). `base` is ViT-B with
# MultiMAE's decoder, OUR choice: the paper prints no sizes.
MODEL_PRESETS: dict[str, tuple[int, int, int, int, int, int]] = {
    "tiny": (128, 4, 4, 64, 1, 4),
    "small": (384, 12, 6, 192, 2, 6),
    "base": (768, 12, 12, 256, 2, 8),
    "large": (1024, 24, 16, 512, 2, 16),
}


def _check_positive(section: str, config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{section}.{name} = {getattr(config, name)} must be more than 0")


def _check_not_negative(section: str, config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= 0:
            raise ValueError(f"{section}.{name} = {getattr(config, name)} must not be negative")


@dataclass(frozen=True)
class ModelConfig:
    """Fus-MAE's shape. A field left at 0 takes the preset's number.

    `image_px` is the side of the model's square input grid, `patch_px` of one token. `sensors`
    holds what is special to single sensors; one that is not named there has nothing special.
    """

    preset: Literal["tiny", "small", "base", "large"] = "base"
    fusion: Fusion = "xae_xad"
    image_px: int = 224
    patch_px: int = 16
    width: int = 0
    depth: int = 0
    heads: int = 0
    decoder_width: int = 0
    decoder_depth: int = 0
    decoder_heads: int = 0
    mlp_ratio: int = 4
    masking: Masking = "consistent"
    mask_ratio: float = 0.75
    # The share of steps in which one sensor, with its loss, is left out of pretraining.
    sensor_dropout: float = 0.0
    normalise_target: bool = False
    sensors: dict[str, SensorConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads")
        for name, value in zip(names, MODEL_PRESETS[self.preset], strict=True):
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        _check_positive("model", self, "image_px", "patch_px", "mlp_ratio", *names)
        if self.image_px % self.patch_px:
            raise ValueError(
                f"model.image_px = {self.image_px} is not a multiple of "
                f"model.patch_px = {self.patch_px}"
            )
        for width, heads in (("width", "heads"), ("decoder_width", "decoder_heads")):
            if getattr(self, width) % getattr(self, heads) or getattr(self, width) % 4:
                raise ValueError(
                    f"model.{width} = {getattr(self, width)} must be a multiple of 4 and of "
                    f"model.{heads} = {getattr(self, heads)}"
                )
        if not 0 < self.num_visible < self.num_tokens:
            raise ValueError(
                f"model.mask_ratio = {self.mask_ratio} leaves {self.num_visible} of "
                f"{self.num_tokens} tokens visible; choose a ratio between 0 and 1"
            )
        if not 0 <= self.sensor_dropout < 1:
            raise ValueError(
                f"model.sensor_dropout = {self.sensor_dropout} must be at least 0 and below 1"
            )
        if self.sensor_dropout and self.fusion == "stack":
            raise ValueError(
                'model.fusion = "stack" has all sensors in each token and cannot leave one out: '
                "set model.sensor_dropout = 0"
            )
        own_sizes = [name for name in self.sensors if self.patch_px_of(name) != self.patch_px]
        if self.fusion == "stack" and (self.masking != "consistent" or own_sizes):
            raise ValueError(
                'model.fusion = "stack" has all sensors in each token: it needs model.masking = '
                '"consistent" and no patch_px of a sensor\'s own'
            )

    @property
    def has_xae(self) -> bool:
        """Whether XAttnEncoder takes the place of block 1."""
        return self.fusion in ("xae_xad", "xae")

    @property
    def has_xad(self) -> bool:
        """Whether XAttnDecoder stands before the sensors' decoders."""
        return self.fusion in ("xae_xad", "xad")

    def patch_px_of(self, sensor: str) -> int:
        """The side of a sensor's token in its own pixels."""
        return self.sensors.get(sensor, SensorConfig()).patch_px or self.patch_px

    def num_classes_of(self, sensor: str) -> int:
        """Classes of a sensor that is a class map, 0 for one that measures."""
        return self.sensors.get(sensor, SensorConfig()).num_classes

    def sizes_px(self, sensors: Iterable[str]) -> dict[str, int]:
        """The side of each sensor's image; all have the same number of tokens."""
        side = self.image_px // self.patch_px
        return {sensor: side * self.patch_px_of(sensor) for sensor in sensors}

    @property
    def num_tokens(self) -> int:
        """Tokens of one sensor."""
        return (self.image_px // self.patch_px) ** 2

    @property
    def num_visible(self) -> int:
        """Visible tokens of one sensor, floor(N * (1 - mask_ratio)) as in MAE; static."""
        return int(self.num_tokens * (1 - self.mask_ratio))


def _listed(keys: object) -> tuple[str, ...]:
    """Raises ValueError unless these are keys, one or more."""
    if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
        raise ValueError(
            f"subset.keys = {keys!r} must be a list of keys, or the path of a text file with a key "
            "a line"
        )
    if not keys:
        raise ValueError("subset.keys lists no key: leave it out, for the whole split")
    return tuple(keys)


@dataclass(frozen=True)
class SubsetConfig:
    """Which samples of a split are used; the default is all.

    `keys` is a text file of sample keys, one a line, or a list of the keys themselves; an empty
    text stands for none. `exclude` leaves out the samples with any of these flags. Of what these
    two leave, `fraction` is drawn with `seed`: without replacement, and nested, the 1 % lying
    inside the 10 % of the same seed. A recipe's `exclude` holds for validation too, the other
    fields for the samples to train on alone.
    """

    fraction: float = 1.0
    seed: int = 0
    keys: str | Path | tuple[str, ...] = ""
    exclude: tuple[Flag, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"subset.fraction = {self.fraction} must be above 0 and at most 1 (1 % is 0.01)"
            )
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"subset.seed = {self.seed} must be 0 or more and below 2**64")
        # One kind each, which can be hashed and written as JSON.
        if isinstance(self.keys, Path):
            object.__setattr__(self, "keys", str(self.keys))
        elif not isinstance(self.keys, str):
            object.__setattr__(self, "keys", _listed(self.keys))
        flags = get_args(Flag)
        if isinstance(self.exclude, str) or any(flag not in flags for flag in self.exclude):
            raise ValueError(
                f"subset.exclude = {self.exclude!r} must be a list of flags, which are "
                f"{', '.join(flags)}"
            )

    def __str__(self) -> str:
        """As its repr, with the number of listed keys in place of them."""
        if isinstance(self.keys, tuple):
            return repr(replace(self, keys=f"{len(self.keys)} keys"))
        return repr(self)

    @property
    def is_whole(self) -> bool:
        """Whether every sample of the split is used."""
        return self.fraction == 1 and not self.keys and not self.exclude


@dataclass(frozen=True)
class SourceConfig:
    """One dataset of a mixture: its samples of each global batch, and which of its samples."""

    quota: int = 0
    subset: SubsetConfig = field(default_factory=SubsetConfig)

    def __post_init__(self) -> None:
        _check_positive("data.sources", self, "quota")


@dataclass(frozen=True)
class DataConfig:
    """What of a dataset is used, and on which grid the model sees it.

    `bands` maps a sensor to its band names in the model's channel order; a sensor left
    out is not read. A sensor is one of the dataset's, or a group of one's bands that is named
    after it, such as `s2_20m` or `s2_red_edge`, and to the model a sensor of its own.
    `window` is the shuffle window in shards, 0 for all of them. `sources` are the datasets of a
    mixture, in the order of `--data`, each with a subset of its own; none for a single dataset.
    Of a dataset at a URL at most `cache_gb` (10^9 bytes) of shards are kept on disk, and a window
    of 0 is the largest of which the current and the next one fit; a shard that stays unreadable
    ends the run, or is replaced in each batch by good ones of its window (`skip`).
    """

    split: str = "train"
    bands: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "s1": ("VV", "VH"),
            "s2": (
                "B01",
                "B02",
                "B03",
                "B04",
                "B05",
                "B06",
                "B07",
                "B08",
                "B8A",
                "B09",
                "B11",
                "B12",
            ),
        }
    )
    resample: Resample = "bilinear"
    window: int = 0
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    sources: tuple[SourceConfig, ...] = ()
    # Not taken from the free disk: the window, so the order of samples, follows from it.
    cache_gb: float = 64.0
    on_bad_shard: OnBadShard = "error"

    @property
    def channels(self) -> dict[str, int]:
        """The model's channel count by sensor."""
        return {sensor: len(names) for sensor, names in self.bands.items()}

    def __post_init__(self) -> None:
        _check_positive("data", self, "cache_gb")
        check_bands(self.bands)
        for name, choice in (("resample", Resample), ("on_bad_shard", OnBadShard)):
            known, given = get_args(choice), getattr(self, name)
            if given not in known:
                raise ValueError(f"data.{name} = {given!r} must be one of {', '.join(known)}")
        if not isinstance(self.subset, SubsetConfig):
            raise ValueError(
                f"data.subset = {self.subset!r} must be a SubsetConfig, such as "
                "SubsetConfig(fraction=0.1)"
            )
        if self.sources and self.subset != SubsetConfig():
            raise ValueError(
                "data.subset does not say of which of data.sources: "
                "give each its own, [data.sources.subset] after its quota"
            )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay; `lr` is the peak at `global_batch`.

    Betas and weight decay are MultiMAE's, OUR choice: the paper does not print them.
    """

    lr: float = 1.5625e-4
    global_batch: int = 400
    epochs: float = 100.0
    warmup_epochs: float = 10.0
    warmup_lr: float = 1e-6
    min_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        _check_positive("optim", self, "lr", "global_batch", "epochs", "eps")
        _check_not_negative("optim", self, "warmup_epochs", "warmup_lr", "min_lr", "clip_norm")
        _check_not_negative("optim", self, "weight_decay")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"optim.warmup_epochs = {self.warmup_epochs} must be less than "
                f"optim.epochs = {self.epochs}"
            )


@dataclass(frozen=True)
class RunConfig:
    """How often a run saves, logs and validates. None of it changes the result beyond rounding.

    It saves every `save_every_steps`, and `save_every_minutes` after the last save, 0 for never.
    The newest `keep_checkpoints` stay, and those of every `keep_every_steps`, 0 for none, which
    are saved whether or not `save_every_steps` divides them.
    Every `validate_every_steps`, 0 for never, the loss is taken on the first `val_samples` of
    `val_split` of the first dataset. A step whose loss or gradients are not finite is skipped;
    `max_skips_in_a_row` of them end the run. `compile` makes the model's kernels by torch.compile
    at the start, which takes a minute or more and a C++ compiler, hence off by default.
    What `metrics.jsonl` gets, also goes to RUN/tensorboard with `tensorboard`, and to the Weights &
    Biases project `wandb`, empty for none.
    Every `picture_every_epochs` RUN/pictures gets a reconstruction, and every `probe_every_epochs`
    `metrics.jsonl` a kNN score on `probe_samples` of each split, 0 for never.
    `read_threads` read the samples on each rank: where the disk lets them wait, more are faster.
    """

    save_every_steps: int = 1000
    save_every_minutes: float = 0.0
    keep_checkpoints: int = 2
    keep_every_steps: int = 0
    log_every_steps: int = 10
    validate_every_steps: int = 0
    val_split: str = "val"
    val_samples: int = 1024
    deterministic: bool = False
    max_skips_in_a_row: int = 10
    compile: bool = False
    tensorboard: bool = False
    wandb: str = ""
    picture_every_epochs: float = 0.0
    probe_every_epochs: float = 0.0
    probe_samples: int = 1000
    read_threads: int = 2

    def __post_init__(self) -> None:
        _check_not_negative("run", self, "validate_every_steps", "save_every_minutes")
        _check_not_negative("run", self, "keep_every_steps")
        _check_not_negative("run", self, "picture_every_epochs", "probe_every_epochs")
        _check_positive("run", self, "val_samples", "probe_samples", "max_skips_in_a_row")
        _check_positive("run", self, "read_threads")
        _check_positive("run", self, "save_every_steps", "keep_checkpoints", "log_every_steps")


@dataclass(frozen=True)
class PretrainRecipe:
    """Everything that `train/pretrain.py` needs to know besides paths and hardware."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        check_sensors(self.model.sensors, self.data.bands)
        quotas = [source.quota for source in self.data.sources]
        if quotas and sum(quotas) != self.optim.global_batch:
            raise ValueError(
                f"the quotas of data.sources, {' + '.join(map(str, quotas))} = {sum(quotas)}, "
                f"must add up to optim.global_batch = {self.optim.global_batch}"
            )

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The datasets and their shares of a global batch; a single one has all of it."""
        return self.data.sources or (SourceConfig(self.optim.global_batch, self.data.subset),)
