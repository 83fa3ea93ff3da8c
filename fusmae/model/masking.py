"""Which tokens the encoder sees, a pure function of (seed, position), and which sensors.

`position` is a sample's place in the endless sequence of training samples. Neither the
rank, the micro-batch, the device nor torch's random state has a say, so a run is the same
however it is split.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusmae.config import ModelConfig
from fusmae.hashing import below, hash_positions, outputs
from fusmae.sensors import dataset_sensor

# Keeps masks apart from anything else that is drawn from the same seed and position.
_MASK_DOMAIN = int.from_bytes(b"masking")
_DROPOUT_DOMAIN = int.from_bytes(b"dropout")
# The words of a draw are read as fractions of this.
_ONE = 1 << 53


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


def draw_sensors(sensors: Sequence[str], dropout: float, seed: int, step: int) -> list[str]:
    """The sensors that an optimiser step trains on, in their order: all of them, or all but one.

    With the chance `dropout` one sensor, each as likely as the others, is absent from the whole
    step, as it may be at evaluation: skipped with its cross-attention terms. Groups of a sensor's
    bands (`s2_10m`, `s2_20m`) are absent together, as that sensor is. A pure function of
    (seed, step), so all ranks and micro-batches of a step run the same modules on tensors of the
    same shapes. A sensor that is alone is never left out.

    Pretraining takes no loss of the absent sensor. A sensor's decoder sees that sensor's own
    latents and nothing else of the image (Eq. 10: XAttnDecoder's queries are those latents
    too): without any it would predict the mean image from mask tokens, and its gradient
    would end there, at weights of the decoder alone.
    """
    words = outputs(hash_positions(torch.tensor([step]), seed, _DROPOUT_DOMAIN), 2)
    whole = list(dict.fromkeys(map(dataset_sensor, sensors)))
    chance, which = below(words[:, 0], _ONE).item(), below(words[:, 1], len(whole)).item()
    if len(whole) == 1 or chance >= dropout * _ONE:
        return list(sensors)
    return [sensor for sensor in sensors if dataset_sensor(sensor) != whole[int(which)]]


def _random_order(num_tokens: int, seed: int, stream: int, positions: Tensor) -> Tensor:
    """A permutation of the tokens for each position, (B, N) int64.

    The tokens' sort keys are the first N outputs of splitmix64 started from the hash of the
    position.
    """
    keys = outputs(hash_positions(positions, seed, _MASK_DOMAIN + stream), num_tokens)
    return keys.argsort(dim=1, stable=True)
