"""Class names, the 43 -> 19 map of BigEarthNet and multi-hot encoding, always by name.

Order and map: Sumbul et al. 2021, arXiv:2105.07921; equal to `OLD2NEW_LABELS_DICT` of
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

# Label sets by the name under which a dataset stores them.
LABEL_SETS: dict[str, tuple[str, ...]] = {
    "bigearthnet-19": BIGEARTHNET_19,
    "bigearthnet-43": BIGEARTHNET_43,
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
