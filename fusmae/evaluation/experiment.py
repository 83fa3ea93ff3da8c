"""A table of the paper as data: which systems, protocols and sensors, and the runs they need.

Pure: `load_experiment` reads `train/tables/NAME.toml`, `steps` lists the commands whose results
fill the table, in their order. `train/table.py` runs them; `fusmae.evaluation.experiment_table`
reads what they leave.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fusmae.config import load_recipe
from fusmae.evaluation.results import RESULT_NAME
from fusmae.model.pretrained import CONFIG_NAME

ScriptName = Literal["linear_probe", "finetune"]
# Systems of every table that no weights are needed for, by what a probe calls their features.
BASELINES = {"random": "random weights", "band-statistics": "band statistics"}


@dataclass(frozen=True)
class System:
    """A row: an encoder of ours, pretrained with `set` changes to the recipe, or foreign weights.

    `weights` is the kind of a third-party checkpoint (`imagenet`, `dino-mm`, ...), which has to
    be given; `paper` holds the published scores in percent by protocol, a value for each of the
    experiment's `sensors`.
    """

    name: str
    set: tuple[str, ...] = ()
    weights: str = ""
    paper: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """One way to score an encoder: `script` of `train/`, its recipe, and how many labels it gets.

    `metrics` are shown, the first one in the comparisons; all are in percent.
    """

    name: str
    script: ScriptName
    recipe: str
    metrics: tuple[str, ...]
    data: str
    fraction: float = 1.0
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """What the table is asked: `row` against `other`, each a system and its sensors."""

    text: str
    protocol: str
    row: tuple[str, str]
    other: tuple[str, str]


@dataclass(frozen=True)
class Pretraining:
    """How the systems of ours are pretrained: all alike but for their own `set`."""

    recipe: str
    ds_config: str
    data: str


@dataclass(frozen=True)
class Experiment:
    """A table. Paths are relative to the file it was read from; `data` names are given at the
    command line."""

    title: str
    sensors: tuple[str, ...]
    pretrain: Pretraining
    systems: tuple[System, ...]
    protocols: tuple[Protocol, ...]
    questions: tuple[Question, ...] = ()
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        names = [system.name for system in self.systems]
        rows = {*names, *BASELINES.values()}
        protocols = {protocol.name for protocol in self.protocols}
        if len(rows) < len(names) + len(BASELINES) or len(protocols) < len(self.protocols):
            raise ValueError("two systems, or two protocols, have the same name")
        if not any(not system.weights for system in self.systems):
            raise ValueError("at least one system must be pretrained here: baselines need its card")
        for system in self.systems:
            for protocol, scores in system.paper.items():
                if protocol not in protocols or len(scores) != len(self.sensors):
                    raise ValueError(
                        f"paper scores of {system.name}, {protocol}: expected a protocol of "
                        f"{sorted(protocols)} and {len(self.sensors)} scores"
                    )
        for question in self.questions:
            for row, sensors in (question.row, question.other):
                known = row in rows and sensors in self.sensors
                if not known or question.protocol not in protocols:
                    raise ValueError(
                        f"question {question.text!r} asks for what is not in the table"
                    )

    @property
    def data(self) -> tuple[str, ...]:
        """The names of the datasets it needs, that of the pretraining first."""
        return tuple(dict.fromkeys([self.pretrain.data, *(p.data for p in self.protocols)]))

    @property
    def reference(self) -> System:
        """The first system of ours, whose architecture and bands the baselines have."""
        return next(system for system in self.systems if not system.weights)


def load_experiment(path: Path) -> Experiment:
    """Raises ValueError, naming the file, if it is missing or wrong."""
    return load_recipe(Experiment, path)


@dataclass(frozen=True)
class Places:
    """What the command line adds to an experiment.

    home: the folder of the experiment's file. scripts: the folder of `train/`'s scripts.
    data: dataset by name. weights: checkpoint by kind. launcher: what starts a pretraining.
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

    A trainer that was asked to stop ends well, without `product`.
    """

    name: str
    command: tuple[str, ...]
    out: Path
    product: Path


def slug(text: str) -> str:
    """A file name for a row, a protocol or sensors: `XAE&D, 1 %` becomes `xae-d-1`."""
    words = "".join(char.lower() if char.isalnum() else " " for char in text).split()
    return "-".join(words)


def result_folder(out: Path, protocol: Protocol, row: str, sensors: str, seed: int) -> Path:
    return out / "runs" / slug(protocol.name) / slug(row) / slug(sensors) / f"seed-{seed}"


def steps(experiment: Experiment, places: Places, seeds: Sequence[int]) -> list[Step]:
    """Every command of a table, each pretraining before what needs it.

    Systems whose weights are not given have no steps.

    Raises:
        ValueError: a dataset is not given.
    """
    missing = [name for name in experiment.data if name not in places.data]
    if missing:
        raise ValueError(f"the dataset {missing[0]!r} is not given: --data {missing[0]}=PATH")
    listed: list[Step] = []
    for seed in seeds:
        for system in experiment.systems:
            if system.weights:
                if system.weights not in places.weights:
                    continue
                given = places.weights[system.weights]
                # A TOML says the kind itself, and which channel of the weights is which band.
                encoder = given if given.endswith(".toml") else f"{system.weights}:{given}"
            else:
                run = places.out / "pretraining" / slug(system.name) / f"seed-{seed}"
                listed.append(_pretraining(experiment, places, system, seed, run))
                encoder = str(run / "encoder")
            features = ["pretrained"]
            if system == experiment.reference:
                features += BASELINES
            for kind in features:
                listed += _scores(experiment, places, system, encoder, kind, seed)
    return listed


def _pretraining(
    experiment: Experiment, places: Places, system: System, seed: int, run: Path
) -> Step:
    how = experiment.pretrain
    command = (
        *places.launcher,
        str(places.scripts / "pretrain.py"),
        *("--recipe", str(places.home / how.recipe), "--data", places.data[how.data]),
        *("--out", str(run), "--deepspeed_config", str(places.home / how.ds_config)),
        *("--resume", "auto"),
        *_settings((*system.set, f"seed={seed}")),
    )
    name = f"pretraining, {system.name}, seed {seed}"
    return Step(name, command, run, run / "encoder" / CONFIG_NAME)


def _scores(
    experiment: Experiment, places: Places, system: System, encoder: str, kind: str, seed: int
) -> list[Step]:
    row = BASELINES.get(kind, system.name)
    listed = []
    for protocol in experiment.protocols:
        if protocol.script == "finetune" and kind == "band-statistics":
            continue  # there is nothing to fine-tune
        option = "--init" if protocol.script == "finetune" else "--features"
        for sensors in experiment.sensors:
            out = result_folder(places.out, protocol, row, sensors, seed)
            command = (
                places.python,
                str(places.scripts / f"{protocol.script}.py"),
                *("--recipe", str(places.home / protocol.recipe)),
                *("--data", places.data[protocol.data], "--pretrained", encoder),
                *("--sensors", sensors, "--fraction", str(protocol.fraction)),
                *(option, kind, "--out", str(out)),
                *_pretraining_data(experiment, places, system, kind),
                *_settings((*protocol.set, f"seed={seed}")),
            )
            name = f"{protocol.name}, {row}, {sensors}, seed {seed}"
            listed.append(Step(name, command, out, out / RESULT_NAME))
    return listed


def _pretraining_data(
    experiment: Experiment, places: Places, system: System, kind: str
) -> tuple[str, ...]:
    """The dataset that an encoder of ours has seen, whose overlap with test is counted."""
    if system.weights or kind != "pretrained":
        return ()
    return "--pretraining-data", places.data[experiment.pretrain.data]


def _settings(settings: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for setting in settings for word in ("--set", setting))
