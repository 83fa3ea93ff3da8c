"""Sections of the report page, each as HTML: losses, attention, embeddings."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusmae.config import ModelConfig, PretrainRecipe
from fusmae.evaluation.attention import BlockAttention, attention_of_run
from fusmae.evaluation.embedding import embed_classes
from fusmae.evaluation.insight_pictures import embedding_figure, map_figure, share_figure
from fusmae.evaluation.pictures import Curve, available_views, loss_figure
from fusmae.evaluation.reconstruction import Pretrained, preprocess_of, read_images
from fusmae.evaluation.token_maps import token_maps
from fusmae.manifest import Manifest
from fusmae.training.metrics import METRICS, read_metrics

# Samples over which attention is averaged, and whose maps are shown.
_NUM_ATTENDING = 64
_NUM_MAPS = 2


def figure_html(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    text = html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>\n"
    )


def loss_section(run: Path, recipe: PretrainRecipe) -> str:
    """The loss curves of `RUN/metrics.jsonl`, and nothing where no line was logged yet."""
    lines = read_metrics(run / METRICS)
    # With sensor dropout the sum is one of two sensors or of one: it would jump.
    names = [*([] if recipe.model.sensor_dropout else ["loss"]), *recipe.data.bands]
    train = _curves(names, [line for line in lines if "val" not in line])
    if not train:
        return ""
    val = _curves(names, [{"step": li["step"], **li["val"]} for li in lines if "val" in li])
    caption = "Reconstruction loss over masked tokens, means between log lines"
    if val:
        caption += f"; dashed: on samples of the {recipe.run.val_split} split"
    if recipe.model.sensor_dropout:
        caption += "; of each sensor over the steps that had it"
    return f"<h2>Loss</h2>\n{figure_html(loss_figure(train, val), caption + '.')}"


def _curves(names: Sequence[str], lines: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """Steps and losses by name; a sensor that was left out has no loss in some lines."""
    curves: dict[str, Curve] = {}
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            steps, losses = zip(*points, strict=True)
            curves["sum" if name == "loss" else name] = (steps, losses)
    return curves


def attention_section(pretrained: Pretrained, dataset: Path, split: str) -> str:
    """How much attention crosses from sensor to sensor, and where single tokens look."""
    model = pretrained.recipe.model
    if model.fusion in ("late", "stack") or len(pretrained.recipe.data.bands) < 2:
        return ""
    blocks = attention_of_run(pretrained, dataset, split, _NUM_ATTENDING)
    caption = (
        f"Share of attention that goes to other sensors' tokens, mean over heads, tokens and up to "
        f"{_NUM_ATTENDING} samples of the {split} split, nothing masked."
    )
    return (
        "<h2>Attention between sensors</h2>\n"
        "<p>In joint self-attention each token may look at all sensors. At the dashed line it "
        "looks at them as often as they have tokens; far below it the attention map is "
        f"block-diagonal: each sensor keeps to itself. {_reading(model, blocks)}</p>\n"
        + figure_html(share_figure(blocks, model.depth), caption)
        + _map_pictures(pretrained, dataset, split)
    )


def _reading(model: ModelConfig, blocks: Sequence[BlockAttention]) -> str:
    """The figure in words: the block that crosses least."""
    ratios = {
        (block.block, sensor): share / block.uniform[sensor]
        for block in blocks
        for sensor, share in block.others.items()
    }
    (number, sensor), least = min(ratios.items(), key=lambda item: item[1])
    first = (
        "Block 1 is XAttnEncoder, whose cross-attention sees other sensors alone. "
        if model.has_xae
        else ""
    )
    return (
        f"{first}The least is {100 * least:.0f} % of uniform, of the tokens of {sensor.upper()} in "
        f"block {number}."
    )


def _map_pictures(pretrained: Pretrained, dataset: Path, split: str) -> str:
    """Token maps of the first samples, where two sensors can be shown as pictures."""
    bands = pretrained.recipe.data.bands
    views = {view.sensor: view for view in reversed(available_views(bands))}  # the first of each
    sensors = [sensor for sensor in bands if sensor in views][:2]
    if len(sensors) < 2:
        return ""
    batch, images = next(iter(read_images(pretrained, dataset, split, _NUM_MAPS)))
    maps = token_maps(pretrained.model, images, sensors)
    stored = preprocess_of(pretrained.recipe, dataset).denormalise(images)
    pixels = {
        sensor: stored[sensor][:, [bands[sensor].index(band) for band in views[sensor].bands]]
        for sensor in sensors
    }
    caption = (
        "What the middle token (framed) of one sensor attends to in the other: brighter is more, "
        "1 × is what each token would get if all had the same. The dotted frame is the same place."
    )
    return "".join(
        figure_html(map_figure(maps, row, pixels, views), caption) for row in range(len(batch))
    )


def embedding_section(
    pretrained: Pretrained, manifest: Manifest, dataset: Path, split: str, num_samples: int
) -> str:
    """Samples in the plane by class; nothing where there are no labels or too few samples."""
    embedding = embed_classes(pretrained, manifest, dataset, split, num_samples)
    if embedding is None:
        return ""
    caption = (
        f"t-SNE of {len(embedding.points):,} samples of the {split} split, the same plane in each "
        f"picture: samples with a class of {embedding.label_set} in colour, all others grey. Axes "
        "have no unit, and distances between groups no meaning."
    )
    return (
        "<h2>Embeddings by class</h2>\n"
        "<p>Mean of the encoder's sensor tokens, all sensors given and nothing masked; no label "
        "was used. Classes whose samples lie together are easily told from others.</p>\n"
        + figure_html(embedding_figure(embedding), caption)
    )
