"""What steps have left on the device, until it is read: one wait for many steps.

Reading is also when ranks agree to stop or to save, and when a skipped step is first known.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fusmae.training.engine import Engine
from fusmae.training.step import Update

# Between two readings at most, in steps of the last ones' length: a signal comes 30 s before
# the kill, and the checkpoint has to be written in them, too.
_READ_EVERY_S = 5.0


@dataclass(frozen=True)
class StepResult:
    """One step, the same on every rank.

    step: updates made with it, skipped ones included.
    losses: means over ranks and micro-batches by name; of the sensors shown, and "loss".
    norm: of the gradients, before clipping.
    replaced: samples that stand in for ones of bad shards.
    bad_rows: [source, row] of the samples that a skipped step is to be blamed on: those of the
        micro-batches whose loss is not finite, or the whole batch if all are; None where the step
        was not skipped.
    """

    step: int
    losses: dict[str, float]
    norm: float
    replaced: int
    bad_rows: list[list[int]] | None


class _Entry(NamedTuple):
    step: int
    names: list[str]
    table: Tensor  # (micro-batches, names) float32
    update: Update
    sample_ids: list[Tensor]
    replaced: int


class Ledger:
    """The losses, norms and verdicts of the steps since the last reading."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._read_at = time.perf_counter()
        self._due = 1  # entries; the first step's length is not known yet

    def add(
        self,
        step: int,
        losses: Sequence[dict[str, Tensor]],
        update: Update,
        sample_ids: Sequence[Tensor],
        replaced: int,
    ) -> None:
        """Keep a step.

        Args:
            step: updates made with this one.
            losses: this rank's, a micro-batch each, as the engine gives them.
            update: as the engine gives it.
            sample_ids: (B, 2) of each micro-batch.
            replaced: samples of this rank that stand in for others.
        """
        names = list(losses[0])
        table = torch.stack([micro[name] for micro in losses for name in names])
        table = table.view(len(losses), len(names))
        self._entries.append(_Entry(step, names, table, update, list(sample_ids), replaced))

    @property
    def is_due(self) -> bool:
        """Whether it is time to read; the same on every rank."""
        return len(self._entries) >= self._due

    def read(
        self, engine: Engine, stop: bool, save: bool = False
    ) -> tuple[list[StepResult], bool, bool]:
        """The steps since the last reading, in order; whether any rank asks to stop, or to save.

        Called by all ranks together; waits for the device. At least one `add` came before.
        """
        entries, self._entries = self._entries, []
        now = time.perf_counter()
        means = [mean for entry in entries for mean in entry.table.double().mean(dim=0)]
        replaced = [float(entry.replaced) for entry in entries]
        stops, saves, elapsed, *sums = engine.sum_over_ranks(
            [float(stop), float(save), now - self._read_at, *replaced, *means]
        )
        ranks = torch.distributed.get_world_size()
        self._due = max(1, int(_READ_EVERY_S * len(entries) * ranks / elapsed))
        self._read_at = now
        verdicts = torch.stack([torch.stack(entry.update) for entry in entries]).tolist()
        num_replaced, sums = sums[: len(entries)], sums[len(entries) :]
        results = []
        for entry, (norm, skipped), count in zip(entries, verdicts, num_replaced, strict=True):
            own, sums = sums[: len(entry.names)], sums[len(entry.names) :]
            losses = {name: total / ranks for name, total in zip(entry.names, own, strict=True)}
            is_bad = bool(skipped) or not math.isfinite(losses["loss"])
            rows = _bad_rows(engine, entry) if is_bad else None
            results.append(StepResult(entry.step, losses, norm, int(count), rows))
        return results, stops > 0, saves > 0


def _bad_rows(engine: Engine, entry: _Entry) -> list[list[int]]:
    """The samples of the micro-batches whose loss is not finite, else of all; on all ranks."""
    is_bad = (~entry.table.isfinite().all(dim=1)).tolist()
    batches = [ids.tolist() for ids in entry.sample_ids]
    blamed = [row for bad, rows in zip(is_bad, batches, strict=True) if bad for row in rows]
    gathered = engine.gather_over_ranks((blamed, [row for rows in batches for row in rows]))
    named = [row for mine, _ in gathered for row in mine]
    return named or [row for _, everything in gathered for row in everything]
