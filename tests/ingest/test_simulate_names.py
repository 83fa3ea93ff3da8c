"""Names, places and dates of simulated patches: genuine patterns, no name twice."""

import json
import re
from collections import Counter

import pytest

from fusmae.splits import google_split
from fusmae_ingest.simulated_names import MAX_PATCHES, describe_patch

PATTERNS = {
    "v1_name": r"S2[AB]_MSIL2A_\d{8}T\d{5,6}_\d{1,2}_\d{1,2}",
    "v2_name": r"S2[AB]_MSIL2A_\d{8}T\d{6}_N9999_R\d{3}_T\d{2}[A-Z]{3}_\d{2}_\d{2}",
    "s1_name": r"S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}_\d{2}[A-Z]{3}_\d{1,2}_\d{1,2}",
    "s1_product": r"S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}_\d{8}T\d{6}_\d{6}_[0-9A-F]{6}_[0-9A-F]{4}",
    "s2_product": r"S2[AB]_MSIL1C_\d{8}T\d{6}_N0\d{3}_R\d{3}_T\d{2}[A-Z]{3}_\d{8}T\d{6}\.SAFE",
}


def test_names_are_unique_and_of_the_genuine_pattern():
    patches = [describe_patch(3, index) for index in range(5000)]
    for field, pattern in PATTERNS.items():
        names = [getattr(patch, field) for patch in patches]
        assert all(re.fullmatch(pattern, name) for name in names), field
        if field.endswith("_name"):
            assert len(set(names)) == len(names), field
    assert len({patch.epsg for patch in patches}) == 5
    assert all(0 <= patch.h <= 90 and 0 <= patch.v <= 90 for patch in patches)


def test_the_last_patches_have_names_of_their_own():
    first = {describe_patch(0, index).v1_name for index in range(200)}
    last = {describe_patch(0, MAX_PATCHES - 1 - index).v1_name for index in range(200)}
    assert len(first | last) == 400
    with pytest.raises(ValueError, match="does not exist"):
        describe_patch(0, MAX_PATCHES)


def test_the_google_rule_splits_them_as_it_splits_bigearthnet():
    splits = Counter(google_split(describe_patch(0, index).v1_name) for index in range(5000))
    # Binomial standard error of 5,000 draws: 0.7 %; four of them.
    for split, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        assert abs(splits[split] / 5000 - share) < 0.03


def test_projection_and_place_are_spelled_as_in_the_real_json_files(real_v1):
    real = {}
    for path in real_v1.glob("BigEarthNet-S1-v1.0/*/*.json"):
        table = json.loads(path.read_text())
        *_, tile, h, v = path.parent.name.split("_")
        real[tile] = (table, int(h), int(v))
    compared = set()
    for index in range(40):
        patch = describe_patch(0, index)
        if patch.tile.name in real:
            table, h, v = real[patch.tile.name]
            assert patch.projection == table["projection"]
            assert patch.tile.ulx + 1200 * h == table["coordinates"]["ulx"]
            assert patch.tile.uly - 1200 * v == table["coordinates"]["uly"]
            compared.add(patch.tile.name)
    assert compared == set(real)
