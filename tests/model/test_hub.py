"""Push and fetch through the real huggingface_hub, against a hub on loopback."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_hub import Hub, running_hub

from fusmae.config import ModelConfig
from fusmae.model import EncoderCard, FusMAEEncoder, save_encoder
from fusmae.model.hub import describe_card, fetch_folder

MODEL = ModelConfig(preset="tiny", image_px=16, patch_px=8, width=16, depth=2, heads=2)
CARD = EncoderCard(
    model=MODEL,
    bands={"s2": ("B04", "B03"), "s1": ("VV", "VH")},
    mean={"s2": (590.0, 614.0), "s1": (-12.5, -19.0)},
    std={"s2": (675.0, 582.0), "s1": (5.0, 5.5)},
    resample="bilinear",
    dataset="BigEarthNet",
    simulated=False,
    licence="CDLA-Permissive-1.0",
    split="train",
    split_rule="google",
)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_encoder(FusMAEEncoder(MODEL, CARD.channels), CARD, tmp_path / "encoder")
    return tmp_path / "encoder"


def client(code: str, endpoint: str, home: Path, **more: str) -> str:
    """What `code` prints, run with this hub and an empty cache; its errors as one line."""
    wrapped = f"import fusmae\ntry:\n    {code}\nexcept ValueError as error:\n    print(error)"
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **more}
    command = [sys.executable, "-c", wrapped]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_pushed_is_fetched_again_bit_for_bit(export: Path, tmp_path: Path) -> None:
    push = f"print(fusmae.push_to_hub({str(export)!r}, 'owner/name'))"
    load = "print(fusmae.load_encoder('hf://owner/name').pooled({'s1': __import__('torch').ones(1,"
    load += " 2, 16, 16)}).double().sum().item())"
    with running_hub() as hub:
        printed = client(push, hub.url, tmp_path / "home", HF_TOKEN="hf_test")
        assert printed == f"{hub.url}/owner/name/commit/{hub.commit}"
        assert hub.requests.count("POST /api/models/owner/name/commit/main") == 1  # one commit
        for name in ("config.json", "model.safetensors"):
            assert hub.files[name] == (export / name).read_bytes()
        hub.files["evil.pkl"] = b"\x80\x04"
        hub.requests.clear()
        fetched = client(load, hub.url, tmp_path / "home")
        assert not any("evil" in request for request in hub.requests)
    local = load.replace("hf://owner/name", str(export))
    assert fetched == client(local, "http://127.0.0.1:1", tmp_path / "home")
    # The hub is gone; the cache is there.
    assert client(load, hub.url, tmp_path / "home", HF_HUB_OFFLINE="1") == fetched


def test_the_readme_states_bands_numbers_data_and_licence(export: Path, tmp_path: Path) -> None:
    with running_hub() as hub:
        push = f"fusmae.push_to_hub({str(export)!r}, 'owner/name')"
        client(push, hub.url, tmp_path, HF_TOKEN="hf_test")
        text = hub.files["README.md"].decode()
    assert text.startswith("---\nlibrary_name: fusmae\n")
    for fact in ("| s2 | B03 | 614 | 582 |", "BigEarthNet, split `train` (google rule)", "CDLA"):
        assert fact in text
    assert "simulated" not in text and 'load_encoder("hf://owner/name", size_px=16)' in text


def test_the_readme_says_that_an_encoder_was_fine_tuned() -> None:
    assert "fine-tuned" not in describe_card(CARD, "owner/name")
    tuned = replace(CARD, tuned_on="20 samples with labels")
    assert "fine-tuned since: 20 samples with labels." in describe_card(tuned, "owner/name")


def refuse(hub: Hub) -> str:
    hub.fail_with = 403
    return hub.url


@pytest.mark.parametrize(
    "code",
    ["fusmae.push_to_hub({folder!r}, 'owner/name')", "fusmae.load_encoder('hf://owner/name')"],
)
def test_a_refusal_and_a_hub_that_is_not_there_are_one_line(
    export: Path, tmp_path: Path, code: str
) -> None:
    code = code.format(folder=str(export))
    with running_hub() as hub:
        refused = client(code, refuse(hub), tmp_path, HF_TOKEN="hf_test")
    absent = client(code, "http://127.0.0.1:1", tmp_path, HF_TOKEN="hf_test")
    for line in (refused, absent):
        assert line.startswith("cannot ") and "owner/name" in line and "\n" not in line
    assert "403" in refused and "refused" in absent


def test_a_folder_without_an_encoder_is_not_pushed(tmp_path: Path) -> None:
    with running_hub() as hub:
        printed = client(f"fusmae.push_to_hub({str(tmp_path)!r}, 'owner/name')", hub.url, tmp_path)
        assert "is" in printed and "a finished export" in printed
        assert not any(request.startswith("POST") for request in hub.requests)


@pytest.mark.parametrize("source", ["hf://owner", "hf://owner/name/more", "hf:///name", "hf://"])
def test_an_address_that_is_none_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="expected hf://owner/name"):
        fetch_folder(source)
