"""An encoder of some sensors and bands, with the weights of one of more."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fusmae.model.encoder import FusMAEEncoder
from fusmae.model.pretrained import EncoderCard


def choose_bands(
    card: EncoderCard, sensors: Sequence[str] | None, bands: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The bands of each sensor kept, in the encoder's order of sensors.

    Args:
        card: the encoder's.
        sensors: those to keep; None for all.
        bands: sensor -> bands in the order wanted; all of a sensor that is not named.

    Raises:
        ValueError: an unknown sensor or band, one named twice, or none left.
    """
    kept = list(card.bands) if sensors is None else list(sensors)
    unknown = [sensor for sensor in (*kept, *bands) if sensor not in card.bands]
    if unknown or not kept:
        raise ValueError(f"the encoder has no sensor {unknown}; it has {list(card.bands)}")
    unused = [sensor for sensor in bands if sensor not in kept]
    if unused:
        raise ValueError(f"bands of {unused} are given, but sensors are {kept}")
    chosen: dict[str, tuple[str, ...]] = {}
    for sensor, known in card.bands.items():
        if sensor not in kept:
            continue
        names = tuple(bands.get(sensor, known))
        if not names or len(set(names)) < len(names) or not set(names) <= set(known):
            raise ValueError(
                f"bands of sensor {sensor!r} must be some of the encoder's, each once: "
                f"{', '.join(known)}; got {', '.join(names)}"
            )
        chosen[sensor] = names
    return chosen


def select_bands(
    encoder: FusMAEEncoder, card: EncoderCard, bands: Mapping[str, tuple[str, ...]]
) -> tuple[FusMAEEncoder, EncoderCard]:
    """The encoder and its card for these sensors and bands only, all known to the card.

    Every weight is the given encoder's; of the patch embeddings, those of the bands chosen.
    """
    places = {
        sensor: [card.bands[sensor].index(name) for name in names]
        for sensor, names in bands.items()
    }
    smaller = replace(
        card,
        bands=dict(bands),
        mean={s: tuple(card.mean[s][place] for place in places[s]) for s in bands},
        std={s: tuple(card.std[s][place] for place in places[s]) for s in bands},
    )
    selected = FusMAEEncoder(card.model, smaller.channels)
    weights = encoder.state_dict()
    state = {name: weights[name] for name in selected.state_dict()}
    for name, members in selected.members.items():
        planes = _planes(encoder, name, {sensor: places[sensor] for sensor in members})
        key = f"patch_embed.{name}.weight"
        state[key] = weights[key][:, planes]  # (D, planes, P, P)
    selected.load_state_dict(state)
    return selected, smaller


def _planes(encoder: FusMAEEncoder, name: str, places: Mapping[str, Sequence[int]]) -> list[int]:
    """The planes of the patch embedding `name` that these channels of its sensors have."""
    planes: list[int] = []
    start = 0
    for sensor in encoder.members[name]:
        count = encoder.planes[sensor]
        if sensor in places:
            # A class map has one channel and a plane for each class.
            own = range(count) if encoder.config.num_classes_of(sensor) else places[sensor]
            planes += [start + place for place in own]
        start += count
    return planes
