"""From what `--pretrained` says to a row of the tables."""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from fusmae.config import build
from fusmae.evaluation.backbones.backbone import Backbone
from fusmae.evaluation.backbones.checkpoints import read_checkpoint, take_tensors
from fusmae.evaluation.backbones.dino_mm import open_dino_mm
from fusmae.evaluation.backbones.fus_mae import open_fus_mae
from fusmae.evaluation.backbones.imagenet import open_imagenet
from fusmae.evaluation.backbones.satvit import Version, open_satvit
from fusmae.model.hub import fetch_folder
from fusmae.model.interface import ImageEncoder
from fusmae.model.pretrained import WEIGHTS_NAME

PUBLISHED = ("imagenet", "dino-mm", *get_args(Version))
# The fine-tuned weights of a network that is not ours, by the names of `vit.py`.
BACKBONE_NAME = "backbone.safetensors"


@dataclass(frozen=True)
class BackboneSpec:
    """A published model: its name, its file of weights and, of SatViT, the bands of its channels.

    `weights` may be `hf://owner/name[@revision]`, a repository that holds `model.safetensors`.
    `tuned` is the `backbone.safetensors` that train/finetune.py made of them.
    """

    name: str
    weights: str
    channels: tuple[str, ...] = ()
    tuned: str = ""

    def __post_init__(self) -> None:
        if self.name not in PUBLISHED:
            raise ValueError(f"name = {self.name!r} is not one of {', '.join(PUBLISHED)}")
        if self.channels and self.name not in get_args(Version):
            raise ValueError(f"{self.name} knows the bands of its channels: leave channels out")


def open_backbone(source: str | Path) -> Backbone:
    """The backbone of an exported folder, of NAME:FILE, or of a TOML file with a `BackboneSpec`.

    Raises:
        ValueError: there is no such thing, or it is not what it is called; what is wrong with
            a file of weights is said by its keys.
    """
    spec = _spec_of(str(source))
    return _open(*spec) if spec else open_fus_mae(str(source))


def weight_files(source: str) -> tuple[Path, ...]:
    """The files that `open_backbone` would read of a published model; none is opened but a TOML.

    Of an exported folder and of a repository (`hf://`) there are none.

    Raises:
        ValueError: the TOML is wrong.
    """
    spec = _spec_of(source)
    if spec is None:
        return ()
    said, folder = spec
    names = [said.weights, said.tuned]
    return tuple(_path(folder, name) for name in names if name and not name.startswith("hf://"))


def _spec_of(text: str) -> tuple[BackboneSpec, Path] | None:
    """What NAME:FILE or a TOML file says, and where its relative paths start; None of the rest."""
    name, colon, weights = text.partition(":")
    if name in PUBLISHED and not Path(text).is_dir():
        if not weights:
            raise ValueError(f"--pretrained {name}{colon} needs its file of weights: {name}:FILE")
        return BackboneSpec(name, weights), Path()
    if text.endswith(".toml"):
        return _read_spec(Path(text)), Path(text).parent
    return None


def _path(folder: Path, name: str) -> Path:
    return folder / Path(name).expanduser()


def _open(spec: BackboneSpec, folder: Path) -> Backbone:
    """`folder` is where relative paths start."""
    backbone = _open_published(spec, folder)
    if not spec.tuned:
        return backbone
    path = _path(folder, spec.tuned)
    encoder = _read_tuned(backbone.pretrained, path, spec.name)
    files = (*backbone.files, path)
    return replace(backbone, pretrained=encoder, files=files, tuned=str(path))


def _open_published(spec: BackboneSpec, folder: Path) -> Backbone:
    if spec.weights.startswith("hf://"):
        path = fetch_folder(spec.weights) / WEIGHTS_NAME
    else:
        path = _path(folder, spec.weights)
    if path.name == BACKBONE_NAME:
        raise ValueError(
            f"{path} is a fine-tuned {spec.name}: give --pretrained a TOML file with "
            f'name = "{spec.name}", weights = the file it was tuned from, and tuned = "{path}"'
        )
    if spec.name == "imagenet":
        return open_imagenet(path)
    if spec.name == "dino-mm":
        return open_dino_mm(path)
    version: Version = "satvit-v1" if spec.name == "satvit-v1" else "satvit-v2"
    return open_satvit(version, path, spec.channels)


def _read_spec(path: Path) -> BackboneSpec:
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    missing = [key for key in ("name", "weights") if key not in table]
    if missing:
        raise ValueError(f"{path} lacks {' and '.join(missing)}")
    try:
        return build(BackboneSpec, table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_tuned(encoder: ImageEncoder, path: Path, name: str) -> ImageEncoder:
    """`encoder`, published as `name`, with the weights that fine-tuning left in `path`.

    Raises:
        ValueError: as `read_checkpoint` and `take_tensors`.
    """
    expected = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    where = f"{path}: not {name}'s as train/finetune.py writes it"
    encoder.load_state_dict(take_tensors(read_checkpoint(path), expected, (), where))
    return encoder
