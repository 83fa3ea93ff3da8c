"""The end of a run: its newest checkpoint's encoder as a folder that loads in one line."""

import torch

from fusmae.data import Preprocess
from fusmae.model import EncoderCard, FusMAE, save_encoder
from fusmae.training.checkpoint import find_checkpoint, read_weights
from fusmae.training.run import Run


def export_encoder(run: Run) -> None:
    """Write RUN/encoder on the CPU, whatever stage, precision or world size trained it.

    Raises:
        ValueError: the run has no whole checkpoint.
    """
    checkpoint = find_checkpoint(run.out)
    if checkpoint is None:
        raise ValueError(f"{run.out} has no whole checkpoint to export")
    recipe = run.recipe
    model = FusMAE(recipe.model, run.channels)
    weights = read_weights(checkpoint)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    data = recipe.data
    statistics = Preprocess(run.manifest, data.bands, recipe.model.image_px, data.resample)
    card = EncoderCard(
        model=recipe.model,
        bands=data.bands,
        split=data.split,
        split_rule=run.manifest.options.get("plan", {}).get("split") or "",
        manifest_sha256=(run.dataset["manifest_sha256"],),
        mean=statistics.mean,
        std=statistics.std,
        resample=data.resample,
        dataset=run.manifest.name,
        simulated=run.manifest.simulated,
        licence=run.manifest.source.get("licence", "not stated"),
    )
    save_encoder(model.encoder, card, run.encoder)
