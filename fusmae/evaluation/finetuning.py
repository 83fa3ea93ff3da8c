"""Fine-tuning: the whole network trained on labels, rate chosen on val, test read once.

The protocol of Fus-MAE (IGARSS 2024, sec. 4): 10 epochs, MultiLabelSoftMarginLoss, AdamW. Batch,
rate, warm-up and decays are OUR choices; the paper prints none.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fusmae.config import DataConfig
from fusmae.data import Batch, EvalLoader
from fusmae.evaluation.labelled import LabelledSplit
from fusmae.evaluation.layer_decay import layer_groups
from fusmae.evaluation.protocols import epoch_batches
from fusmae.evaluation.recipes import FinetuneRecipe
from fusmae.evaluation.reliance import exchanged_batches
from fusmae.evaluation.setting import Setting
from fusmae.model import draw_sensors
from fusmae.model.classifier import FusMAEClassifier
from fusmae.training.schedule import Schedule

# B batch, N samples, C classes.


@dataclass(frozen=True)
class Finetuning:
    """What stays the same for every rate of the grid."""

    setting: Setting
    recipe: FinetuneRecipe

    @property
    def device(self) -> torch.device:
        return self.setting.device

    def images(
        self, model: FusMAEClassifier, batch: Batch, sensors: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """The model's images of these sensors, None for all; the others are absent."""
        images = self.setting.preprocess(batch.arrays)
        if sensors is not None:
            images = {sensor: images[sensor] for sensor in sensors}
        # Stacked channels cannot be skipped.
        if self.recipe.absent == "zero-filled" or not model.encoder.skips_absent:
            return model.encoder.fill_absent(images)
        return images

    def batches(
        self, split: LabelledSplit, rows: Tensor, exchanged: str | None = None
    ) -> Iterator[tuple[Batch, Tensor]]:
        """The samples of these rows of `split`, in order, each batch with its labels.

        `exchanged` is a sensor whose images are other samples'.
        """
        ids, data = split.ids[rows], self.setting.data
        batches: Iterable[Batch]
        title = f"{split.reader.split}, {len(rows):,} samples"
        if exchanged is None:
            batches = self._open(split, ids, data)
        else:
            opener = partial(self._open, split)
            batches = exchanged_batches(opener, ids, data, exchanged, self.recipe.seed)
            title += f", {exchanged} exchanged"
        total, console = -(-len(ids) // self.recipe.micro_batch), Console(stderr=True)
        in_a_log = not console.is_terminal  # which a bar fills with blank lines
        for batch in track(
            batches, title, total=total, console=console, transient=True, disable=in_a_log
        ):
            # `ids` ascend, so that the label of a sample is found by its id.
            places = torch.searchsorted(split.ids, batch.sample_ids.cpu())
            yield batch, split.labels[places].to(self.device)

    def _open(self, split: LabelledSplit, ids: Tensor, data: DataConfig) -> EvalLoader:
        return EvalLoader(
            self.setting.dataset,
            split.reader.split,
            data,
            self.recipe.micro_batch,
            sample_ids=ids.numpy(),
            pin=self.device.type == "cuda",
            device=self.device,
        )

    def autocast(self) -> torch.autocast:
        """bf16 on a GPU, float32 on a CPU; entered anew in each step (docs/LOG.md)."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


@dataclass(frozen=True)
class Finetuned:
    """The model of the best rate, and the val score of every rate; None for one that diverged."""

    model: FusMAEClassifier
    lr: float
    val_scores: dict[float, float | None]


def train_classifier(
    run: Finetuning, model: FusMAEClassifier, train: LabelledSplit, lr: float
) -> None:
    """Train `model` in place with the peak rate `lr`, a pure function of its arguments.

    Every sample is used once an epoch; the last batch of an epoch may be smaller.
    """
    recipe = run.recipe
    groups = layer_groups(model, recipe.weight_decay, recipe.layer_decay)
    optimiser = torch.optim.AdamW(groups, lr=lr, fused=True)
    schedule = _schedule(recipe, len(train.ids), lr)
    generator = torch.Generator().manual_seed(recipe.seed)
    model.train()
    sensors = list(run.setting.data.bands)
    step = 0
    console = Console(stderr=True, soft_wrap=True)
    for epoch in range(1, recipe.epochs + 1):
        total_loss = torch.zeros((), device=run.device)
        order = torch.cat(list(epoch_batches(len(train.ids), recipe.batch, generator)))
        seen = 0
        for batch, labels in run.batches(train, order):
            # Samples of this step: micro-batches add up to the mean over all of them.
            whole = min(recipe.batch, len(order) - seen // recipe.batch * recipe.batch)
            # The same for all micro-batches of a step.
            shown = draw_sensors(sensors, recipe.sensor_dropout, recipe.seed, step)
            with run.autocast():
                scores = model(run.images(model, batch, shown)).float()
            loss = run.setting.task.loss(scores, labels) * (len(labels) / whole)
            loss.backward()  # type: ignore[no-untyped-call]
            total_loss += loss.detach() * whole
            seen += len(labels)
            if seen % recipe.batch and seen < len(order):
                continue
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(step) * group["lr_scale"]
            if recipe.clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
        mean_loss = total_loss.item() / len(order)
        console.print(
            f"rate {lr:g}  epoch {epoch}/{recipe.epochs}  loss {mean_loss:.4f}", highlight=False
        )
    assert step == schedule.total_steps


def _schedule(recipe: FinetuneRecipe, num_samples: int, lr: float) -> Schedule:
    """Linear warm-up from 0 to `lr`, then half a cosine to 0."""
    steps = math.ceil(num_samples / recipe.batch)
    warmup_steps = math.ceil(recipe.warmup_epochs * steps)
    return Schedule(recipe.epochs * steps, warmup_steps, lr, warmup_lr=0.0, min_lr=0.0)


@torch.no_grad()
def predict(
    run: Finetuning, model: FusMAEClassifier, split: LabelledSplit, exchanged: str | None = None
) -> Tensor:
    """Scores (N, C) float32 of a split's samples, in the order of its ids, on the CPU.

    `exchanged` is a sensor whose images are other samples'.
    """
    model.eval()
    parts = []
    for batch, _ in run.batches(split, torch.arange(len(split.ids)), exchanged):
        with run.autocast():
            parts.append(model(run.images(model, batch)).float().cpu())
    return torch.cat(parts)


def finetune(run: Finetuning, start: FusMAEClassifier) -> Finetuned:
    """The model, trained from `start` with each rate of the grid, that is best on `val`.

    Of equal rates the one named first wins. `start` is left as it is.

    Raises:
        ValueError: with every rate the scores were not finite.
    """
    train, val, _ = run.setting.splits
    task = run.setting.task
    best: tuple[float, float, FusMAEClassifier] | None = None
    val_scores: dict[float, float | None] = {}
    for lr in run.recipe.lrs:
        model = copy.deepcopy(start).to(run.device)
        train_classifier(run, model, train, lr)
        scores = predict(run, model, val)
        if not torch.isfinite(scores).all():
            val_scores[lr] = None
            continue
        value: float = task.measure(scores, val.labels, half=0.0)[task.chosen_by]
        val_scores[lr] = value
        if best is None or value > best[0]:
            best = value, lr, model.cpu()
    if best is None:
        raise ValueError(f"the scores were not finite with any rate of {list(val_scores)}: lower")
    _, lr, model = best
    return Finetuned(model.to(run.device), lr, val_scores)
