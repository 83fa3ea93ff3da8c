"""Which tokens the encoder sees: a pure function of (seed, position).

`position` is a sample's place in the endless sequence of training samples. Neither the
rank, the micro-batch, the device nor torch's random state has a say, so a run is the same
however it is split.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fusmae.config import ModelConfig
from fusmae.hashing import hash_positions, outputs

# Keeps masks apart from anything else that is drawn from the same seed and position.
_MASK_DOMAIN = int.from_bytes(b"masking")


@dataclass(frozen=True)
class Masks:
    """Token numbers by sensor, int64, ascending: `visible` (B, Nv) and `masked` (B, N - Nv).

    The encoder sees `visible`, the loss is taken on `masked`; each token is in one of them.
    """

    visible: dict[str, Tensor]
    masked: dict[str, Tensor]


def draw_masks(config: ModelConfig, sensors: Sequence[str], seed: int, positions: Tensor) -> Masks:
    """Masks of a batch, on the device of `positions`; no host synchronisation.

    Every sensor keeps `config.num_visible` of `config.num_tokens` tokens, all choices being
    equally likely. With `consistent` masking all sensors keep the same tokens, with
    `independent` masking the i-th sensor draws its own from stream i.

    Args:
        config: sizes, ratio and masking strategy.
        sensors: sensor names in the model's order.
        seed: any integer; its low 64 bits count.
        positions: (B,) int64.
    """
    visible: dict[str, Tensor] = {}
    masked: dict[str, Tensor] = {}
    for stream, sensor in enumerate(sensors):
        if stream > 0 and config.masking == "consistent":
            visible[sensor], masked[sensor] = visible[sensors[0]], masked[sensors[0]]
            continue
        order = _random_order(config.num_tokens, seed, stream, positions)
        visible[sensor] = order[:, : config.num_visible].sort(dim=1).values
        masked[sensor] = order[:, config.num_visible :].sort(dim=1).values
    return Masks(visible, masked)


def _random_order(num_tokens: int, seed: int, stream: int, positions: Tensor) -> Tensor:
    """A permutation of the tokens for each position, (B, N) int64.

    The tokens' sort keys are the first N outputs of splitmix64 started from the hash of the
    position.
    """
    keys = outputs(hash_positions(positions, seed, _MASK_DOMAIN + stream), num_tokens)
    return keys.argsort(dim=1, stable=True)
