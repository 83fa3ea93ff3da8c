"""The loss on samples that a run does not train on: the same samples and masks every time."""

from collections.abc import Callable, Sequence

import torch

from fusmae.config import PretrainRecipe
from fusmae.data import EvalLoader, SplitReader
from fusmae.data.subset import evaluated_ids
from fusmae.model import draw_masks
from fusmae.training.engine import Engine
from fusmae.training.ranks import Ranks, on_this_rank
from fusmae.training.source import Source, make_preprocess
from fusmae.training.trackers import Trackers


class Validation:
    """The first `run.val_samples` of `run.val_split` of a run's first dataset.

    Samples that its subset excludes are left out; its fraction and keys are of training alone.

    Masks are those of the recipe's seed at positions 0, 1, ...; no sensor is left out.
    """

    def __init__(
        self,
        recipe: PretrainRecipe,
        sources: Sequence[Source],
        ranks: Ranks,
        micro_batch: int,
        device: torch.device,
    ) -> None:
        """Raises ValueError if the dataset has no such split or cannot tell what is excluded."""
        source, split = sources[0], recipe.run.val_split
        ids = evaluated_ids(SplitReader(source.path, split), source.data.subset)
        self._recipe = recipe
        self._rank = ranks.rank
        self._loader = EvalLoader(
            source.path,
            split,
            source.data,
            micro_batch,
            rank=ranks.rank,
            world_size=ranks.world_size,
            sample_ids=ids[: recipe.run.val_samples],
            pin=device.type == "cuda",
            device=device,
        )
        sizes_px = recipe.model.sizes_px(recipe.data.bands)
        self._preprocess = make_preprocess([source], sizes_px).to(device)

    def log(
        self,
        engine: Engine,
        step: int,
        stop: Callable[[], bool],
        metrics: Trackers | None,
        say: Callable[[str], None],
    ) -> bool:
        """Record the losses, if this rank does; False if asked to stop meanwhile.

        All ranks together.

        Raises:
            RankError: this rank cannot read its samples.
        """
        with on_this_rank(self._rank):
            losses = self.losses(engine, stop)
        if losses is None:
            return False
        if metrics:
            metrics.write({"step": step, "val": losses})
        numbers = "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        say(f"step {step}  on val: {numbers}")
        return True

    def losses(self, engine: Engine, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Each sensor's mean loss over the samples, and their sum under "loss".

        None if any rank is asked to `stop` before the last micro-batch.

        Called by all ranks together; every rank runs the model equally often. Of a class map it
        is the mean of the micro-batches' losses, which have more or fewer pixels with a class.
        """
        sensors = list(self._recipe.data.bands)
        names = [*sensors, "loss"]
        sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=engine.device)
        for batch in self._loader:
            if engine.is_any(stop()):
                return None
            count = int(batch.weights.sum())  # the others pad a short rank and come last
            batch = batch.rows(0, count or len(batch))
            images = self._preprocess([batch])
            masks = draw_masks(self._recipe.model, sensors, self._recipe.seed, batch.positions)
            losses = engine.losses(images, masks)
            values = torch.stack(
                [*(losses[name] for name in names), torch.ones_like(losses["loss"])]
            )
            sums += count * values.double()
        *totals, num_samples = engine.sum_over_ranks(list(sums))
        return {name: total / num_samples for name, total in zip(names, totals, strict=True)}
