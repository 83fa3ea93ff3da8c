"""Makes `import torchvision` work beside a CPU build of torch.

There is no CPU wheel of torchvision for every torch: the one on PyPI is linked against
CUDA, cannot load its compiled operators beside a CPU torch, and then fails at import with
`operator torchvision::nms does not exist`. timm and torchmetrics import torchvision, so
they fail with it, although neither needs a compiled operator of it here.
"""

import importlib
import importlib.util
import sys

import torch

# As torchvision declares them in csrc/ops/nms.cpp and csrc/ops/quantized/cpu/qnms_kernel.cpp.
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_MISSING = ("nms", "qnms")
# A library's schemas are withdrawn when it is collected.
_libraries: list[torch.library.Library] = []


def repair_torchvision() -> bool:
    """Make `import torchvision` succeed where only its compiled operators are missing.

    Call it before importing timm or torchmetrics. It does nothing where torchvision is
    absent or healthy, and leaves any other import error to whoever imports torchvision.

    Returns:
        Whether a repair was made by this call.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            return False
    except ImportError:
        return False
    else:
        return False
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in _MISSING:
        library.define(f"{name}{_SCHEMA}")  # type: ignore[no-untyped-call]
    _libraries.append(library)
    importlib.import_module("torchvision")
    return True
