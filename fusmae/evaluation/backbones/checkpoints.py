"""Published checkpoints to tensors: no code in them is run, and every key is accounted for."""

import argparse
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

# Keys of one kind that an error names; the others are counted.
_NAMED = 4


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a `.safetensors` file, or of one of torch's; tensors on the CPU.

    torch's is a pickle: only tensors, plain containers and argparse.Namespace, in which DINO
    keeps its options, are made from it.

    Raises:
        ValueError: it cannot be read, is damaged, holds other objects, or is no dict.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"cannot read the weights {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and is not loaded, since its code would run: "
            f"{_reason(error)}; save its state dict alone, best as safetensors"
        ) from None
    # What torch lets through for bytes that are no checkpoint, from its unpickler and zip reader.
    except (RuntimeError, EOFError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).partition(". ")[0].partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is damaged or no checkpoint of torch: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected tensors by name")
    return content


def _reason(error: Exception) -> str:
    """The line of torch's long message that names the object."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line.rstrip(".") for line in lines if "GLOBAL" in line), lines[0])


def take_tensors(
    found: Mapping[str, Any],
    expected: Mapping[str, Sequence[int]],
    unused: tuple[str, ...],
    where: str,
) -> dict[str, Tensor]:
    """Copies in float32 of the expected tensors, by their names in the checkpoint.

    Args:
        found: names to tensors, as read.
        expected: names to shapes.
        unused: starts of names that are known and not needed, such as a decoder's.
        where: the file and whose weights they should be, for the message.

    Raises:
        ValueError: a tensor is missing, has another shape, or is neither expected nor unused.
    """
    missing = [name for name in expected if name not in found]
    strange = [name for name in found if name not in expected and not name.startswith(unused)]
    other = [
        f"{name} ({_shape(found[name])}, expected {tuple(shape)})"
        for name, shape in expected.items()
        if name in found and _shape(found[name]) != str(tuple(shape))
    ]
    kinds = (("missing", missing), ("unexpected", strange), ("of another shape", other))
    problems = [f"{kind} {_some(names)}" for kind, names in kinds if names]
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}")
    return {name: found[name].to(torch.float32, copy=True).contiguous() for name in expected}


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
