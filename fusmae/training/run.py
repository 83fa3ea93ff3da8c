"""A pretraining run before it starts: its files read, checked and fitted together."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusmae.config import PretrainRecipe, as_table, build, load_recipe
from fusmae.manifest import Manifest, read_manifest
from fusmae.training.checkpoint import newest_state
from fusmae.training.ds_config import EnginePlan, plan_engine, read_ds_config
from fusmae.training.ranks import Ranks, ranks_from_environment
from fusmae.training.record import describe_dataset
from fusmae.training.schedule import Schedule, schedule_for

# The recipe's sections that a run may not change on its way; [run] may.
_FIXED = ("seed", "model", "data", "optim")


@dataclass(frozen=True)
class Run:
    """What a command line and the files it names come to.

    `dataset` is what `run.json` says of the data.
    """

    recipe: PretrainRecipe
    data: Path
    out: Path
    manifest: Manifest
    dataset: dict[str, Any]
    plan: EnginePlan
    schedule: Schedule
    ranks: Ranks

    @property
    def encoder(self) -> Path:
        """The folder of the exported encoder."""
        return self.out / "encoder"

    @property
    def channels(self) -> dict[str, int]:
        """The model's channel count by sensor."""
        return {sensor: len(bands) for sensor, bands in self.recipe.data.bands.items()}


def read_run(
    recipe_path: Path, data: Path, out: Path, ds_path: Path, overrides: tuple[str, ...]
) -> Run:
    """Read and check every file; nothing is written, and no other rank is waited for.

    Args:
        recipe_path: a TOML file.
        data: a dataset of `fusmae-ingest`.
        out: the folder of the run.
        ds_path: a DeepSpeed json.
        overrides: `a.b=value`, applied to the recipe.

    Raises:
        ValueError: a file is missing or wrong, or they do not fit together.
    """
    recipe = load_recipe(PretrainRecipe, recipe_path, overrides)
    manifest = read_manifest(data)
    for sensor, bands in recipe.data.bands.items():
        for band in bands:
            manifest.find_band(sensor, band)
    ranks = ranks_from_environment()
    try:
        plan = plan_engine(read_ds_config(ds_path), recipe.optim, ranks.world_size)
    except ValueError as error:
        raise ValueError(f"{ds_path}: {error}") from None
    schedule = schedule_for(recipe.optim, manifest.split(recipe.data.split).num_samples)
    return Run(recipe, data, out, manifest, describe_dataset(data), plan, schedule, ranks)


def check_unused(out: Path) -> None:
    """Raises ValueError if the folder of a new run holds anything."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(
            f"{out} is not empty: continue its run with --resume auto, "
            "or choose another folder for --out"
        )


def is_complete(run: Run) -> bool:
    """Whether every step is made and the encoder exported.

    Raises:
        ValueError: as `check_same_run`, of the run that is there.
    """
    state = newest_state(run.out)
    if state is None or not (run.encoder / "config.json").exists():
        return False
    check_same_run(run, state)
    return bool(state["step"] == run.schedule.total_steps)


def check_same_run(run: Run, state: dict[str, Any]) -> None:
    """Compare a checkpoint's state with this run.

    Raises:
        ValueError: the recipe has other numbers, or the dataset is another one.
    """
    # A checkpoint of an earlier release lacks the fields that are new since; they had no effect.
    started = build(PretrainRecipe, state["recipe"])
    old, new = (json.loads(json.dumps(as_table(recipe))) for recipe in (started, run.recipe))
    for section in _FIXED:
        if old[section] == new[section]:
            continue
        key, before, after = section, old[section], new[section]
        if isinstance(after, dict):
            name = next(name for name in after if after[name] != before.get(name))
            key, before, after = f"{section}.{name}", before.get(name), after[name]
        raise ValueError(
            f"{run.out} was started with {key} = {before}, the recipe now says {after}; "
            "go back to the old value, or choose another folder for --out"
        )
    if state["dataset"]["manifest_sha256"] != run.dataset["manifest_sha256"]:
        raise ValueError(
            f"{run.out} was started with the dataset {state['dataset']['path']}, "
            f"and {run.data} is not the same; choose another folder for --out"
        )
