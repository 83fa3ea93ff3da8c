"""The comparison of codecs needs packages that nothing else does, and says which."""

import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("lacking", ["pcodec", "zarrs"])
def test_a_package_that_is_not_installed_is_named_before_anything_is_measured(
    monkeypatch, tmp_path, lacking
):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(sys.modules, lacking, None)
    import zarr_codecs

    monkeypatch.setattr(zarr_codecs, "REAL_V1", tmp_path)
    with pytest.raises(SystemExit, match=rf"this benchmark needs .*{lacking}.*: pip install"):
        zarr_codecs.main(["--out", str(tmp_path / "report.json")])
