"""Split rules: pure functions of a patch's name, or of published name lists.

The google split is the one of the Fus-MAE paper: TensorFlow Datasets' 60/20/20 cut of
BigEarthNet v1 in the order of md5("train" + name) (Neumann et al. 2019,
arXiv:1911.06721; method in google-research remote_sensing_representations).
"""

import hashlib

SPLITS = ("train", "val", "test")

# Hashes of the last train and the last val name among all 590,326 v1 patches, so that a
# patch's split needs only its own name; tests recompute them from the full list.
_GOOGLE_LAST_TRAIN = "9a03d6f570195d02efcf3b4dcb1debf4"
_GOOGLE_LAST_VAL = "ccf74a2153eb81210a0cdd0c8dd4357d"


def google_hash(v1_name: str) -> str:
    """The hex md5 by which the google split orders BigEarthNet v1 S2 patch names."""
    return hashlib.md5(b"train" + v1_name.encode(), usedforsecurity=False).hexdigest()


def google_split(v1_name: str) -> str:
    """`train`, `val` or `test` for a BigEarthNet v1 S2 patch name (v2: its `s2v1_name`)."""
    digest = google_hash(v1_name)
    if digest <= _GOOGLE_LAST_TRAIN:
        return "train"
    return "val" if digest <= _GOOGLE_LAST_VAL else "test"


# The v2 metadata table spells its splits out.
V2_SPLIT_NAMES = {"train": "train", "validation": "val", "test": "test"}


# SEN12MS: the seasons in the archive's spelling, with the scenes that its authors hold out as
# the test split (schmitt-muc/SEN12MS, splits/; tests hold it against the published lists).
SEN12MS_HOLD_OUT: dict[str, tuple[int, ...]] = {
    "ROIs1158_spring": (15, 17, 63, 97, 124, 146),
    "ROIs1868_summer": (15, 19, 43, 72, 79, 104, 131),
    "ROIs1970_fall": (30, 35, 39, 47, 61, 120, 141, 144),
    "ROIs2017_winter": (32, 64, 107, 135, 146),
}

# The authors publish no validation split. Scenes whose hash falls below this are ours: 28 of
# the 226 training scenes, 19,088 of their 162,556 patches (11.7 %).
_SEN12MS_VAL_BELOW = 2**32 // 10


def sen12ms_split(season: str, scene: int, *, held_out: bool | None = None) -> str:
    """`train`, `val` or `test` of every patch of a SEN12MS scene.

    `test` are the held-out scenes; of the others those are `val` for which the first 32 bits of
    md5("val" + "ROIs1158_spring_101"), a uniform number, fall into the lowest tenth. A
    scene is never divided between train and val, since its patches lie side by side.

    Args:
        season: the season in the archive's spelling, `ROIs1158_spring`.
        scene: the scene's number.
        held_out: whether it is test, where another list than the authors' says so.
    """
    if held_out is None:
        held_out = scene in SEN12MS_HOLD_OUT.get(season, ())
    if held_out:
        return "test"
    digest = hashlib.md5(f"val{season}_{scene}".encode(), usedforsecurity=False).hexdigest()
    return "val" if int(digest[:8], 16) < _SEN12MS_VAL_BELOW else "train"
