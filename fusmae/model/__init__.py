"""Fus-MAE: patches, masking, cross-attention encoder and decoder, losses (torch only)."""

from fusmae.model.encoder import EncoderOutput, FusMAEEncoder
from fusmae.model.fusmae import FusMAE
from fusmae.model.masking import Masks, draw_masks, draw_sensors
from fusmae.model.pretrained import EncoderCard, load_encoder, save_encoder

__all__ = [
    "EncoderCard",
    "EncoderOutput",
    "FusMAE",
    "FusMAEEncoder",
    "Masks",
    "draw_masks",
    "draw_sensors",
    "load_encoder",
    "save_encoder",
]
