"""Files that are not what they are called: one line that names the keys, and no code is run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fusmae.evaluation.backbones import open_backbone

# `tests` is not installed, so its files reach each other by relative imports alone.
from .published import MAP, dino_mm_checkpoint, imagenet_vit, satvit_state, satvit_toml


class Evil:
    """Whoever unpickles this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("place", ["args", "teacher"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, place: str) -> None:
    path, made = tmp_path / "evil.pth", tmp_path / "made"
    torch.save(dino_mm_checkpoint() | {place: Evil(made)}, path)
    with pytest.raises(ValueError, match=r"holds more than tensors.*open") as caught:
        open_backbone(f"dino-mm:{path}")
    assert not made.exists() and "\n" not in str(caught.value)
    torch.load(path, weights_only=False)  # so the file does what it is said to
    assert made.exists()


def changed(state: dict[str, Any], **tensors: Tensor | None) -> dict[str, Any]:
    """The state with tensors replaced, or taken away where None."""
    state = dict(state)
    for name, tensor in tensors.items():
        name = name.replace("__", ".")
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    return state


def broken_dino(**tensors: Tensor | None) -> dict[str, Any]:
    whole = dino_mm_checkpoint()
    return whole | {"teacher": changed(whole["teacher"], **tensors)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dino-mm", lambda: {"epoch": 1, "student": {}}, "no 'teacher'.*keys are epoch, student"),
        ("dino-mm", lambda: broken_dino(backbone__norm__bias=None), "missing norm.bias"),
        (
            "dino-mm",
            lambda: broken_dino(backbone__blocks__12__norm1__bias=torch.zeros(384)),
            "unexpected blocks.12.norm1.bias",
        ),
        (
            "dino-mm",
            lambda: broken_dino(backbone__patch_embed__proj__weight=torch.zeros(384, 13, 8, 8)),
            r"of another shape patch_embed.proj.weight \(\(384, 13, 8, 8\), expected",
        ),
        ("dino-mm", lambda: {"teacher": imagenet_vit()}, r"expected \(384,\)\).* and \d+ more"),
        ("imagenet", lambda: dino_mm_checkpoint(), "missing .*unexpected student, teacher"),
        ("imagenet", lambda: [1, 2], "holds a list"),
        ("satvit-v1", imagenet_vit, "missing encoder.layers.0.0.input_norm.weight"),
        ("satvit-v1", lambda: satvit_state(15, 16, 384), r"(?s)15 channels.*channels = \[15 of"),
        ("satvit-v2", lambda: satvit_state(15, 16, 384), r"pos_embed \(\(1, 256, 768\), expected"),
        ("satvit-v1", lambda: {"mae_model": torch.zeros(1)}, "holds no"),
    ],
)
def test_another_or_a_partial_checkpoint_is_one_line_with_its_keys(
    tmp_path: Path, name: str, content: Callable[[], object], message: str
) -> None:
    path = tmp_path / "other.pth"
    torch.save(content(), path)
    with pytest.raises(ValueError, match=message) as caught:
        open_backbone(f"{name}:{path}")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("data", [b"", b"hello there", b"PK\x03\x04junk", None])
def test_a_file_that_is_no_checkpoint_is_one_line(
    tmp_path: Path, suffix: str, data: bytes | None
) -> None:
    path = tmp_path / f"weights.{suffix}"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match="weights") as caught:
        open_backbone(f"imagenet:{path}")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    save_file({"norm.bias": torch.zeros(3)}, tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"norm.bias \(\(3,\), expected \(768,\)\)"):
        open_backbone(f"imagenet:{tmp_path / 'vit.safetensors'}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('weights = "w.pt"', "lacks name"),
        ('name = "dino"\nweights = "w.pt"', "not one of imagenet, dino-mm"),
        ('name = "dino-mm"\nweights = "w.pt"\nchannels = ["VV"]', "leave channels out"),
        ('name = "dino-mm"\nweights = "w.pt"\nchanels = ["VV"]', "did you mean channels"),
        ('name = "dino-mm"\nweights = "w.pt"', "cannot read the weights .*/w.pt"),
        ("name =", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_toml_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "spec.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_backbone(tmp_path / "spec.toml")


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (MAP[:14], "14 channels are given; expected channels = .15 of"),
        ((*MAP[:14], "B10"), "of which B10 is unknown"),
        (("-",) * 15, "15 channels are given"),
    ],
)
def test_a_wrong_channel_map_is_said(
    tmp_path: Path, channels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_backbone(satvit_toml(tmp_path, "satvit-v1", satvit_state(15, 16, 384), channels))


def test_a_name_without_a_file_is_said() -> None:
    with pytest.raises(ValueError, match="imagenet:FILE"):
        open_backbone("imagenet")
