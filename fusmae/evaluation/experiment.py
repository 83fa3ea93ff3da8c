"""A table of the paper as data: which systems, protocols and sensors, and where its runs lie.

Pure: `load_experiment` reads `train/tables/NAME.toml`. `experiment_steps` lists the commands whose
results fill the table, `experiment_table` gathers what they leave, `experiment_page` writes it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fusmae.config import load_recipe

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

    `metrics` are shown, the first one in the comparisons; all are in percent. `sensors` are those
    of the experiment's that it is run on, all of them where none are named.
    """

    name: str
    script: ScriptName
    recipe: str
    metrics: tuple[str, ...]
    data: str
    fraction: float = 1.0
    set: tuple[str, ...] = ()
    sensors: tuple[str, ...] = ()


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
    command line. `note` stands below its title."""

    title: str
    sensors: tuple[str, ...]
    pretrain: Pretraining
    systems: tuple[System, ...]
    protocols: tuple[Protocol, ...]
    questions: tuple[Question, ...] = ()
    seeds: tuple[int, ...] = (0,)
    # Systems pretrained here whose shares of attention between sensors are measured.
    attention: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        names = [system.name for system in self.systems]
        rows = {*names, *BASELINES.values()}
        protocols = {protocol.name for protocol in self.protocols}
        if len(rows) < len(names) + len(BASELINES) or len(protocols) < len(self.protocols):
            raise ValueError("two systems, or two protocols, have the same name")
        if not any(not system.weights for system in self.systems):
            raise ValueError("at least one system must be pretrained here: baselines need its card")
        ours = [system.name for system in self.systems if not system.weights]
        strange = [name for name in self.attention if name not in ours]
        if strange:
            raise ValueError(f"attention = [{strange[0]!r}] is no system pretrained here: {ours}")
        for one in self.protocols:
            if strange := [sensors for sensors in one.sensors if sensors not in self.sensors]:
                raise ValueError(
                    f"protocol {one.name!r} has sensors {strange[0]!r}, the table has "
                    f"{list(self.sensors)}"
                )
        for system in self.systems:
            for protocol, scores in system.paper.items():
                if protocol not in protocols or len(scores) != len(self.sensors):
                    raise ValueError(
                        f"paper scores of {system.name}, {protocol}: expected a protocol of "
                        f"{sorted(protocols)} and {len(self.sensors)} scores"
                    )
        run_on = {one.name: one.sensors or self.sensors for one in self.protocols}
        for question in self.questions:
            for row, sensors in (question.row, question.other):
                if row not in rows or sensors not in run_on.get(question.protocol, ()):
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


def slug(text: str) -> str:
    """A file name for a row, a protocol or sensors: `XAE&D, 1 %` becomes `xae-d-1`."""
    words = "".join(char.lower() if char.isalnum() else " " for char in text).split()
    return "-".join(words)


def weights_key(system: System) -> str:
    """What `--weights` calls it: the kind of a third-party checkpoint, the slug of one of ours."""
    return system.weights or slug(system.name)


def pretraining_folder(out: Path, system: System, seed: int) -> Path:
    return out / "pretraining" / slug(system.name) / f"seed-{seed}"


def result_folder(out: Path, protocol: Protocol, row: str, sensors: str, seed: int) -> Path:
    return out / "runs" / slug(protocol.name) / slug(row) / slug(sensors) / f"seed-{seed}"
