"""The systems of the tables through one interface: ours, and published models to compare with."""

from fusmae.evaluation.backbones.backbone import Backbone
from fusmae.evaluation.backbones.opening import (
    PUBLISHED,
    BackboneSpec,
    open_backbone,
    weight_files,
)

__all__ = ["PUBLISHED", "Backbone", "BackboneSpec", "open_backbone", "weight_files"]
