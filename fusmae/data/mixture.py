"""Several datasets as one stream: a fixed quota of each in every global batch.

Each dataset keeps a `TrainLoader`, an order and a ring of its own; their samples meet on the
device, once each `Preprocess` has brought its own to the model's bands and grid.
"""

# B samples of a micro-batch, C channels of a sensor, S the model's grid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from fusmae.data.loader import TrainLoader
from fusmae.data.opening import no_len
from fusmae.data.order import fold_seed
from fusmae.data.preprocess import Preprocess
from fusmae.data.ring import Batch
from fusmae.data.whole import whole


@dataclass(frozen=True)
class MixedBatch:
    """One micro-batch of a mixture: the samples of each source in turn, B in all.

    parts: a batch a source, as stored.
    positions: (B,) int64, the place of each sample in the mixture, unique over all sources.
    sample_ids: (B, 2) int64, the number of its source and its row in that source's split.

    `positions` and `sample_ids` are the caller's own; `parts` live as `TrainLoader` says.
    """

    parts: tuple[Batch, ...]
    positions: Tensor
    sample_ids: Tensor


def cut_quotas(quotas: Sequence[int], world_size: int, micro_batch: int) -> list[int]:
    """Samples of each source in one micro-batch of one rank.

    Every micro-batch holds the same number of each source, so that a global batch is the same
    samples on any number of ranks.

    Raises:
        ValueError: the micro-batch does not divide the global batch, or what it comes to does not
            divide a quota.
    """
    micro_batch, world_size = whole("micro_batch", micro_batch), whole("world_size", world_size)
    global_batch = sum(quotas)
    pieces = global_batch // micro_batch
    if pieces * micro_batch != global_batch or pieces % world_size:
        raise ValueError(
            f"a global batch of {global_batch} does not divide into micro-batches of "
            f"{micro_batch} on {world_size} ranks; it must be a multiple of "
            f"{world_size * micro_batch}"
        )
    if any(quota % pieces for quota in quotas):
        raise ValueError(
            f"quotas {', '.join(map(str, quotas))} do not divide among the {pieces} micro-batches "
            f"of {micro_batch} that make a global batch: each must be a multiple of {pieces}; "
            "change the quotas or train_micro_batch_size_per_gpu"
        )
    return [quota // pieces for quota in quotas]


def _check_list(who: str, found: object, kind: type) -> None:
    """Raises ValueError unless this is a sequence of one `kind` or more."""
    items = found if isinstance(found, list | tuple) else [found]
    others = [type(item).__name__ for item in items if not isinstance(item, kind)]
    if items is not found or others or not items:
        told = ", ".join(others) or ("none" if not items else f"one {kind.__name__}, not in a list")
        raise ValueError(f"{who} needs a list of one {kind.__name__} or more, got {told}")


def source_seed(seed: int, source: int) -> int:
    """The seed of a source's order: the first source's is the run's own."""
    return fold_seed(seed, source) if source else seed


class MixtureLoader:
    """An endless iterator over one rank's micro-batches of several sources, or of one.

    Global batch t holds positions [tB, (t + 1)B), source after source: position p of a source
    with quota q, whose quotas before it add up to o, is (p // q) * B + o + p % q here. That is one
    number for each (source, p) and one for each number, whatever the ranks, micro-batches and
    restarts; of a single source it is p itself. Batches live as those of `TrainLoader`.
    """

    def __init__(self, loaders: Sequence[TrainLoader]) -> None:
        """Join loaders of one rank; a source's quota is its loader's global batch.

        Raises:
            ValueError: there is no loader, something is none, they cut a global batch into
                different numbers of micro-batches, or do not all stand at the same one.
        """
        _check_list("a mixture", loaders, TrainLoader)
        pieces = {loader.micro_batches_per_step for loader in loaders}
        if len(pieces) != 1:
            raise ValueError(
                f"the loaders of a mixture must make as many micro-batches of a step each, "
                f"these make {[loader.micro_batches_per_step for loader in loaders]}"
            )
        places = [loader.place for loader in loaders]
        # The positions of one source alone are its own, and it may stop and go on at any.
        if len(places) > 1 and (len(set(places)) > 1 or places[0][1]):
            told = [f"{step} + {rest} samples + {batches}" for step, rest, batches in places]
            raise ValueError(
                "the loaders of a mixture must all stand at one batch of one step, these stand "
                f"after (steps + samples + batches) {', '.join(told)}: give new loaders, and load "
                "the mixture's state"
            )
        self._loaders = tuple(loaders)
        quotas = [loader.global_batch for loader in loaders]
        self._global_batch = sum(quotas)
        self._places = [(quota, sum(quotas[:source])) for source, quota in enumerate(quotas)]

    def __repr__(self) -> str:
        return f"MixtureLoader({list(self._loaders)})"

    def __len__(self) -> NoReturn:
        raise TypeError(no_len(self))

    def __iter__(self) -> Iterator[MixedBatch]:
        return self

    def __next__(self) -> MixedBatch:
        try:
            parts = tuple(next(loader) for loader in self._loaders)
        except BaseException:
            self.close()
            raise
        positions = [
            part.positions // quota * self._global_batch + offset + part.positions % quota
            for part, (quota, offset) in zip(parts, self._places, strict=True)
        ]
        ids = [
            torch.stack([torch.full_like(part.sample_ids, source), part.sample_ids], dim=1)
            for source, part in enumerate(parts)
        ]
        return MixedBatch(parts, torch.cat(positions), torch.cat(ids))

    @property
    def num_replaced(self) -> int:
        """Samples handed out so far that stand in for one of a bad shard."""
        return sum(loader.num_replaced for loader in self._loaders)

    def state_dict(self) -> dict[str, Any]:
        """Each source's state, the same on every rank; JSON-ready.

        All of the same step: where one source could not be read, others have handed out more.
        """
        num_steps = min(loader.place[0] for loader in self._loaders)
        return {"sources": [loader.state_after(num_steps) for loader in self._loaders]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; batches read ahead are dropped.

        The global batch may be another one if each source has its old share of it. What is refused
        changes nothing.

        Raises:
            ValueError: the state is of another number of sources or of other ones, or it is not
                at the same whole step of each.
        """
        sources = state.get("sources") if isinstance(state, Mapping) else None
        if not isinstance(sources, list):
            found = list(state) if isinstance(state, Mapping) else repr(state)
            raise ValueError(
                "cannot resume: this is no state of a mixture, which has {'sources': [a loader's "
                f"state for each]}}, it is {found}"
            )
        if len(sources) != len(self._loaders):
            raise ValueError(
                f"cannot resume a mixture of {len(self._loaders)} datasets from a state of "
                f"{len(sources)}"
            )
        pairs = list(zip(self._loaders, sources, strict=True))
        consumed = [loader.consumed_in(part) for loader, part in pairs]
        quotas = [quota for quota, _ in self._places]
        steps = {divmod(count, quota) for count, quota in zip(consumed, quotas, strict=True)}
        # The positions of one source alone are its own, and it may stop and go on at any.
        if len(pairs) > 1 and not (len(steps) == 1 and steps.pop()[1] == 0):
            raise ValueError(
                f"cannot resume a mixture with quotas {', '.join(map(str, quotas))} after "
                f"{', '.join(map(str, consumed))} samples of its sources, which is not one whole "
                "number of steps: resume with the quotas with which it was saved, or with others "
                "of the same ratio whose steps end there"
            )
        for loader, part in pairs:
            loader.load_state_dict(part)

    def close(self) -> None:
        """Close every loader. May be called again."""
        for loader in self._loaders:
            loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MixedPreprocess(nn.Module):
    """The parts of a `MixedBatch` to one image a sensor, each by its own dataset's statistics.

    A band is the recipe's by its name: BigEarthNet's B02 is surface reflectance (L2A), SEN12MS's
    top-of-atmosphere (L1C), and each is normalised as what it is.
    """

    def __init__(self, preprocesses: Sequence[Preprocess]) -> None:
        """Join what prepares each source, in the order of the sources.

        Raises:
            ValueError: there is none, something is none, or they differ in bands or grid.
        """
        super().__init__()
        _check_list("MixedPreprocess", preprocesses, Preprocess)
        shapes = [(one.bands, one.size_px) for one in preprocesses]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(f"the images of a mixture must be of one shape, got {shapes}")
        self.sources = nn.ModuleList(preprocesses)

    def forward(self, parts: Sequence[Batch]) -> dict[str, Tensor]:
        """Sensor -> float32 (B, C, S, S), samples in the order of `MixedBatch.positions`.

        Raises:
            ValueError: they are not the `MixedBatch.parts` of as many sources.
        """
        if not isinstance(parts, Sequence) or len(parts) != len(self.sources):
            found = len(parts) if isinstance(parts, Sequence) else type(parts).__name__
            raise ValueError(f"give batch.parts, of {len(self.sources)} sources; got {found}")
        images = [one(part.arrays) for one, part in zip(self.sources, parts, strict=True)]
        if len(images) == 1:
            return images[0]
        return {sensor: torch.cat([image[sensor] for image in images]) for sensor in images[0]}
