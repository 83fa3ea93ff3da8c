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
