"""The repair of a torchvision whose operators do not load, in fresh interpreters."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)


def run(code: str, path: Path | None = None) -> str:
    prefix = f"import sys; sys.path.insert(0, {str(path)!r})\n" if path else ""
    result = subprocess.run([sys.executable, "-c", prefix + code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@needs_torchvision
def test_torchmetrics_and_timm_import_after_it() -> None:
    run(
        "from fusmae.torchvision_repair import repair_torchvision\n"
        "repair_torchvision()\n"
        "import torchmetrics.classification, timm\n"
        "assert not repair_torchvision(), 'a second call does nothing'"
    )


def fake_torchvision(folder: Path, body: str) -> Path:
    (folder / "torchvision.py").write_text(body)
    return folder


CALL = (
    "from fusmae.torchvision_repair import repair_torchvision\n"
    "made = repair_torchvision()\n"
    "import torch\n"
    "print(made, hasattr(torch.ops.torchvision, 'nms'))"
)


def test_a_missing_operator_is_declared_and_the_import_tried_again(tmp_path: Path) -> None:
    body = (
        "import torch\n"
        "if not hasattr(torch.ops.torchvision, 'nms'):\n"
        "    raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    assert run(CALL, fake_torchvision(tmp_path, body)) == "True True"


def test_a_healthy_torchvision_is_left_alone(tmp_path: Path) -> None:
    assert run(CALL, fake_torchvision(tmp_path, "")) == "False False"


def test_another_error_is_not_hidden(tmp_path: Path) -> None:
    fake_torchvision(tmp_path, "raise RuntimeError('something else')")
    code = CALL + "\ntry:\n    import torchvision\nexcept RuntimeError as error:\n    print(error)"
    assert run(code, tmp_path) == "False False\nsomething else"
