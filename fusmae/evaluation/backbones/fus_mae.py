"""Fus-MAE of an exported folder: the rows XAD and XAE&D, and every other `model.fusion`."""

from fusmae.evaluation.backbones.backbone import Backbone
from fusmae.model import FusMAEEncoder, load_encoder
from fusmae.model.hub import fetch_folder

_SKIPPED = "skipped, with its cross-attention; the rows zero_filled show it images of zeros"
_FILLED = "zeros after normalisation: its channels are in every token"


def open_fus_mae(source: str) -> Backbone:
    """An export, `RUN/encoder` or `hf://owner/name`.

    Raises:
        ValueError: it cannot be had, or is broken.
    """
    folder = fetch_folder(source)
    encoder, card = load_encoder(folder)
    return Backbone(
        name="fus-mae",
        label=f"Fus-MAE, {card.model.fusion}",
        card=card,
        poolings=("mean_tokens", "global_token"),
        normalisation="mean 0, deviation 1 of each band",
        absent_sensor=_SKIPPED if encoder.skips_absent else _FILLED,
        files=tuple(path for path in sorted(folder.iterdir()) if path.is_file()),
        pretrained=encoder,
        make_random=lambda: FusMAEEncoder(card.model, card.channels),
        tuned=card.tuned_on,
    )
