"""Token maps and embeddings: where a planted attention and planted classes must show."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fusmae.config import Fusion
from fusmae.data import SplitReader
from fusmae.evaluation.embedding import Embedding, embed_classes, pooled_tokens, to_plane
from fusmae.evaluation.insight_pictures import embedding_figure
from fusmae.evaluation.reconstruction import load_pretrained
from fusmae.evaluation.token_maps import token_maps
from fusmae.labels import BIGEARTHNET_19
from fusmae.manifest import read_manifest
from fusmae.model import EncoderCard, FusMAE

from .test_report import write_run

# 9 tokens a sensor: rows of 3. Sensors in the order of the tokens.
SENSORS = ("s1", "s2", "s3")


def planted(card: EncoderCard, fusion: Fusion) -> FusMAE:
    """A model of three sensors whose every query sees a token thrice as
    well whose first pixel is log 3 instead of 0."""
    config = dataclasses.replace(card.model, fusion=fusion, depth=2, heads=1)
    model = FusMAE(config, dict.fromkeys(SENSORS, 1))
    encoder = model.encoder
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        encoder.positions.table.zero_()
        for part in filter(None, (encoder.xattn, model.xattn_decoder)):
            for cross in part.cross.attention.values():
                cross.query_norm = cross.context_norm = torch.nn.Identity()
                cross.q.bias[0], cross.kv.weight[0, 0] = 4.0, 1.0  # scaled by 1 / sqrt(16)
        for block in encoder.blocks:
            block.norm1 = torch.nn.Identity()
            block.attn.qkv.bias[0], block.attn.qkv.weight[16, 0] = 4.0, 1.0
        for embed in encoder.patch_embed.values():
            embed.weight.view(16, -1)[0, 0] = 1.0  # the first pixel of a token is its first feature
    return model


def images_with(tokens: dict[str, int]) -> dict[str, Tensor]:
    images = {sensor: torch.zeros(2, 1, 12, 12) for sensor in SENSORS}
    for sensor, token in tokens.items():
        images[sensor][1, 0, token // 3 * 4, token % 3 * 4] = float(np.log(3.0))
    return images


@pytest.mark.parametrize("fusion", ["none", "xad", "xae_xad"])
def test_a_token_map_shows_the_token_that_is_attended_to(card: EncoderCard, fusion: Fusion) -> None:
    tokens = {"s1": 2, "s2": 3, "s3": 7}
    maps = token_maps(planted(card, fusion), images_with(tokens), ["s1", "s3"])
    first = "XAttnEncoder" if fusion == "xae_xad" else "block 1"
    places = [(one.layer, one.query, one.key) for one in maps]
    assert places == [
        (layer, *pair)
        for layer in (first, "block 2", *(["XAttnDecoder"] if "xad" in fusion else []))
        for pair in (("s1", "s3"), ("s3", "s1"))
    ]
    for one in maps:
        assert one.token == (1, 1)
        torch.testing.assert_close(one.times_uniform[0], torch.ones(3, 3))  # nothing planted
        # Keys are the other two sensors', or all 27 and the global token.
        keys, seen = (18, 2) if one.layer.startswith("XAttn") else (28, 3)
        total = keys - seen + 3 * seen
        expected = torch.full((3, 3), keys / total)
        expected.view(-1)[tokens[one.key]] *= 3
        torch.testing.assert_close(one.times_uniform[1], expected, rtol=1e-4, atol=1e-5)


def test_embeddings_are_of_the_samples_whose_labels_they_have(
    dataset: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    write_run(tmp_path / "run", dataset)
    pretrained = load_pretrained(tmp_path / "run", dataset)
    embedding = embed_classes(pretrained, read_manifest(dataset), dataset, "val", 18)
    assert embedding is not None
    assert embedding.points.shape == (18, 2) and embedding.label_set == "bigearthnet-19"
    for row, names in enumerate(SplitReader(dataset, "val").labels("bigearthnet-19")[:18]):
        has = [name for name, yes in zip(BIGEARTHNET_19, embedding.has[row], strict=True) if yes]
        assert sorted(has) == sorted(names)
    features = pooled_tokens(pretrained, dataset, "val", 18)
    assert features.shape == (18, 16)
    assert np.array_equal(embedding.points, to_plane(features.numpy()))
    assert embed_classes(pretrained, read_manifest(dataset), dataset, "val", 9) is None


def test_groups_far_apart_stay_apart_in_the_plane() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 20, (3, 8))
    group = np.repeat(np.arange(3), 15)
    points = to_plane((centres[group] + rng.normal(0, 1, (45, 8))).astype(np.float32))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(1)] == group).all()


def test_classes_of_all_or_no_samples_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    has = np.zeros((12, 3), bool)
    has[:, 0] = has[:4, 1] = True
    titles: list[str] = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.set_title", lambda axes, title, **_: titles.append(title)
    )
    points = np.random.default_rng(0).normal(size=(12, 2))
    embedding_figure(Embedding(points, has, ("all", "some", "none"), "test"))
    assert titles == ["some\n4 samples"]
