"""Frozen features: the right sensors, the encoder's own statistics, every sample once."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fusmae.config import DataConfig
from fusmae.data import EvalLoader, Preprocess
from fusmae.evaluation.features import (
    band_statistics,
    encoder_features,
    extract_features,
    random_encoder,
    select_bands,
)
from fusmae.evaluation.images import with_encoder_statistics
from fusmae.manifest import read_manifest
from fusmae.model import EncoderCard, FusMAEEncoder, load_encoder
from fusmae.sample import decode

CPU = torch.device("cpu")


def stored_samples(dataset: Path, split: str) -> list[dict]:
    """The samples of a split through the plain reader."""
    shards = read_manifest(dataset).split(split).shards
    return [s for shard in shards for s in decode((dataset / shard.path).read_bytes())]


def test_band_statistics_equal_numpys_on_the_stored_pixels(dataset: Path) -> None:
    bands = {"s1": ("VH",), "s2": ("B11", "B02")}
    loader = EvalLoader(dataset, "val", DataConfig(bands=bands), batch=8)
    extract = band_statistics(read_manifest(dataset), bands)
    features, ids = extract_features(loader, extract, len(loader), "val")
    expected = []
    for sample in stored_samples(dataset, "val"):
        row: list[float] = []
        for pixels in (sample["s1"][1], sample["s2_20m"][4], sample["s2_10m"][0]):
            precise = pixels.astype(np.float64)
            row += [precise.mean(), precise.std(), *np.percentile(precise, [5, 25, 50, 75, 95])]
        expected.append(row)
    assert ids.tolist() == list(range(19))
    # float32 with up to 144 values of up to 65,535.
    np.testing.assert_allclose(features["band_statistics"], expected, rtol=1e-5)


@pytest.mark.parametrize("sensors", [("s1",), ("s2",), ("s2", "s1")])
def test_features_are_the_encoders_output_for_those_sensors_alone(
    dataset: Path, encoder: Path, sensors: tuple[str, ...]
) -> None:
    model, card = load_encoder(encoder)
    manifest = read_manifest(dataset)
    bands = select_bands(card, sensors)
    assert list(bands) == sorted(sensors)
    loader = EvalLoader(dataset, "val", DataConfig(bands=bands), batch=8)
    extract = encoder_features(model, Preprocess(manifest, bands, 12), CPU)
    features, _ = extract_features(loader, extract, len(loader), "val")
    arrays = {
        spec.name: torch.stack(
            [torch.from_numpy(s[spec.name]) for s in stored_samples(dataset, "val")]
        )
        for spec in manifest.arrays
    }
    images = Preprocess(manifest, card.bands, 12)(arrays)
    with torch.no_grad():
        output = model({sensor: images[sensor] for sensor in sensors})
    tokens = torch.cat([output.tokens[sensor] for sensor in bands], dim=1)
    # The same float32 sums in batches of 8 and of 19.
    torch.testing.assert_close(features["mean_tokens"], tokens.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features["global_token"], output.global_token, rtol=1e-4, atol=1e-5)


def test_zero_filled_features_are_those_of_an_image_of_zeros_in_the_absent_sensors_place(
    dataset: Path, encoder: Path
) -> None:
    model, card = load_encoder(encoder)
    bands = select_bands(card, ("s2",))
    preprocess = Preprocess(read_manifest(dataset), bands, 12)
    loader = EvalLoader(dataset, "val", DataConfig(bands=bands), batch=19)
    extract = encoder_features(model, preprocess, CPU, zero_filled=True)
    features, _ = extract_features(loader, extract, len(loader), "val")
    (batch,) = loader
    with torch.no_grad():
        zeros = torch.zeros(19, 2, 12, 12)
        output = model({"s1": zeros, **preprocess(batch.arrays)})
    mean = torch.cat(list(output.tokens.values()), dim=1).mean(dim=1)
    torch.testing.assert_close(features["zero_filled_mean_tokens"], mean)
    torch.testing.assert_close(features["zero_filled_global_token"], output.global_token)
    assert not torch.allclose(features["mean_tokens"], mean)


def test_rows_that_only_pad_a_batch_are_left_out(dataset: Path) -> None:
    bands = {"s1": ("VV",)}
    extract = band_statistics(read_manifest(dataset), bands)
    ids = []
    for rank in range(4):  # 19 samples on 4 ranks: the last one has 4 samples and 1 of weight 0
        loader = EvalLoader(
            dataset, "val", DataConfig(bands=bands), batch=3, rank=rank, world_size=4
        )
        features, part = extract_features(loader, extract, len(loader), "val")
        assert len(features["band_statistics"]) == len(part)
        ids += part.tolist()
    assert ids == list(range(19))


def test_another_dataset_is_normalised_with_the_encoders_statistics(
    dataset: Path, card: EncoderCard
) -> None:
    other = dataclasses.replace(
        card,
        mean={sensor: tuple(m + 1 for m in values) for sensor, values in card.mean.items()},
        std={sensor: tuple(2 * s for s in values) for sensor, values in card.std.items()},
    )
    manifest = with_encoder_statistics(read_manifest(dataset), other)
    preprocess = Preprocess(manifest, card.bands, 12)
    assert preprocess.mean == other.mean
    assert preprocess.std == other.std
    kept = read_manifest(dataset)
    assert manifest.band_statistics("s2_20m", "B05") == kept.band_statistics("s2_20m", "B05")


def test_random_weights_follow_the_seed_and_leave_torchs_random_state_alone(
    card: EncoderCard,
) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (random_encoder(card, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    weight = "patch_embed.s1.weight"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first[weight], other[weight])


@pytest.mark.parametrize("sensors", [("s3",), ("s1", "s3"), ("s1", "s1"), ()])
def test_sensors_that_the_encoder_does_not_know_are_refused(
    card: EncoderCard, sensors: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="each once: s1,s2"):
        select_bands(card, sensors)


def features_of(
    dataset: Path, card: EncoderCard, fusion: str, sensors: tuple[str, ...]
) -> tuple[dict[str, Tensor], FusMAEEncoder, Preprocess]:
    model = dataclasses.replace(card.model, fusion=fusion)
    encoder = random_encoder(dataclasses.replace(card, model=model), 0)
    bands = select_bands(card, sensors)
    preprocess = Preprocess(read_manifest(dataset), bands, 12)
    loader = EvalLoader(dataset, "val", DataConfig(bands=bands), batch=8)
    extract = encoder_features(encoder, preprocess, CPU)
    return extract_features(loader, extract, len(loader), "val")[0], encoder, preprocess


def val_images(dataset: Path, preprocess: Preprocess) -> dict[str, Tensor]:
    samples = stored_samples(dataset, "val")
    names = ("s1", "s2_10m", "s2_20m", "s2_60m")
    return preprocess(
        {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in names}
    )


def test_stacked_channels_of_an_absent_sensor_are_zero(dataset: Path, card: EncoderCard) -> None:
    features, encoder, preprocess = features_of(dataset, card, "stack", ("s2",))
    images = val_images(dataset, preprocess)
    images["s1"] = torch.zeros(19, 2, 12, 12)
    with torch.inference_mode():
        output = encoder(images)
    # Batches of 8 against one of 19: float32 products in another order.
    torch.testing.assert_close(
        features["mean_tokens"], output.tokens["stack"].mean(1), rtol=1e-4, atol=1e-5
    )


def test_late_fusion_also_gives_its_sensors_side_by_side(dataset: Path, card: EncoderCard) -> None:
    features, encoder, preprocess = features_of(dataset, card, "late", ("s1", "s2"))
    with torch.inference_mode():
        tokens = encoder(val_images(dataset, preprocess)).tokens
    expected = torch.cat([tokens["s1"].mean(1), tokens["s2"].mean(1)], dim=1)
    assert list(features) == ["mean_tokens", "global_token", "concatenated_tokens"]
    torch.testing.assert_close(features["concatenated_tokens"], expected, rtol=1e-4, atol=1e-5)
    assert "concatenated_tokens" not in features_of(dataset, card, "late", ("s1",))[0]
    assert "concatenated_tokens" not in features_of(dataset, card, "xae_xad", ("s1", "s2"))[0]
