"""A pretraining run before it starts: its files read, checked and fitted together."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusmae.config import PretrainRecipe, as_table, build, load_recipe
from fusmae.data import locate_dataset, location_of
from fusmae.data.mixture import cut_quotas
from fusmae.model.budget import count_flops
from fusmae.training.checkpoint import newest_state
from fusmae.training.ds_config import EnginePlan, plan_engine, read_ds_config
from fusmae.training.engine import check_compile
from fusmae.training.ranks import Ranks, ranks_from_environment
from fusmae.training.record import describe_datasets
from fusmae.training.schedule import Schedule, schedule_for, steps_of
from fusmae.training.source import Source, read_sources
from fusmae.training.trackers import check_trackers

# The recipe's sections that a run may not change on its way; [run] may.
_FIXED = ("seed", "model", "data", "optim")


@dataclass(frozen=True)
class Run:
    """What a command line and the files it names come to.

    `sources` are the datasets, usually one; `dataset` is what `run.json` says of them.
    """

    recipe: PretrainRecipe
    sources: tuple[Source, ...]
    out: Path
    dataset: dict[str, Any]
    plan: EnginePlan
    schedule: Schedule
    ranks: Ranks

    @property
    def encoder(self) -> Path:
        """The folder of the exported encoder."""
        return self.out / "encoder"

    def steps_of(self, epochs: float) -> int:
        """The steps of that many epochs of the first dataset."""
        return steps_of(epochs, self.sources[0].num_samples, self.sources[0].quota)

    def is_due(self, every_steps: int, step: int) -> bool:
        """Whether what is made every so many steps, 0 for never, and at the end, is due."""
        return every_steps > 0 and (step % every_steps == 0 or step == self.schedule.total_steps)

    def is_save_due(self, step: int) -> bool:
        """Whether a checkpoint is due by its step: one to be kept for good is saved, too."""
        config = self.recipe.run
        steps = (config.save_every_steps, config.keep_every_steps)
        return any(self.is_due(every, step) for every in steps)

    def flops_of(self, sensors: Sequence[str]) -> int:
        """One rank's operations in a step of these sensors."""
        channels = {sensor: self.channels[sensor] for sensor in sensors}
        share = self.recipe.optim.global_batch // self.ranks.world_size
        return share * count_flops(self.recipe.model, channels).training

    @property
    def channels(self) -> dict[str, int]:
        """The model's channel count by sensor."""
        return self.recipe.data.channels


def read_run(
    recipe_path: Path,
    locations: Sequence[str],
    cache: Path,
    out: Path,
    ds_path: Path,
    overrides: tuple[str, ...],
) -> Run:
    """Read and check every file; no other rank is waited for, and only `cache` is written.

    Args:
        recipe_path: a TOML file.
        locations: folders or URLs of datasets, one for each source of the recipe.
        cache: where a dataset at a URL is cached.
        out: the folder of the run.
        ds_path: a DeepSpeed json.
        overrides: `a.b=value`, applied to the recipe.

    Raises:
        ValueError: a file is missing or wrong, or they do not fit together.
    """
    recipe = load_recipe(PretrainRecipe, recipe_path, overrides)
    sources = read_sources(recipe, [locate_dataset(location, cache) for location in locations])
    first = sources[0]
    if recipe.run.validate_every_steps and recipe.run.val_split not in first.manifest.splits:
        raise ValueError(
            f"{location_of(first.path)} has no split run.val_split = {recipe.run.val_split!r}, it "
            f"has {list(first.manifest.splits)}; set another, or run.validate_every_steps = 0"
        )
    check_trackers(recipe.run)
    ranks = ranks_from_environment()
    try:
        plan = plan_engine(read_ds_config(ds_path), recipe.optim, ranks.world_size)
        cut_quotas([source.quota for source in sources], ranks.world_size, plan.micro_batch)
    except ValueError as error:
        raise ValueError(f"{ds_path}: {error}") from None
    if recipe.model.sensor_dropout and plan.offload:
        raise ValueError(
            f"{ds_path}: under offload DeepSpeed repeats the last gradients of a sensor that is "
            "left out; set model.sensor_dropout = 0, or no offload_optimizer"
        )
    if recipe.run.compile:
        check_compile(plan)
    # An epoch is the first dataset's.
    schedule = schedule_for(replace(recipe.optim, global_batch=first.quota), first.num_samples)
    return Run(
        recipe,
        sources,
        out,
        describe_datasets([source.path for source in sources]),
        plan,
        schedule,
        ranks,
    )


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
    original = build(PretrainRecipe, state["recipe"])
    old, new = (json.loads(json.dumps(as_table(recipe))) for recipe in (original, run.recipe))
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
    first, others = state["dataset"], state["dataset"].get("mixed_with", [])
    for started, source in zip([first, *others], run.sources, strict=True):
        if started["manifest_sha256"] != source.manifest_sha256:
            raise ValueError(
                f"{run.out} was started with the dataset {started['path']}, "
                f"and {location_of(source.path)} is not the same; choose another folder for --out"
            )
