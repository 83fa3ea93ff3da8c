"""Looks at a run while it trains: the score against numpy and scikit-learn, the picture's bytes."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from fusmae.config import DataConfig, ModelConfig, PretrainRecipe, RunConfig, SubsetConfig
from fusmae.data import open_dataset
from fusmae.evaluation.online import Online
from fusmae.evaluation.reconstruction import preprocess_of
from fusmae.manifest import read_manifest
from fusmae.model import FusMAE

from ..data.tiny_dataset import write_tiny_dataset  # noqa: TID252

MODEL = ModelConfig(
    preset="tiny", image_px=12, patch_px=3, width=16, depth=2, heads=2, decoder_width=8
)
BANDS = {"s1": ("VV", "VH"), "s2": ("B02", "B8A", "B01")}


def never():
    return False


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    folder = tmp_path_factory.mktemp("online")
    dataset = write_tiny_dataset(folder / "data", {"train": (20, 20), "val": (15,)})
    config = RunConfig(probe_samples=30)
    recipe = PretrainRecipe(model=MODEL, data=DataConfig(bands=BANDS), run=config)
    (folder / "run").mkdir()
    device = torch.device("cpu")
    return Online(recipe, dataset, read_manifest(dataset), folder / "run", device, 6, 4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return FusMAE(MODEL, {sensor: len(names) for sensor, names in BANDS.items()}).eval()


def samples_of(online, model, split, count, exclude=()):
    """Mean tokens and labels of the first samples, one after the other."""
    subset = {"exclude": list(exclude)}
    data = open_dataset(online.dataset, split, labels="bigearthnet-19", subset=subset)
    preprocess, features = preprocess_of(online.recipe, online.dataset), []
    for i in range(count):
        arrays = {name: torch.as_tensor(data[i][name])[None] for name in data.bands}
        with torch.no_grad():
            tokens = model.encoder(preprocess(arrays)).tokens
        features.append(torch.cat(list(tokens.values()), dim=1).mean(dim=1)[0].double().numpy())
    return np.stack(features), np.stack([data[i]["labels"] for i in range(count)])


# Snow is on every fifth sample.
@pytest.mark.parametrize(
    ("exclude", "num_known", "num_queries"), [((), 30, 15), (("seasonal_snow",), 30, 12)]
)
def test_the_score_is_that_of_neighbours_counted_by_hand(
    online, model, exclude, num_known, num_queries
):
    # A fraction is of training's samples alone.
    data = DataConfig(bands=BANDS, subset=SubsetConfig(0.5, exclude=exclude))
    online = dataclasses.replace(online, recipe=dataclasses.replace(online.recipe, data=data))
    known, votes = samples_of(online, model, "train", num_known, exclude)
    queries, truth = samples_of(online, model, "val", num_queries, exclude)
    mean, std = known.mean(0), np.sqrt(known.var(0) + 1e-6)
    unit = [(x - mean) / std for x in (known, queries)]
    known, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in unit)
    scores = []
    for query in queries:
        similarity = known @ query
        nearest = np.argsort(-similarity)[:20]
        weights = np.exp(similarity[nearest] / 0.07)
        scores.append((weights[:, None] * votes[nearest]).sum(0) / weights.sum())
    present = truth.any(axis=0)
    expected = average_precision_score(truth[:, present], np.stack(scores)[:, present])
    assert online.probe(model.state_dict(), never) == pytest.approx(expected, abs=1e-3)


def test_what_is_due_is_made_and_nothing_else(online, model):
    lines, said = [], []
    assert [step for step in range(1, 13) if online.is_due(step)] == [4, 6, 8, 12]
    for step in (4, 6, 12):
        online.look(model.state_dict(), step, never, lines.append, said.append)
    assert [line["step"] for line in lines] == [4, 12]
    assert all(0 < line["knn"]["macro_map"] <= 1 for line in lines)
    pictures = sorted(online.out.glob("pictures/*"))
    assert [path.name for path in pictures] == ["step-00000006.png", "step-00000012.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert len(said) == 4


def test_what_goes_wrong_is_told_and_ends_nothing(online, model, tmp_path, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("CUDA error: out of luck\nand more")

    (tmp_path / "run").mkdir()
    here, lines, said = dataclasses.replace(online, out=tmp_path / "run"), [], []
    monkeypatch.setattr(Online, "probe", broken)
    here.look(model.state_dict(), 12, never, lines.append, said.append)
    assert lines == []
    assert said[0] == "warning: step 12 has no kNN score: CUDA error: out of luck"
    assert said[1].startswith("step 12  picture: ")  # what does not fail is made
    monkeypatch.setattr(Online, "picture", broken)
    here.look(model.state_dict(), 12, never, lines.append, said.append)
    assert said[3].startswith("warning: step 12 has no picture: CUDA error")


def test_of_a_step_gone_on_from_only_what_is_missing_is_made(online, model, tmp_path):
    here, lines, said = dataclasses.replace(online, out=tmp_path), [], []
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 12, "knn": {"macro_map": 0.5}}\n')
    for _ in range(2):
        here.look(model.state_dict(), 12, never, lines.append, said.append, missing_only=True)
    assert lines == [] and len(said) == 1
    assert [path.name for path in tmp_path.glob("pictures/*")] == ["step-00000012.png"]
    metrics.write_text("")
    here.look(model.state_dict(), 12, never, lines.append, said.append, missing_only=True)
    assert [line["step"] for line in lines] == [12] and len(said) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"val_split": "test"}, "need the split run.val_split = 'test' of .*has \\['train', 'val'"),
        ({"probe_samples": 19}, "a probe needs 20 labelled samples, and has 19"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_before_the_run(online, changes, said):
    online.check()
    config = dataclasses.replace(online.recipe.run, **changes)
    recipe = dataclasses.replace(online.recipe, run=config)
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(online, recipe=recipe).check()
    dataclasses.replace(online, recipe=recipe, picture_steps=0, probe_steps=0).check()
