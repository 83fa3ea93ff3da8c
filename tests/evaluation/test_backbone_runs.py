"""Published models through the commands that a user types, and in a table beside ours."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open

from fusmae.evaluation.backbones import open_backbone
from fusmae.evaluation.tables import read_scores

from .published import dino_mm_checkpoint, imagenet_vit, satvit_state

TRAIN = Path(__file__).parents[2] / "train"


def run(script: str, recipe: str, *options: object) -> Result:
    spec = importlib.util.spec_from_file_location(script, TRAIN / f"{script}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = ["--recipe", TRAIN / "recipes" / recipe, *options]
    return CliRunner().invoke(module.main, [str(part) for part in given])


def result_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def dino_mm(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("dino") / "B14_vits8_dinomm_ep99.pth"
    torch.save(dino_mm_checkpoint(), path)
    return f"dino-mm:{path}"


def probe(dataset: Path, source: object, sensors: str, out: Path, *more: object) -> Result:
    wanted = ["--data", dataset, "--pretrained", source, "--sensors", sensors, "--out", out]
    return run("linear_probe", "probe.toml", *wanted, "--set", "epochs=1", *more)


def test_dino_mm_is_probed_and_its_result_says_what_it_was(
    dataset: Path, encoder: Path, dino_mm: str, tmp_path: Path
) -> None:
    small = ("--set", "image_px=16")
    done = probe(dataset, dino_mm, "s1,s2", tmp_path / "t" / "both", *small)
    assert done.exit_code == 0, done.output
    result = result_in(tmp_path / "t" / "both")
    backbone = result["backbone"]
    assert list(result["results"]) == ["mean_tokens", "global_token"]
    assert result["headline"] == "global_token" and backbone["name"] == "dino-mm"
    assert backbone["channels"][-3:] == ["B12", "VH", "VV"] and backbone["image_px"] == 112
    assert "zeros in its channels after normalisation" in backbone["absent_sensor"]
    assert result["images"]["size_px"] == {"s1": 16, "s2": 16}
    assert result["images"]["mean"]["s1"] == [-19.22, -12.59]
    assert len(result["options"]["encoder_sha256"]["B14_vits8_dinomm_ep99.pth"]) == 64
    again = probe(dataset, dino_mm, "s1,s2", tmp_path / "t" / "both", *small)
    assert again.exit_code == 0 and "already there" in again.output
    # A stacked sensor cannot be skipped: there is no second row for it.
    done = probe(dataset, dino_mm, "s2", tmp_path / "t" / "s2", *small, "--features", "random")
    assert done.exit_code == 0, done.output
    assert list(result_in(tmp_path / "t" / "s2")["results"]) == ["mean_tokens", "global_token"]
    done = probe(dataset, encoder, "s1,s2", tmp_path / "t" / "ours")
    assert done.exit_code == 0, done.output
    ours = result_in(tmp_path / "t" / "ours")
    assert ours["backbone"]["label"] == "Fus-MAE, xae_xad" and "backbone" not in ours["options"]
    assert list(ours["options"]["encoder_sha256"]) == ["config.json", "model.safetensors"]
    scores, _ = read_scores([str(tmp_path / "t")])
    rows = {score.row: score.sensors for score in scores}
    assert rows == {
        "DINO-MM": ("s1", "s2"),
        "DINO-MM, mean tokens": ("s1", "s2"),
        "DINO-MM, random weights": ("s2",),
        "DINO-MM, random weights, mean tokens": ("s2",),
        "pretrained": ("s1", "s2"),
        "pretrained, global token": ("s1", "s2"),
    }


def test_imagenet_skips_a_sensor_by_the_datasets_statistics(dataset: Path, tmp_path: Path) -> None:
    torch.save(imagenet_vit(), tmp_path / "vit.pth")
    source = f"imagenet:{tmp_path / 'vit.pth'}"
    done = probe(dataset, source, "s1", tmp_path / "out", "--set", "image_px=32")
    assert done.exit_code == 0, done.output
    result = result_in(tmp_path / "out")
    assert list(result["results"]) == [
        "mean_tokens",
        "global_token",
        "zero_filled_mean_tokens",
        "zero_filled_global_token",
    ]
    assert result["options"]["recipe"]["statistics"] == "dataset"
    assert result["images"]["statistics"] == "the dataset's train split, tiny"


def test_satvit_needs_its_channel_map_and_has_no_global_token(
    dataset: Path, tmp_path: Path
) -> None:
    state = satvit_state(3, 16, 384)
    torch.save(state, tmp_path / "SatViT_V1.pt")
    done = probe(dataset, f"satvit-v1:{tmp_path / 'SatViT_V1.pt'}", "s1", tmp_path / "out")
    assert done.exit_code == 1 and "channels = [3 of VV, VH, B01" in done.output
    spec = tmp_path / "satvit.toml"
    spec.write_text('name = "satvit-v1"\nweights = "SatViT_V1.pt"\nchannels = ["B04", "VV", "VH"]')
    wanted = ["--data", dataset, "--pretrained", spec, "--sensors", "s1,s2"]
    small = ("--set", "image_px=32", "--set", "epochs=2", "--set", "lrs=[1e-3]")
    wanted += ["--out", tmp_path / "tuned", *small]
    refused = run("finetune", "finetune.toml", *wanted, "--set", "pooling=global_token")
    assert refused.exit_code == 1 and "SatViT v1 has no global_token" in refused.output
    done = run("finetune", "finetune.toml", *wanted)
    assert done.exit_code == 0, done.output
    result = result_in(tmp_path / "tuned")
    assert result["options"]["channels"] == ["B04", "VV", "VH"]
    assert result["images"]["bands"] == {"s1": ["VV", "VH"], "s2": ["B04"]}
    with safe_open(tmp_path / "tuned" / "backbone.safetensors", "pt") as file:
        assert file.metadata() == {"backbone": "satvit-v1"}
        tuned = file.get_tensor("blocks.0.attn.qkv.weight")
    assert not torch.equal(tuned, state["encoder.layers.0.0.to_qkv.weight"])
    scores, _ = read_scores([str(tmp_path / "tuned")])
    assert [score.row for score in scores] == ["SatViT v1, fine-tuned"]
    # It opens again, with the tuned weights, and never as what was published.
    again = tmp_path / "again.toml"
    again.write_text(spec.read_text() + '\ntuned = "tuned/backbone.safetensors"')
    backbone = open_backbone(again)
    assert torch.equal(backbone.pretrained.state_dict()["blocks.0.attn.qkv.weight"], tuned)
    assert [path.name for path in backbone.files] == ["SatViT_V1.pt", "backbone.safetensors"]
    probed = probe(dataset, again, "s1", tmp_path / "probed", "--set", "image_px=32")
    assert probed.exit_code == 0, probed.output
    scores, _ = read_scores([str(tmp_path / "probed")])
    assert scores[0].row == "SatViT v1 (tuned before)"
    with pytest.raises(ValueError, match=r"is a fine-tuned satvit-v1: give --pretrained a TOML"):
        open_backbone(f"satvit-v1:{tmp_path / 'tuned' / 'backbone.safetensors'}")
    again.write_text(spec.read_text() + '\ntuned = "tuned/head.safetensors"')
    with pytest.raises(ValueError, match=r"not satvit-v1's as .* missing .*; unexpected head"):
        open_backbone(again)
