"""fusmae: sharded SAR and optical datasets, and the Fus-MAE masked autoencoder.

Importing this package imports nothing heavy; each part is imported by name:
`fusmae.data` (streaming), `fusmae.model`, `fusmae.training`, `fusmae.evaluation`.
`fusmae.load_encoder` and `fusmae.push_to_hub` are there at once and import torch when first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusmae.model.features import load_encoder
    from fusmae.model.hub import push_to_hub

__all__ = ["__version__", "load_encoder", "push_to_hub"]
__version__ = "0.1.0"

_HOMES = {"load_encoder": "fusmae.model.features", "push_to_hub": "fusmae.model.hub"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
