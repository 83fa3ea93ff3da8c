"""A pretrained encoder as a folder: `model.safetensors` and `config.json`, no pickle.

`config.json` holds what a user of the weights must know: sizes, bands in channel order,
the statistics that normalised them, the source of the data and its licence.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fusmae.config import ModelConfig, as_table, build
from fusmae.model.encoder import FusMAEEncoder

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
FORMAT_NAME = "fusmae-encoder"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class EncoderCard:
    """What belongs to an encoder's weights.

    `bands` maps each sensor, in the model's order, to its bands in channel order; `mean`
    and `std` are theirs in stored units (dB, reflectance * 10000). `resample` is how bands
    were brought to the model's grid, `dataset` the name of the data, `simulated` whether
    they were made by `fusmae-ingest simulate`, `licence` the licence of the data. `tuned_on` says
    on which labels the whole encoder was fine-tuned afterwards, "" if it never was.
    """

    model: ModelConfig
    bands: dict[str, tuple[str, ...]]
    mean: dict[str, tuple[float, ...]]
    std: dict[str, tuple[float, ...]]
    resample: str
    dataset: str
    simulated: bool
    licence: str
    split: str = ""
    split_rule: str = ""
    manifest_sha256: tuple[str, ...] = ()
    tuned_on: str = ""

    def __post_init__(self) -> None:
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            counts = {sensor: len(values) for sensor, values in numbers.items()}
            if counts != self.channels:
                raise ValueError(f"{name} has {counts} values, bands has {self.channels}")

    @property
    def channels(self) -> dict[str, int]:
        """Each sensor's channel count, in the model's order."""
        return {sensor: len(names) for sensor, names in self.bands.items()}


def save_encoder(encoder: FusMAEEncoder, card: EncoderCard, folder: Path) -> None:
    """Write the folder; it is complete once `config.json` is there, which comes last.

    Raises:
        ValueError: the card describes another model or other sensors than the encoder's.
    """
    if card.model != encoder.config or list(card.channels.items()) != list(
        encoder.channels.items()
    ):
        raise ValueError(
            f"the card describes {card.channels} of {card.model}, "
            f"the encoder is {encoder.channels} of {encoder.config}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # An older export in this folder stops being one before its weights are replaced.
    (folder / CONFIG_NAME).unlink(missing_ok=True)
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()
    }
    # Some variants have weights of the same names and shapes: which one this is stands with them.
    named = safetensors.torch.save(weights, metadata={"fusion": card.model.fusion})
    _write_atomically(folder / WEIGHTS_NAME, named)
    table = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **as_table(card)}
    if not card.tuned_on:  # releases of before it refuse a key that they do not know
        del table["tuned_on"]
    text = json.dumps(table, indent=1, ensure_ascii=False) + "\n"
    _write_atomically(folder / CONFIG_NAME, text.encode())


def load_encoder(folder: Path) -> tuple[FusMAEEncoder, EncoderCard]:
    """The encoder, on the CPU and in float32, and its card.

    Raises:
        ValueError: a file is missing or broken, the format is newer, or the weights are not
            exactly those of the model in `config.json`; file and keys are named.
    """
    card = _read_card(folder / CONFIG_NAME)
    encoder = FusMAEEncoder(card.model, card.channels)
    path = folder / WEIGHTS_NAME
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read the weights {path}: {error}") from None
    # Exports of before there were several variants do not say which they are.
    fusion = metadata.get("fusion", card.model.fusion)
    if fusion != card.model.fusion:
        raise ValueError(
            f"{path} holds weights of fusion {fusion!r}, {CONFIG_NAME} says "
            f"{card.model.fusion!r}: they belong to two exports"
        )
    _check_weights(weights, encoder.state_dict(), path)
    encoder.load_state_dict(weights)
    return encoder, card


def _check_weights(weights: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    """Raises ValueError unless names and shapes are exactly the expected ones."""
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(
            f"{path} does not hold the weights of the model in {CONFIG_NAME}: {'; '.join(problems)}"
        )


def _read_card(path: Path) -> EncoderCard:
    """Raises ValueError, naming the file, if the card is missing, broken or of a newer format."""
    try:
        table: dict[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(
            f"cannot read {path}: {error.strerror}; is {path.parent} a finished export? "
            "that of a run is RUN/encoder"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(table, dict) or table.pop("format", None) != FORMAT_NAME:
        raise ValueError(f"{path} is not the card of a {FORMAT_NAME}")
    version = table.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {version}, this release reads {FORMAT_VERSION}"
        )
    missing = [
        field.name
        for field in dataclasses.fields(EncoderCard)
        if field.name not in table and field.default is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    try:
        return build(EncoderCard, table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole, and on the disk, or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
