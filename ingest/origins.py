"""What the source archives say of themselves: authors, licence, citation, processing level.

A dataset's manifest carries the entry of its archive as `source`; the card and `croissant.json`
are written from that. Fields: `title`, `version` of the archive, `url`, `creators`, `publisher`,
`published` (the day of the paper's preprint: the archives' own pages were uploaded anew since),
`licence`, `licence_id` (Hugging Face's), `licence_url`, `citation`, `bibtex`, `processing`.
"""

from typing import Any

from .simulate import SIMULATOR_RELEASED, SIMULATOR_VERSION

_CDLA = {
    "licence": "CDLA-Permissive-1.0",
    "licence_id": "cdla-permissive-1.0",
    "licence_url": "https://spdx.org/licenses/CDLA-Permissive-1.0.html",
}

BIGEARTHNET_V1: dict[str, Any] = {
    "title": "BigEarthNet-MM v1.0",
    "version": "1.0.0",
    "url": "https://zenodo.org/records/12687186",
    "creators": [
        "Gencer Sumbul",
        "Arne de Wall",
        "Tristan Kreuziger",
        "Filipe Marcelino",
        "Hugo Costa",
        "Pedro Benevides",
        "Mário Caetano",
        "Begüm Demir",
        "Volker Markl",
    ],
    "publisher": "Zenodo",
    "published": "2021-05-17",
    **_CDLA,
    "citation": "Sumbul et al. 2021, BigEarthNet-MM, arXiv:2105.07921",
    "bibtex": """\
@article{sumbul2021bigearthnetmm,
  title = {{BigEarthNet-MM}: A Large-Scale, Multimodal, Multilabel Benchmark Archive for Remote
    Sensing Image Classification and Retrieval},
  author = {Sumbul, Gencer and de Wall, Arne and Kreuziger, Tristan and Marcelino, Filipe and
    Costa, Hugo and Benevides, Pedro and Caetano, M{\\'a}rio and Demir, Beg{\\"u}m and
    Markl, Volker},
  journal = {IEEE Geoscience and Remote Sensing Magazine},
  volume = {9},
  number = {3},
  pages = {174--180},
  year = {2021},
  doi = {10.1109/MGRS.2021.3089174},
}
""",
    "processing": "Sentinel-1 GRD, IW, VV and VH in dB; Sentinel-2 L2A (sen2cor 2.5).",
}

BIGEARTHNET_V2: dict[str, Any] = {
    "title": "BigEarthNet v2.0 (reBEN)",
    "version": "2.0.0",
    "url": "https://zenodo.org/records/10891137",
    "creators": [
        "Kai Norman Clasen",
        "Leonard Hackel",
        "Tom Burgert",
        "Gencer Sumbul",
        "Begüm Demir",
        "Volker Markl",
    ],
    "publisher": "Zenodo",
    "published": "2024-07-04",
    **_CDLA,
    "citation": "Clasen et al. 2024, reBEN, arXiv:2407.03653",
    "bibtex": """\
@inproceedings{clasen2025reben,
  title = {{reBEN}: Refined {BigEarthNet} Dataset for Remote Sensing Image Analysis},
  author = {Clasen, Kai Norman and Hackel, Leonard and Burgert, Tom and Sumbul, Gencer and
    Demir, Beg{\\"u}m and Markl, Volker},
  booktitle = {IEEE International Geoscience and Remote Sensing Symposium (IGARSS)},
  year = {2025},
  eprint = {2407.03653},
  archivePrefix = {arXiv},
}
""",
    "processing": "Sentinel-1 GRD, IW, VV and VH in dB; Sentinel-2 L2A (sen2cor 2.11).",
}

SEN12MS: dict[str, Any] = {
    "title": "SEN12MS",
    "version": "1.0.0",
    "url": "https://mediatum.ub.tum.de/1474000",
    "creators": ["Michael Schmitt", "Lloyd Haydn Hughes", "Chunping Qiu", "Xiao Xiang Zhu"],
    "publisher": "Technical University of Munich",
    "published": "2019-06-18",
    "licence": "CC-BY-4.0",
    "licence_id": "cc-by-4.0",
    "licence_url": "https://creativecommons.org/licenses/by/4.0/",
    "citation": "Schmitt et al. 2019, SEN12MS, arXiv:1906.07789",
    "bibtex": """\
@article{schmitt2019sen12ms,
  title = {{SEN12MS} -- A Curated Dataset of Georeferenced Multi-Spectral {Sentinel-1/2} Imagery
    for Deep Learning and Data Fusion},
  author = {Schmitt, Michael and Hughes, Lloyd Haydn and Qiu, Chunping and Zhu, Xiao Xiang},
  journal = {ISPRS Annals of the Photogrammetry, Remote Sensing and Spatial Information Sciences},
  volume = {IV-2/W7},
  pages = {153--160},
  year = {2019},
  doi = {10.5194/isprs-annals-IV-2-W7-153-2019},
}
""",
    "processing": "Sentinel-1 GRD, IW, VV and VH, sigma nought in dB; Sentinel-2 L1C "
    "(top of atmosphere), all 13 bands on the 10 m grid.",
}


def request_origin(
    name: str, archive: dict[str, Any], simulation: dict[str, Any] | None
) -> dict[str, Any]:
    """A request's name, origin and simulated flag.

    `simulation` is what the simulator signed the archive with, None for an observed one. Of a
    simulated archive nothing is said to be by the authors of the genuine one but its layout.
    """
    if simulation is None:
        return {"name": name, "simulated": False, "origin": dict(archive)}
    origin = {
        **archive,
        "title": f"SIMULATED {archive['title']} archive",
        "version": f"{SIMULATOR_VERSION}.0.0",
        "creators": [],
        "publisher": None,
        "published": SIMULATOR_RELEASED,
        "licence": "CC0-1.0 (simulated pixels)",
        "licence_id": "cc0-1.0",
        "licence_url": "https://creativecommons.org/publicdomain/zero/1.0/",
        "simulation": simulation,
    }
    return {"name": f"simulated-{name}", "simulated": True, "origin": origin}
