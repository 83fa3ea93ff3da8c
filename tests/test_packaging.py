"""The package list against the folders, and a wheel that holds them."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def folders_with_code() -> set[str]:
    """Installed names of all folders that hold an `__init__.py`."""
    ours = {
        p.parent.relative_to(ROOT)
        for d in ("fusmae", "ingest")
        for p in (ROOT / d).rglob("__init__.py")
    }
    return {
        ".".join(("fusmae_ingest" if p == "ingest" else p) for p in path.parts) for path in ours
    }


def test_the_package_list_is_the_folders():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(table["packages"]) == folders_with_code()


def test_constraints_pin_every_direct_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += [item for item in extra if not item.startswith("fusmae[")]
    name = lambda item: item.split(">")[0].split("[")[0].split("=")[0].strip().lower()  # noqa: E731
    pinned = {
        name(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert {name(item) for item in wanted} <= pinned


def test_a_wheel_holds_every_module_and_the_command(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    result = subprocess.run([*build, str(ROOT)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    for folder, installed in (("fusmae", "fusmae"), ("ingest", "fusmae_ingest")):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{installed}/{path.relative_to(ROOT / folder)}" in names
    assert not any(name.startswith(("tests/", "train/", "ingest/")) for name in names)
