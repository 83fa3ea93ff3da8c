"""Class names, the 43 -> 19 map of BigEarthNet, the 17 -> 10 map of IGBP, multi-hot; by name.

BigEarthNet: order and map: Sumbul et al. 2021, arXiv:2105.07921; equal to `OLD2NEW_LABELS_DICT` of
kai-tub/bigearthnet_common. BigEarthNet v2 spells classes as the 19-class list here.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

# Each CORINE level-3 class of BigEarthNet v1 with its class in the 19-class
# nomenclature; None where the 19-class nomenclature drops it.
BIGEARTHNET_43_TO_19: dict[str, str | None] = {
    "Continuous urban fabric": "Urban fabric",
    "Discontinuous urban fabric": "Urban fabric",
    "Industrial or commercial units": "Industrial or commercial units",
    "Road and rail networks and associated land": None,
    "Port areas": None,
    "Airports": None,
    "Mineral extraction sites": None,
    "Dump sites": None,
    "Construction sites": None,
    "Green urban areas": None,
    "Sport and leisure facilities": None,
    "Non-irrigated arable land": "Arable land",
    "Permanently irrigated land": "Arable land",
    "Rice fields": "Arable land",
    "Vineyards": "Permanent crops",
    "Fruit trees and berry plantations": "Permanent crops",
    "Olive groves": "Permanent crops",
    "Pastures": "Pastures",
    "Annual crops associated with permanent crops": "Permanent crops",
    "Complex cultivation patterns": "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural vegetation": (
        "Land principally occupied by agriculture, with significant areas of natural vegetation"
    ),
    "Agro-forestry areas": "Agro-forestry areas",
    "Broad-leaved forest": "Broad-leaved forest",
    "Coniferous forest": "Coniferous forest",
    "Mixed forest": "Mixed forest",
    "Natural grassland": "Natural grassland and sparsely vegetated areas",
    "Moors and heathland": "Moors, heathland and sclerophyllous vegetation",
    "Sclerophyllous vegetation": "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland/shrub": "Transitional woodland, shrub",
    "Beaches, dunes, sands": "Beaches, dunes, sands",
    "Bare rock": None,
    "Sparsely vegetated areas": "Natural grassland and sparsely vegetated areas",
    "Burnt areas": None,
    "Inland marshes": "Inland wetlands",
    "Peatbogs": "Inland wetlands",
    "Salt marshes": "Coastal wetlands",
    "Salines": "Coastal wetlands",
    "Intertidal flats": None,
    "Water courses": "Inland waters",
    "Water bodies": "Inland waters",
    "Coastal lagoons": "Marine waters",
    "Estuaries": "Marine waters",
    "Sea and ocean": "Marine waters",
}

BIGEARTHNET_43: tuple[str, ...] = tuple(BIGEARTHNET_43_TO_19)

BIGEARTHNET_19: tuple[str, ...] = (
    "Urban fabric",
    "Industrial or commercial units",
    "Arable land",
    "Permanent crops",
    "Pastures",
    "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural vegetation",
    "Agro-forestry areas",
    "Broad-leaved forest",
    "Coniferous forest",
    "Mixed forest",
    "Natural grassland and sparsely vegetated areas",
    "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland, shrub",
    "Beaches, dunes, sands",
    "Inland wetlands",
    "Coastal wetlands",
    "Inland waters",
    "Marine waters",
)

# The simplified IGBP scheme of SEN12MS: each class with the IGBP codes that it merges (Schmitt
# and Wu 2021, arXiv:2104.00704; schmitt-muc/SEN12MS, classification/dataset.py).
IGBP_10_CODES: dict[str, tuple[int, ...]] = {
    "Forest": (1, 2, 3, 4, 5),
    "Shrubland": (6, 7),
    "Savanna": (8, 9),
    "Grassland": (10,),
    "Wetlands": (11,),
    "Croplands": (12, 14),
    "Urban/Built-up": (13,),
    "Snow/Ice": (15,),
    "Barren": (16,),
    "Water": (17,),
}

IGBP_10: tuple[str, ...] = tuple(IGBP_10_CODES)

# A class is a label of a patch from this fraction of its pixels on (same source).
IGBP_10_MIN_FRACTION = 0.1

# Label sets by the name under which a dataset stores them.
LABEL_SETS: dict[str, tuple[str, ...]] = {
    "bigearthnet-19": BIGEARTHNET_19,
    "bigearthnet-43": BIGEARTHNET_43,
    "sen12ms-igbp10": IGBP_10,
}


def labels_43_to_19(labels: Iterable[str]) -> list[str]:
    """The 19-class labels of a patch with these 43-class labels, in nomenclature order.

    Raises:
        ValueError: a label is not one of the 43 classes.
    """
    mapped: set[str] = set()
    for label in labels:
        if not isinstance(label, str) or label not in BIGEARTHNET_43_TO_19:
            raise ValueError(f"label {label!r} is not one of BigEarthNet's 43 classes")
        target = BIGEARTHNET_43_TO_19[label]
        if target is not None:
            mapped.add(target)
    return [name for name in BIGEARTHNET_19 if name in mapped]


def igbp_fractions(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The fraction of the pixels that each class of IGBP_10 covers, shape (10,), 0 to 1.

    Args:
        codes: IGBP codes of a patch, any shape. Codes other than 1 to 17 (255 is unclassified)
            belong to no class, but count as pixels: the fractions then add up to less than 1.
    """
    counts = np.bincount(codes.ravel(), minlength=256)
    return np.array([counts[list(merged)].sum() for merged in IGBP_10_CODES.values()]) / codes.size


def igbp_labels(fractions: npt.NDArray[np.float64]) -> list[str]:
    """The classes of IGBP_10 that cover IGBP_10_MIN_FRACTION or more, in their order."""
    shares = zip(IGBP_10, fractions, strict=True)
    return [name for name, share in shares if share >= IGBP_10_MIN_FRACTION]


def igbp_single_label(fractions: npt.NDArray[np.float64]) -> str | None:
    """The class of the largest fraction, the first of equal ones; None where nothing is classed."""
    return IGBP_10[int(fractions.argmax())] if fractions.any() else None


def label_column(label_set: str) -> str:
    """A set's column of `samples.parquet`: `bigearthnet-19` -> `labels_bigearthnet_19`."""
    return f"labels_{label_set.replace('-', '_')}"


def multi_hot(labels: Iterable[Sequence[str]], classes: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Multi-hot rows, shape (samples, classes), uint8 0 or 1, columns in the order of `classes`.

    Raises:
        ValueError: a label is not one of `classes`.
    """
    column = {name: index for index, name in enumerate(classes)}
    rows = list(labels)
    hot = np.zeros((len(rows), len(classes)), np.uint8)
    for row, names in enumerate(rows):
        for name in names:
            if name not in column:
                raise ValueError(f"label {name!r} is not one of the {len(classes)} classes")
            hot[row, column[name]] = 1
    return hot
