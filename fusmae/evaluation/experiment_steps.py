"""The commands whose results fill a table, in their order.

`train/table.py` runs them; `fusmae.evaluation.experiment_table` reads what they leave.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusmae.evaluation.attention import RESULT_NAME as ATTENTION_NAME
from fusmae.evaluation.backbones import open_backbone
from fusmae.evaluation.experiment import (
    BASELINES,
    Experiment,
    System,
    pretraining_folder,
    result_folder,
    weights_key,
)
from fusmae.evaluation.results import RESULT_NAME
from fusmae.manifest import MANIFEST_NAME, manifest_sha256, read_manifest
from fusmae.model.pretrained import CONFIG_NAME
from fusmae.training.record import RUN_RECORD


@dataclass(frozen=True)
class Places:
    """What the command line adds to an experiment.

    home: the folder of the experiment's file. scripts: the folder of `train/`'s scripts.
    data: dataset by name. weights: by `weights_key` what is loaded; an encoder of ours may have
    `{seed}` in its path. launcher: what starts a pretraining.
    """

    home: Path
    scripts: Path
    out: Path
    data: Mapping[str, str]
    weights: Mapping[str, str]
    launcher: tuple[str, ...]
    python: str


@dataclass(frozen=True)
class Step:
    """One command, its name (also that of its log), the folder that it fills, and its last file.

    A trainer that was asked to stop ends well, without `product`. `launcher` stands before the
    command and has no say in its product. `record` is that of a pretraining's starts: the command
    goes on from what `out` holds.
    """

    name: str
    command: tuple[str, ...]
    out: Path
    product: Path
    launcher: tuple[str, ...] = ()
    record: Path | None = None


def steps(experiment: Experiment, places: Places, seeds: Sequence[int]) -> list[Step]:
    """Every command of a table, each pretraining before what needs it.

    Third-party systems whose weights are not given have no steps; a system of ours whose encoder
    is given is not pretrained.

    Raises:
        ValueError: a dataset is not given, or weights are of no system.
    """
    _check_given(experiment, places)
    listed: list[Step] = []
    for seed in seeds:
        for system in experiment.systems:
            encoder = given_encoder(system, places, seed)
            if encoder is None:
                if system.weights:
                    continue
                run = pretraining_folder(places.out, system, seed)
                listed.append(_pretraining(experiment, places, system, seed, run))
                if system.name in experiment.attention:
                    listed.append(_attention(experiment, places, system, seed, run))
                encoder = str(run / "encoder")
            features = ["pretrained"]
            if system == experiment.reference:
                features += BASELINES
            for kind in features:
                listed += _scores(experiment, places, system, encoder, kind, seed)
    return listed


def _check_given(experiment: Experiment, places: Places) -> None:
    keys = [weights_key(system) for system in experiment.systems]
    strange = [key for key in places.weights if key not in keys]
    if strange:
        raise ValueError(f"--weights {strange[0]}=: the table's are {', '.join(keys)}")
    pretrains = any(
        not system.weights and weights_key(system) not in places.weights
        for system in experiment.systems
    )
    needed = experiment.data if pretrains else [protocol.data for protocol in experiment.protocols]
    missing = [name for name in needed if name not in places.data]
    if missing:
        raise ValueError(f"the dataset {missing[0]!r} is not given: --data {missing[0]}=PATH")


def given_encoder(system: System, places: Places, seed: int) -> str | None:
    """What `--pretrained` is for the weights given for a system; None where none are."""
    given = places.weights.get(weights_key(system))
    if given is None:
        return None
    if not system.weights:
        return given.replace("{seed}", str(seed))
    # A TOML says the kind itself, and which channel of the weights is which band.
    return given if given.endswith(".toml") else f"{system.weights}:{given}"


def check_datasets(places: Places) -> None:
    """Read each dataset's manifest, so that a wrong path ends a table before its first step.

    Raises:
        ValueError: one is not a dataset.
    """
    for place in places.data.values():
        if "://" not in place:
            read_manifest(Path(place))


def lacking_weights(experiment: Experiment, places: Places) -> list[str]:
    """The systems that have weights of others, none of which are given, with what gives them."""
    return [
        f"{system.name} (--weights {weights_key(system)}=FILE)"
        for system in experiment.systems
        if system.weights and weights_key(system) not in places.weights
    ]


def check_weights(experiment: Experiment, places: Places, seeds: Sequence[int]) -> None:
    """Open all weights that are given, so that a wrong file ends a table before its first step.

    Raises:
        ValueError: a file cannot be opened, or is of another system than it is given for.
    """
    for system in experiment.systems:
        for encoder in dict.fromkeys(given_encoder(system, places, seed) for seed in seeds):
            if encoder is None:
                continue
            backbone = open_backbone(encoder)
            wrong = backbone.name if backbone.name != (system.weights or "fus-mae") else None
            for setting in system.set:
                field, _, value = setting.removeprefix("model.").partition("=")
                found = str(getattr(backbone.card.model, field, value))
                wrong = wrong or (f"one with {field}={found}" if found != value else None)
            if wrong:
                raise ValueError(
                    f"--weights {weights_key(system)}={places.weights[weights_key(system)]} is "
                    f"{wrong}, not {system.name} ({', '.join(system.set) or system.weights})"
                )


def _pretraining(
    experiment: Experiment, places: Places, system: System, seed: int, run: Path
) -> Step:
    how = experiment.pretrain
    command = (
        str(places.scripts / "pretrain.py"),
        *("--recipe", str(places.home / how.recipe), "--data", places.data[how.data]),
        *("--out", str(run), "--deepspeed_config", str(places.home / how.ds_config)),
        *("--resume", "auto"),
        *_settings((*system.set, f"seed={seed}")),
    )
    name = f"pretraining, {system.name}, seed {seed}"
    product = run / "encoder" / CONFIG_NAME
    return Step(name, command, run, product, places.launcher, run / RUN_RECORD)


def _attention(
    experiment: Experiment, places: Places, system: System, seed: int, run: Path
) -> Step:
    data = places.data[experiment.pretrain.data]
    module = "fusmae.evaluation.attention"
    command = (places.python, "-m", module, str(run), "--data", data)
    return Step(f"attention, {system.name}, seed {seed}", command, run, run / ATTENTION_NAME)


def _scores(
    experiment: Experiment, places: Places, system: System, encoder: str, kind: str, seed: int
) -> list[Step]:
    row = BASELINES.get(kind, system.name)
    listed = []
    for protocol in experiment.protocols:
        if protocol.script == "finetune" and kind == "band-statistics":
            continue  # there is nothing to fine-tune
        option = "--init" if protocol.script == "finetune" else "--features"
        for sensors in protocol.sensors or experiment.sensors:
            out = result_folder(places.out, protocol, row, sensors, seed)
            command = (
                places.python,
                str(places.scripts / f"{protocol.script}.py"),
                *("--recipe", str(places.home / protocol.recipe)),
                *("--data", places.data[protocol.data], "--pretrained", encoder),
                *("--sensors", sensors, "--fraction", str(protocol.fraction)),
                *(option, kind, "--out", str(out)),
                *_pretraining_data(experiment, places, system, encoder, kind),
                *_settings((*protocol.set, f"seed={seed}")),
            )
            name = f"{protocol.name}, {row}, {sensors}, seed {seed}"
            listed.append(Step(name, command, out, out / RESULT_NAME))
    return listed


def _pretraining_data(
    experiment: Experiment, places: Places, system: System, encoder: str, kind: str
) -> tuple[str, ...]:
    """The dataset that an encoder of ours has seen, whose overlap with test is counted."""
    data = places.data.get(experiment.pretrain.data)
    if system.weights or kind != "pretrained" or data is None:
        return ()
    if weights_key(system) in places.weights and not _was_trained_on(encoder, data):
        return ()
    return "--pretraining-data", data


def _was_trained_on(encoder: str, data: str) -> bool:
    """Whether the card of an exported folder names the dataset."""
    card = Path(encoder) / CONFIG_NAME
    if not card.exists() or not (Path(data) / MANIFEST_NAME).exists():
        return False
    seen = json.loads(card.read_text()).get("manifest_sha256", ())
    return manifest_sha256(Path(data)) in seen


def _settings(settings: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for setting in settings for word in ("--set", setting))
