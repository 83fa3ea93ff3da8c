"""Random flips and crops of stored arrays on their device, all sensors together.

They move pixels and change none: whatever resolution an array has, the same ground comes out.
What is drawn is a pure function of (seed, position), like masks, so ranks and micro-batches have
no say. No recipe uses them; Fus-MAE trains without augmentation.
"""

# B batch, C bands of an array, H and W its sides in pixels
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fusmae.hashing import below, hash_positions

# Keep these draws apart from each other and from masks of the same seed and position.
_FLIP_STREAM = int.from_bytes(b"flip")
_TOP_STREAM, _LEFT_STREAM = int.from_bytes(b"top"), int.from_bytes(b"left")


def random_flips(arrays: Mapping[str, Tensor], seed: int, positions: Tensor) -> dict[str, Tensor]:
    """Each sample as it is, or mirrored left to right, top to bottom, or both: one in four each.

    Args:
        arrays: by name, (B, C, H, W) of any dtype, all of the same ground; such as
            `Batch.arrays`.
        seed: any integer; its low 64 bits count.
        positions: (B,) int64, on the arrays' device.

    Returns:
        New tensors of the same shapes and dtypes.

    Raises:
        ValueError: `arrays` maps no name to one, an array is not (B, C, H, W) with a sample for
            each position, positions are not (B,) int64, or `seed` is no int.
    """
    drawn = below(hash_positions(positions, seed, _FLIP_STREAM), 4)
    _check_count(arrays, len(positions))
    return flip(arrays, drawn % 2 == 1, drawn >= 2)


def flip(arrays: Mapping[str, Tensor], left_right: Tensor, top_bottom: Tensor) -> dict[str, Tensor]:
    """Samples mirrored left to right and top to bottom where the masks (B,) bool say so."""
    flipped = {}
    for name, array in arrays.items():
        rows, columns = (
            torch.where(mask[:, None], place.flip(0), place)
            for mask, place in (
                (top_bottom, torch.arange(array.shape[-2], device=array.device)),
                (left_right, torch.arange(array.shape[-1], device=array.device)),
            )
        )
        flipped[name] = _gather(array, rows, columns)
    return flipped


def random_crops(
    arrays: Mapping[str, Tensor], size_px: int, seed: int, positions: Tensor
) -> dict[str, Tensor]:
    """A square of each sample, all places equally likely, the same ground in every array.

    Edges lie on pixel edges of every array, so a crop of BigEarthNet's arrays moves in steps of
    60 m, 6 px at 10 m; of the 10 m and 20 m arrays alone in steps of 20 m.

    Args:
        arrays: by name, (B, C, H, H) of any dtype, all of the same ground.
        size_px: side of the square in pixels of the finest array.
        seed: any integer; its low 64 bits count.
        positions: (B,) int64, on the arrays' device.

    Returns:
        By name, (B, C, h, h); h is `size_px` for the finest array and as much less for a
        coarser one as its pixels are larger.

    Raises:
        ValueError: the square does not fit, or its edges miss those of an array's pixels;
            positions are not (B,) int64; an array has not as many samples; `seed` is no int;
            or as `cell_grid`.
    """
    num_cells, cell_px = cell_grid(arrays)
    if size_px not in range(cell_px, num_cells * cell_px + 1, cell_px):
        raise ValueError(
            f"a crop of {size_px} px must be a multiple of {cell_px} px, where the pixels of "
            f"all arrays share their edges, and at most {num_cells * cell_px} px"
        )
    size_px = int(size_px)
    places = num_cells - size_px // cell_px + 1
    top = below(hash_positions(positions, seed, _TOP_STREAM), places)
    left = below(hash_positions(positions, seed, _LEFT_STREAM), places)
    _check_count(arrays, len(positions))
    return crop(arrays, size_px, top * cell_px, left * cell_px)


def crop(
    arrays: Mapping[str, Tensor], size_px: int, top_px: Tensor, left_px: Tensor
) -> dict[str, Tensor]:
    """The square of `size_px` at (B,) int64 rows `top_px` and columns `left_px` of each sample.

    All three count pixels of the finest array, and must be multiples of `cell_grid`'s cell.
    """
    finest = max(array.shape[-1] for array in arrays.values())
    cropped = {}
    for name, array in arrays.items():
        side = array.shape[-1]
        offset = torch.arange(size_px * side // finest, device=array.device)
        rows, columns = (start[:, None] * side // finest + offset for start in (top_px, left_px))
        cropped[name] = _gather(array, rows, columns)
    return cropped


def cell_grid(arrays: Mapping[str, Tensor]) -> tuple[int, int]:
    """The finest grid whose lines are pixel edges of every array.

    Returns:
        Its cells along a side, and a cell's side in pixels of the finest array.

    Raises:
        ValueError: `arrays` maps no name to one, or an array is not square.
    """
    for name, array in _items(arrays):
        if _ndim(array) != 4 or array.shape[-1] != array.shape[-2]:
            raise ValueError(_no_images(name, array, "(B, C, H, H)"))
    sides = [array.shape[-1] for array in arrays.values()]
    num_cells = math.gcd(*sides)
    return num_cells, max(sides) // num_cells


def _check_count(arrays: Mapping[str, Tensor], count: int) -> None:
    for name, array in _items(arrays):
        if _ndim(array) != 4 or len(array) != count:
            raise ValueError(_no_images(name, array, f"({count}, C, H, W), one a position"))


def _items(arrays: object) -> list[tuple[str, Tensor]]:
    """Names and arrays of what must be a mapping of some."""
    if not isinstance(arrays, Mapping) or not arrays:
        found = type(arrays).__name__ if not isinstance(arrays, Mapping) else "none"
        raise ValueError(
            f"arrays must map names to images, got {found}: give batch.arrays of a loader, or of a "
            "stream {name: batch[name] for name in ds.bands}"
        )
    return list(arrays.items())


def _ndim(array: object) -> int:
    return array.ndim if isinstance(array, Tensor) else -1


def _no_images(name: str, array: object, wanted: str) -> str:
    found = str(tuple(array.shape)) if isinstance(array, Tensor) else type(array).__name__
    return (
        f"array {name!r} must be {wanted}, got {found}: give the images of a batch alone, "
        "{name: batch[name] for name in ds.bands}"
    )


def _gather(array: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels (B, C, h, w) at each sample's `rows` (B, h) and `columns` (B, w)."""
    # torch moves few kinds of unsigned integers; two bytes are two bytes.
    pixels = array.view(torch.int16) if array.dtype == torch.uint16 else array
    sample = torch.arange(len(array), device=array.device).view(-1, 1, 1, 1)
    band = torch.arange(array.shape[1], device=array.device).view(1, -1, 1, 1)
    moved = pixels[sample, band, rows[:, None, :, None], columns[:, None, None, :]]
    return moved.view(array.dtype)
