"""Fus-MAE in timm's registry: `import fusmae.timm_models`, then `timm.create_model("fusmae_base")`.

The models behave as timm's vision transformers do: normalised images in, `forward_features`,
`forward_head`, `reset_classifier`, `forward_intermediates` and `features_only`.
"""

# B batch, C channels of all sensors, H x W pixels, N tokens of all sensors, D width
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusmae.config import ModelConfig
from fusmae.model.attention import layer_norm
from fusmae.model.encoder import FusMAEEncoder
from fusmae.model.features import PretrainedEncoder, load_encoder
from fusmae.model.levels import run_with_levels
from fusmae.model.pretrained import EncoderCard
from fusmae.torchvision_repair import repair_torchvision

repair_torchvision()

from timm.models import build_model_with_cfg, register_model  # noqa: E402
from timm.models._features import feature_take_indices  # noqa: E402

__all__ = ["FusMAEModel"]

# Fus-MAE's case: S1 with VV and VH, S2 with the 12 bands of level 2A.
_CHANNELS = {"s1": 2, "s2": 12}


class FusMAEModel(nn.Module):
    """Encoder, pooling, LayerNorm and a linear layer over images (B, C, H, W).

    The channels are those of the sensors one after another, in the order of the encoder. The
    global token is the one prefix token, first as timm has it.
    """

    num_prefix_tokens = 1

    def __init__(
        self, encoder: FusMAEEncoder, num_classes: int, global_pool: str, drop_rate: float
    ) -> None:
        """Raises ValueError if `global_pool` is not avg, token or empty."""
        super().__init__()
        width = encoder.config.width
        self.encoder = encoder
        self.num_features = self.head_hidden_size = self.embed_dim = width
        self.num_classes = num_classes
        _check_pool(global_pool)
        self.global_pool = global_pool
        self.fc_norm = layer_norm(width)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = _head(width, num_classes)
        patch_px, depth = encoder.config.patch_px, encoder.config.depth
        self.feature_info = [
            {"module": f"level{i}", "num_chs": len(encoder.members) * width, "reduction": patch_px}
            for i in range(depth)
        ]

    def images(self, x: Tensor) -> dict[str, Tensor]:
        """Stacked images (B, C, H, W) by sensor.

        Raises:
            ValueError: not the channels that the model has.
        """
        channels = self.encoder.channels
        if x.ndim != 4 or x.shape[1] != sum(channels.values()):
            raise ValueError(f"images are {tuple(x.shape)}, expected the channels of {channels}")
        parts = torch.split(x, list(channels.values()), dim=1)
        return dict(zip(channels, parts, strict=True))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 1 + N, D): the global token, then the tokens of the sensors in their order."""
        output = self.encoder(self.images(x))
        return torch.cat([output.global_token[:, None], *output.tokens.values()], dim=1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, 1 + N, D) to pooled features (B, D), or to scores (B, classes)."""
        if self.global_pool:
            x = x[:, 0] if self.global_pool == "token" else x[:, 1:].mean(dim=1)
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps (B, sensors * D, h, w) after blocks, the sensors' side by side; timm's contract.

        Raises:
            ValueError: another format than NCHW, or `norm`, as the encoder ends without one.
        """
        if output_fmt != "NCHW" or norm:
            raise ValueError(f"output_fmt = {output_fmt!r}, norm = {norm}: NCHW without norm only")
        taken, _ = feature_take_indices(self.encoder.config.depth, indices)
        levels, output = run_with_levels(self.encoder, self.images(x), [i + 1 for i in taken])
        maps = [torch.cat(list(level.values()), dim=1) for level in levels]
        if intermediates_only:
            return maps
        return torch.cat([output.global_token[:, None], *output.tokens.values()], dim=1), maps

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Another head; with 0 classes the pooled features come out."""
        if global_pool is not None:
            _check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = _head(self.num_features, num_classes)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("global_token")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for timm's layer-wise rate decay: embeddings, XAttnEncoder, then the blocks."""
        return {
            "stem": r"^encoder\.patch_embed|global_token",
            "blocks": [
                (r"^encoder\.xattn\.", (-1,)),
                (r"^encoder\.(?:late\.\w+\.)?blocks\.(\d+)", None),
                (r"^fc_norm", (99999,)),
            ],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:
            raise ValueError("Fus-MAE has no gradient checkpointing")


def _check_pool(global_pool: str) -> None:
    if global_pool not in ("", "avg", "token"):
        raise ValueError(f"global_pool = {global_pool!r} must be avg, token or empty")


def _head(width: int, num_classes: int) -> nn.Module:
    return nn.Linear(width, num_classes) if num_classes else nn.Identity()


def _create(preset: str, pretrained: bool, **options: Any) -> nn.Module:
    """A model of timm's making; options as in `fusmae_base`."""
    source: str | Path | None = options.pop("encoder", None)
    if pretrained and source is None:
        raise ValueError(
            f"fusmae_{preset} has no weights of its own: give encoder='RUN/encoder' or "
            "encoder='hf://owner/name'"
        )
    if source is None:
        config = _config(preset, options)
        encoder = FusMAEEncoder(config, options.pop("channels", None) or _CHANNELS)
        return build_model(f"fusmae_{preset}", encoder, None, options)
    loaded = load_encoder(source)
    _check_loaded(loaded, preset, options)
    return build_model(f"fusmae_{preset}", loaded.encoder, loaded.card, options)


def build_model(
    name: str, encoder: FusMAEEncoder, card: EncoderCard | None, options: dict[str, Any]
) -> nn.Module:
    """An encoder as the timm model `name`; `options` as in `fusmae_base`, less the encoder's shape.

    Raises:
        ValueError: one stack of channels cannot hold the sensors.
    """
    config = encoder.config
    if config.sensors:
        raise ValueError(
            f"sensors {', '.join(config.sensors)} of this encoder have tokens of their own size or "
            "are class maps, which one stack of channels cannot hold: use fusmae.load_encoder"
        )
    options.setdefault("global_pool", "avg")
    # timm would cut an eighth of an image away.
    told: dict[str, Any] = {
        "architecture": name,
        "num_classes": 0,
        "input_size": (sum(encoder.channels.values()), config.image_px, config.image_px),
        "crop_pct": 1.0,
    }
    if card:
        told["mean"] = in_channel_order(card, card.mean)
        told["std"] = in_channel_order(card, card.std)
    told.update(options.pop("pretrained_cfg", None) or {})
    built: nn.Module = build_model_with_cfg(
        _maker(encoder),
        name,
        pretrained=False,
        pretrained_cfg=told,
        feature_cfg={"feature_cls": "getter", "out_indices": 4},
        **options,
    )
    return built


def in_channel_order(card: EncoderCard, by_sensor: Mapping[str, Sequence[Any]]) -> tuple[Any, ...]:
    """One value a band, by sensor, as the channels of one stacked image."""
    return tuple(value for sensor in card.bands for value in by_sensor[sensor])


def _maker(encoder: FusMAEEncoder) -> Callable[..., FusMAEModel]:
    """What timm calls to have the model; it knows of `in_chans`, we of channels by sensor."""

    def make(
        num_classes: int, global_pool: str, in_chans: int, drop_rate: float = 0.0
    ) -> FusMAEModel:
        if in_chans != sum(encoder.channels.values()):
            raise ValueError(
                f"in_chans = {in_chans}, but the sensors have {encoder.channels}: "
                "give channels={...} with the number of each sensor's bands"
            )
        return FusMAEModel(encoder, num_classes, global_pool, drop_rate)

    return make


def _config(preset: str, options: dict[str, Any]) -> ModelConfig:
    """The shape that timm's names ask for; they are taken out of `options`."""
    size = options.pop("img_size", None)
    if isinstance(size, tuple | list):
        if len(set(size)) != 1:
            raise ValueError(f"img_size = {size} must be square; the model then takes any size")
        size = size[0]
    given = {
        "image_px": size,
        "patch_px": options.pop("patch_size", None),
        "fusion": options.pop("fusion", None),
    }
    kept = {name: value for name, value in given.items() if value is not None}
    return ModelConfig(preset=preset, **kept)  # type: ignore[arg-type]


def _check_loaded(loaded: PretrainedEncoder, preset: str, options: Mapping[str, Any]) -> None:
    """Refuse options that an export answers itself, and one of another preset."""
    given = [name for name in ("channels", "img_size", "patch_size", "fusion") if name in options]
    if given:
        raise ValueError(f"the encoder itself says its {', '.join(given)}: leave them out")
    if loaded.card.model.preset != preset:
        raise ValueError(f"this encoder is fusmae_{loaded.card.model.preset}, not fusmae_{preset}")


@register_model  # type: ignore[untyped-decorator]
def fusmae_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    return _create("tiny", pretrained, **options)


@register_model  # type: ignore[untyped-decorator]
def fusmae_small(pretrained: bool = False, **options: Any) -> nn.Module:
    return _create("small", pretrained, **options)


@register_model  # type: ignore[untyped-decorator]
def fusmae_base(pretrained: bool = False, **options: Any) -> nn.Module:
    """ViT-B; options: encoder (a folder or hf://owner/name), or channels (sensor -> number of
    bands), img_size, patch_size and fusion; num_classes, global_pool, drop_rate, features_only.
    """
    return _create("base", pretrained, **options)


@register_model  # type: ignore[untyped-decorator]
def fusmae_large(pretrained: bool = False, **options: Any) -> nn.Module:
    return _create("large", pretrained, **options)
