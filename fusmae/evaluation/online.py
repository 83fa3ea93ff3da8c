"""What a run looks like while it trains: a picture of reconstructions, and a quick kNN score.

Both are made of a checkpoint's weights on one rank, so any ZeRO stage and precision has them.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusmae.config import PretrainRecipe
from fusmae.data import EvalLoader, SplitReader
from fusmae.data.order import Ids
from fusmae.data.subset import evaluated_ids
from fusmae.evaluation.features import encoder_features
from fusmae.evaluation.knn import knn_scores
from fusmae.evaluation.labelled import smallest_label_set
from fusmae.evaluation.metrics import average_precision
from fusmae.evaluation.protocols import fit_standardiser
from fusmae.evaluation.reconstruction import Pretrained, preprocess_of, reconstruct
from fusmae.labels import multi_hot
from fusmae.manifest import Manifest
from fusmae.model import FusMAE
from fusmae.training.metrics import METRICS, has_line

# DINO's, as in knn.py.
_NEIGHBOURS, _TEMPERATURE = 20, 0.07
_BATCH = 64

PICTURES = "pictures"

Weights = Mapping[str, Tensor]
Write = Callable[[dict[str, Any]], None]
Say = Callable[[str], None]
Stop = Callable[[], bool]


class _StopAsked(Exception):
    """The run is asked to stop."""


@dataclass(frozen=True)
class Online:
    """Looks at a run's weights with the samples of its first dataset.

    `picture_steps` and `probe_steps` are the steps between two looks, 0 for none.
    """

    recipe: PretrainRecipe
    dataset: Path
    manifest: Manifest
    out: Path
    device: torch.device
    picture_steps: int
    probe_steps: int

    def check(self) -> None:
        """Raises ValueError where the dataset, or what is installed, cannot do what is asked."""
        config = self.recipe.run
        if self.picture_steps and importlib.util.find_spec("matplotlib") is None:
            raise ValueError(
                "run.picture_every_epochs needs the package matplotlib, which is not installed: "
                "pip install 'fusmae[report]'"
            )
        if not (self.picture_steps or self.probe_steps):
            return
        if config.val_split not in self.manifest.splits:
            raise ValueError(
                f"pictures and probes need the split run.val_split = {config.val_split!r} of "
                f"{self.dataset}, which has {list(self.manifest.splits)}"
            )
        if self.probe_steps and not self.manifest.label_sets:
            raise ValueError(
                f"{self.dataset} has no labels for a probe: set run.probe_every_epochs = 0"
            )
        if self.probe_steps and (known := len(self._ids(self.recipe.data.split))) < _NEIGHBOURS:
            raise ValueError(
                f"a probe needs {_NEIGHBOURS} labelled samples, and has {known}: "
                "raise run.probe_samples"
            )

    def is_due(self, step: int) -> bool:
        """Whether the weights after `step` updates are to be looked at; the same on all ranks."""
        return any(every and step % every == 0 for every in (self.picture_steps, self.probe_steps))

    def look(
        self,
        weights: Weights,
        step: int,
        stop: Stop,
        write: Write,
        say: Say,
        missing_only: bool = False,
    ) -> None:
        """Make what is due, on one rank, or what of it is missing, until the run has to stop.

        Whatever goes wrong is told, and ends no run.
        """
        looks = {
            "kNN score": (self.probe_steps, self._log_probe, self._is_probed),
            "picture": (self.picture_steps, self._log_picture, self._is_pictured),
        }
        for name, (steps, make, is_made) in looks.items():
            if not steps or step % steps or (missing_only and is_made(step)):
                continue
            try:
                make(weights, step, stop, write, say)
            except _StopAsked:
                return
            # A full disk, a shard that is gone, a GPU without room, or what matplotlib raises.
            except Exception as error:
                reason = str(error).partition("\n")[0] or type(error).__name__
                say(f"warning: step {step} has no {name}: {reason}")

    def _is_probed(self, step: int) -> bool:
        return has_line(self.out / METRICS, step, "knn")

    def _log_probe(self, weights: Weights, step: int, stop: Stop, write: Write, say: Say) -> None:
        score = self.probe(weights, stop)
        write({"step": step, "knn": {"macro_map": score}})
        say(f"step {step}  kNN on {self.recipe.run.val_split}: {100 * score:.1f} % macro mAP")

    def _is_pictured(self, step: int) -> bool:
        return self._picture_path(step).exists()

    def _log_picture(self, weights: Weights, step: int, stop: Stop, write: Write, say: Say) -> None:
        if stop():
            raise _StopAsked
        say(f"step {step}  picture: {self.picture(weights, step)}")

    def _picture_path(self, step: int) -> Path:
        return self.out / PICTURES / f"step-{step:08d}.png"

    def picture(self, weights: Weights, step: int) -> Path:
        """Write OUT/pictures/step-N.png, the first sample of the val split reconstructed."""
        from fusmae.evaluation.pictures import sample_figure  # needs matplotlib

        recipe = self.recipe
        pretrained = Pretrained(self._model(weights), recipe, step)
        split, bands = recipe.run.val_split, recipe.data.bands
        (part,) = reconstruct(pretrained, self.dataset, split, 1)
        path = self._picture_path(step)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(sample_figure(part, 0, bands, recipe.model.normalise_target))
        return path

    def probe(self, weights: Weights, stop: Stop) -> float:
        """Macro mAP of the val split's first samples, to whose labels the neighbours among the
        train split's first ones vote, in [0, 1]; of the smallest label set, and without samples
        that the recipe excludes.

        Samples stand in a random order in a split, so the first ones are a fair draw; their number
        is small, and the score is to be compared with others of this run alone.
        """
        label_set = smallest_label_set(self.manifest)
        classes = self.manifest.label_sets[label_set]
        model = self._model(weights)
        splits = (self.recipe.data.split, self.recipe.run.val_split)
        (known, votes), (queries, truth) = (
            (self._features(model, split, stop), self._labels(split, label_set)) for split in splits
        )
        standardise = fit_standardiser(known)
        scores = knn_scores(
            standardise(known), votes, standardise(queries), _NEIGHBOURS, _TEMPERATURE
        )
        return average_precision(scores, truth, classes).macro

    def _model(self, weights: Weights) -> FusMAE:
        with torch.random.fork_rng(devices=[]):  # its initial weights are drawn
            model = FusMAE(self.recipe.model, self.recipe.data.channels).eval()
        model.load_state_dict(dict(weights))
        return model

    def _ids(self, split: str) -> Ids:
        ids = evaluated_ids(SplitReader(self.dataset, split), self.recipe.sources[0].subset)
        return ids[: self.recipe.run.probe_samples]

    def _features(self, model: FusMAE, split: str, stop: Stop) -> Tensor:
        """(N, D) on the CPU, nothing masked."""
        extract = encoder_features(
            model.encoder, preprocess_of(self.recipe, self.dataset), self.device
        )
        batches = EvalLoader(
            self.dataset,
            split,
            self.recipe.data,
            _BATCH,
            sample_ids=self._ids(split),
            device=self.device,
        )
        features = []
        for batch in batches:
            if stop():
                raise _StopAsked
            features.append(extract(batch)["mean_tokens"].float().cpu())
        return torch.cat(features)

    def _labels(self, split: str, label_set: str) -> Tensor:
        labels = SplitReader(self.dataset, split).labels(label_set)
        names = [labels[i] for i in self._ids(split).tolist()]
        return torch.from_numpy(multi_hot(names, self.manifest.label_sets[label_set])).float()
