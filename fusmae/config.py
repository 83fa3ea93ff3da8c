"""Recipes: frozen dataclasses, model presets and strict TOML loading.

A recipe owns every number that changes a result. What must not change it (micro-batch,
ZeRO stage, precision) belongs to the DeepSpeed json.
"""

import dataclasses
import difflib
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")

Fusion = Literal["xae_xad", "xad"]
Masking = Literal["consistent", "independent"]

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

    `image_px` is the side of the model's square input grid, `patch_px` of one token.
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
    normalise_target: bool = False

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

    @property
    def num_tokens(self) -> int:
        """Tokens of one sensor."""
        return (self.image_px // self.patch_px) ** 2

    @property
    def num_visible(self) -> int:
        """Visible tokens of one sensor, floor(N * (1 - mask_ratio)) as in MAE; static."""
        return int(self.num_tokens * (1 - self.mask_ratio))


@dataclass(frozen=True)
class DataConfig:
    """What of a dataset is used, and on which grid the model sees it.

    `bands` maps a sensor to its band names in the model's channel order; a sensor left
    out is not read. `window` is the shuffle window in shards, 0 for all of them.
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
    resample: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    window: int = 0


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
    """How often a run saves, logs and validates. None of it changes the result."""

    save_every_steps: int = 1000
    keep_checkpoints: int = 2
    log_every_steps: int = 10
    deterministic: bool = False

    def __post_init__(self) -> None:
        _check_positive("run", self, "save_every_steps", "keep_checkpoints", "log_every_steps")


@dataclass(frozen=True)
class PretrainRecipe:
    """Everything that `train/pretrain.py` needs to know besides paths and hardware."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


def build(cls: type[T], table: dict[str, Any], where: str = "") -> T:
    """A `cls` from a TOML table; nested dataclasses from nested tables.

    Raises:
        ValueError: an unknown key (the nearest known one is named), a value of the wrong
            type, or one that the dataclass refuses.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{where}{key}"
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            hint = f"; did you mean {where}{near[0]}?" if near else ""
            raise ValueError(f"unknown key {path}{hint} (known: {', '.join(sorted(fields))})")
        values[key] = _convert(value, hints[key], path)
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(str(error)) from None


def _convert(value: Any, hint: Any, path: str) -> Any:
    """`value` as the type `hint`, or a ValueError that names `path`."""
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return build(typing.cast(type, hint), value, f"{path}.")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
        raise ValueError(f"{path} = {value!r} is not one of {', '.join(map(repr, args))}")
    if origin is tuple and isinstance(value, list | tuple):
        inner = args[:1] * len(value) if args[-1] is ... else args
        if len(inner) == len(value):
            return tuple(
                _convert(v, t, f"{path}[{i}]")
                for i, (v, t) in enumerate(zip(value, inner, strict=True))
            )
    if origin is dict and isinstance(value, dict):
        return {k: _convert(v, args[1], f"{path}.{k}") for k, v in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ValueError(f"{path} = {value!r} is not of type {name}")


def load_recipe(cls: type[T], path: Path, overrides: tuple[str, ...] = ()) -> T:
    """The recipe in a TOML file, after `a.b=value` overrides (values in TOML syntax).

    Raises:
        ValueError: the file is missing or not TOML, an override has no `=`, or a key or
            value is wrong; the message names the file or the key.
    """
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read the recipe {path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        _apply(table, override)
    try:
        return build(cls, table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _apply(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"--set {override}: expected key=value, such as optim.lr=1e-4")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ValueError(f"--set {override}: {parent} is not a table")
    table[leaf] = value


def as_table(recipe: Any) -> dict[str, Any]:
    """The recipe as plain JSON-ready values, every default spelled out."""
    return dataclasses.asdict(recipe)
