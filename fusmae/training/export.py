"""The end of a run: its newest checkpoint's encoder as a folder that loads in one line."""

import torch

from fusmae.data import Preprocess
from fusmae.model import EncoderCard, FusMAE, save_encoder
from fusmae.training.checkpoint import find_checkpoint, read_weights
from fusmae.training.run import Run


def export_encoder(run: Run) -> None:
    """Write RUN/encoder on the CPU, whatever stage, precision or world size trained it.

    Of a mixture, the card has the statistics of the first dataset; it names all of them.

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
    manifests = [source.manifest for source in run.sources]
    licences = [manifest.source.get("licence", "not stated") for manifest in manifests]
    sizes_px = recipe.model.sizes_px(data.bands)
    statistics = Preprocess(manifests[0], data.bands, sizes_px, data.resample)
    card = EncoderCard(
        model=recipe.model,
        bands=data.bands,
        split=data.split,
        split_rule=" + ".join(m.options.get("plan", {}).get("split") or "" for m in manifests),
        manifest_sha256=tuple(source.manifest_sha256 for source in run.sources),
        mean=statistics.mean,
        std=statistics.std,
        resample=data.resample,
        dataset=" + ".join(manifest.name for manifest in manifests),
        simulated=any(manifest.simulated for manifest in manifests),
        licence="; ".join(dict.fromkeys(licences)),
    )
    save_encoder(model.encoder, card, run.encoder)
