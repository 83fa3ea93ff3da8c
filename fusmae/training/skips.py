"""Skipped steps, whose loss or gradients were not finite: samples are named, too many end a run."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusmae.data import SplitReader
from fusmae.training.ledger import StepResult
from fusmae.training.metrics import MetricsWriter
from fusmae.training.source import Source

logger = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"


class Skips:
    """Lists each skipped step's samples in RUN/skipped.jsonl, and ends a run of too many."""

    def __init__(
        self,
        run: Path,
        sources: Sequence[Source],
        limit: int,
        resumed_step: int,
        in_a_row: int,
        writes: bool,
    ) -> None:
        """Continue the list after `resumed_step`.

        Args:
            run: the folder of the run, which a new run does not have yet.
            sources: the run's datasets.
            limit: as many skipped steps in a row end the run.
            resumed_step: updates made so far, 0 for a new run.
            in_a_row: the last steps of them that were skipped.
            writes: on rank 0 alone.
        """
        self._path = run / SKIPPED
        self._sources = sources
        self._limit = limit
        self.in_a_row = in_a_row
        self._failed_at: int | None = None
        self._writes = writes
        if writes and self._path.exists():
            MetricsWriter(self._path, resumed_step)

    def add(self, result: StepResult) -> None:
        """Count a step; called by all ranks with every step in turn."""
        if result.bad_rows is None:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if self._writes:
            samples = self._describe(result.bad_rows)
            try:
                MetricsWriter(self._path, result.step).write(
                    {"step": result.step, "samples": samples}
                )
            except OSError as error:
                logger.warning(
                    "step %d is missing in %s: %s", result.step, self._path, error.strerror
                )
        if self.in_a_row >= self._limit and self._failed_at is None:
            self._failed_at = result.step

    @property
    def are_too_many(self) -> bool:
        """Whether the run is to end; the same on all ranks."""
        return self._failed_at is not None

    def check(self, saved_step: int) -> None:
        """Raises ValueError if too many were skipped in a row; what is left is `saved_step`."""
        if self._failed_at is not None:
            raise ValueError(
                f"the loss or the gradients of step {self._failed_at} are not finite, as those of "
                f"{self._limit} steps in a row (run.max_skips_in_a_row); they were skipped and "
                f"have not touched the weights. {self._path} lists their samples: look at them, "
                f"then go on after them, from step {saved_step}, with --resume auto, or start anew "
                "with a lower optim.lr or with optim.clip_norm"
            )

    def _describe(self, rows: list[list[int]]) -> list[dict[str, Any]]:
        """Each sample's dataset, row and key; without keys where the dataset does not tell them."""
        keys = {source: _keys(self._sources[source]) for source in {source for source, _ in rows}}
        return [
            {"dataset": self._sources[source].manifest.name, "row": row}
            | ({"key": keys[source][row]} if keys[source] else {})
            for source, row in rows
        ]


def _keys(source: Source) -> list[str]:
    try:
        reader = SplitReader(source.path, source.data.split)
        try:
            return reader.keys()
        finally:
            reader.close()
    except (OSError, ValueError):
        return []
