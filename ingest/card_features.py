"""The `dataset_info` of a card: what Hugging Face `datasets` finds in a sample's tar members.

Without it the library guesses from the first samples, and fails where a field is null in them
and filled later.
"""

import json
from collections.abc import Sequence

import numpy as np

from fusmae.manifest import Manifest

from .facts import Fact

_TYPES = {
    "string": "dtype: string",
    "time": "dtype: string",
    "flag": "dtype: bool",
    "fractions": "list: float64",
}


def features_yaml(manifest: Manifest, facts: Sequence[Fact], config: str) -> list[str]:
    """Lines of YAML: the members of the shards as features of the config of this name.

    A field of KEY.json that is not declared would be dropped in silence, so all are.
    """
    lines = ["dataset_info:", f"- config_name: {config}", "  features:"]
    for spec in manifest.arrays:
        dtype = np.dtype(spec.dtype).name
        lines += [
            f"  - name: {spec.name}.npy",
            f"    dtype: {{array3_d: {{shape: {list(spec.shape)}, dtype: {dtype}}}}}",
        ]
    lines += ["  - name: json", "    struct:"]
    lines += ["    - {name: crs, dtype: string}", "    - {name: transform, list: float64}"]
    sets = ", ".join(f"{{name: {name}, list: string}}" for name in manifest.label_sets)
    if sets:
        lines += ["    - name: labels", f"      struct: [{sets}]"]
    lines += [f"    - {{name: {json.dumps(fact.name)}, {_TYPES[fact.kind]}}}" for fact in facts]
    lines += [f"  - {{name: {name}, dtype: string}}" for name in ("__key__", "__url__")]
    return lines
