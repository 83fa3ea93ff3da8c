"""Who may import whom. The arrows are the design; this keeps them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Package -> the parts of ours that it may import.
ALLOWED = {
    "ingest": {
        "fusmae.sensors",
        "fusmae.labels",
        "fusmae.splits",
        "fusmae.sample",
        "fusmae.manifest",
    },
    "fusmae/model": {"fusmae.model", "fusmae.config", "fusmae.hashing", "fusmae.sensors"},
    "fusmae/data": {
        "fusmae.data",
        "fusmae.config",
        "fusmae.hashing",
        "fusmae.manifest",
        "fusmae.sample",
        "fusmae.sensors",
        "fusmae.labels",
    },
    "fusmae/training": {
        "fusmae.training",
        "fusmae.model",
        "fusmae.data",
        "fusmae.config",
        "fusmae.manifest",
    },
    # Of the trainer, evaluation reads what a run has left behind and its way of writing files,
    # and takes its schedule and its rule of weight decay for fine-tuning.
    "fusmae/evaluation": {
        "fusmae.evaluation",
        "fusmae.model",
        "fusmae.data",
        "fusmae.config",
        "fusmae.manifest",
        "fusmae.labels",
        "fusmae.sensors",
        "fusmae.torchvision_repair",
        "fusmae.training.checkpoint",
        "fusmae.training.durable",
        "fusmae.training.metrics",
        "fusmae.training.optim",
        "fusmae.training.record",
        "fusmae.training.schedule",
    },
}
FORBIDDEN = {
    "fusmae/training": ("fusmae.evaluation",),
    "fusmae": ("fusmae_ingest", "ingest", "train"),
    "train": ("fusmae_ingest", "ingest"),
    "ingest": ("train", "torch"),
}
# Heavy packages with one door each.
DOORS = {
    "deepspeed": {"fusmae/training/engine.py"},
    "rasterio": {"ingest/geotiff.py"},
    "zarr": {"ingest/zarr_store.py"},
    "numba": {"ingest/counting.py"},
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, absolute names only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from fusmae import sensors` may name a module or an object.
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def sources(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, package
    return files


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_of_ours_are_allowed_ones(package):
    for path in sources(package):
        for module in imports(path):
            if within(module, "fusmae") and module != "fusmae":
                assert any(within(module, ok) for ok in ALLOWED[package]), f"{path}: {module}"


@pytest.mark.parametrize("package", FORBIDDEN)
def test_forbidden_arrows_are_absent(package):
    for path in sources(package):
        for module in imports(path):
            assert not any(within(module, no) for no in FORBIDDEN[package]), f"{path}: {module}"


@pytest.mark.parametrize("library", DOORS)
def test_heavy_libraries_have_one_door(library):
    users = {
        str(path.relative_to(ROOT))
        for package in ("fusmae", "ingest", "train")
        for path in sources(package)
        if any(within(module, library) for module in imports(path))
    }
    assert users == DOORS[library]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("fusmae", ["torch", "numpy", "pyarrow"]),
        ("fusmae_ingest.cli", ["torch", "deepspeed", "matplotlib"]),
        ("fusmae.model", ["deepspeed", "rasterio", "zarr", "pyarrow", "torchvision"]),
        ("fusmae.data", ["deepspeed", "rasterio", "zarr", "timm"]),
    ],
)
def test_importing_a_part_leaves_the_heavy_ones_out(module, absent):
    code = f"import {module}, sys; print([m for m in {absent} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_every_folder_of_python_is_an_ordered_part_of_the_house():
    assert {p.parent.name for p in ROOT.glob("*/*.py")} <= {"fusmae", "ingest", "train", "tests"}
