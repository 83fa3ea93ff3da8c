"""When a run saves, and how it trains on meanwhile: a snapshot in host memory, then a thread.

`checkpoint.py` knows what a checkpoint is on the disk.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from fusmae.config import RunConfig
from fusmae.training.checkpoint import CHECKPOINTS, Tensors, newest_state, write_checkpoint
from fusmae.training.engine import Engine, ParameterState


class Snapshot:
    """Host memory for all weights and moments in fp32, filled anew at each save.

    Page-locked beside a GPU, for fast copies, and taken once, at the start: a save then pauses
    the training for no more than the copy.
    """

    def __init__(self, engine: Engine, held: bool) -> None:
        """`held` is whether this rank keeps the tensors; called by all ranks together."""
        self._engine = engine
        self.tensors: Tensors = {}
        shapes = {name: state.weight.shape for name, state in engine.states()}
        if not held:
            return
        sizes = [shape.numel() for shape in shapes.values()]
        for part in ParameterState._fields:
            # Filled with zeros, since the system gives the memory when it is first written to.
            flat = torch.empty(sum(sizes), pin_memory=engine.device.type == "cuda").zero_()
            self.tensors[part] = {
                name: piece.view(shape)
                for (name, shape), piece in zip(
                    shapes.items(), torch.split(flat, sizes), strict=True
                )
            }

    def take(self) -> None:
        """Copy the engine's state; called by all ranks together.

        Raises:
            ValueError: a weight or a moment is not finite.
        """
        extremes: list[Tensor] = []
        for name, whole in self._engine.states():
            for part, named in self.tensors.items():
                tensor: Tensor = getattr(whole, part)
                named[name].copy_(tensor, non_blocking=True)
                extremes += (value.to(self._engine.device) for value in tensor.aminmax())
        if not extremes:
            return
        # Waits for the copies, too.
        finite = torch.stack(extremes).isfinite().view(-1, len(self.tensors), 2).all(2).tolist()
        for name, parts in zip(self.tensors["weight"], finite, strict=True):
            for part, is_finite in zip(self.tensors, parts, strict=True):
                if not is_finite:
                    raise ValueError(
                        f"{part} of {name} is not finite, so no checkpoint is written; resume "
                        "from the previous one, or start anew with a lower optim.lr or clip_norm"
                    )


class Saver:
    """Writes a run's checkpoints in the background; one is written at a time.

    A save that fails for want of space or rights is told by `say` and counted in `num_failed`;
    the training goes on and the next save tries again.
    """

    def __init__(
        self, run: Path, engine: Engine, config: RunConfig, rank: int, say: Callable[[str], None]
    ) -> None:
        """Called by all ranks together; rank 0 writes, and `say` is its."""
        self.num_failed = 0
        self._run = run
        self._engine = engine
        self._config = config
        self._say = say
        self._is_writer = rank == 0
        self._snapshot = Snapshot(engine, held=self._is_writer)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._failure: str | None = None
        self._next_s = self._after_interval()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Before an error ends the run, too, what is being written is completed."""
        self._thread.shutdown(wait=True)

    @property
    def is_due(self) -> bool:
        """Whether rank 0's clock asks for a save; False on all others."""
        return self._is_writer and time.monotonic() >= self._next_s

    @property
    def weights(self) -> dict[str, Tensor]:
        """Rank 0's fp32 weights of the last save, by name; valid until the next one."""
        return self._snapshot.tensors["weight"]

    def save(self, state: dict[str, Any]) -> None:
        """Start to write the engine's state and `state`, whose "step" names the checkpoint.

        Called by all ranks together. Returns once the state is copied, which waits for the
        checkpoint before it to be written.

        Raises:
            ValueError: a weight or a moment is not finite; nothing is written.
        """
        started = time.monotonic()
        self._wait()
        try:
            self._snapshot.take()
        except ValueError as error:
            raise ValueError(f"step {state['step']}: {error}") from None
        self._next_s = self._after_interval()
        if self._is_writer:
            state = {**state, "adam_steps": self._engine.adam_steps}
            paused_s = time.monotonic() - started
            self._pending = self._thread.submit(self._write, state, paused_s)

    def finish(self) -> None:
        """Wait until the last save is on the disk; called by all ranks together.

        Raises:
            ValueError: it failed, on every rank.
        """
        self._wait()
        failure = self._engine.gather_over_ranks(self._failure)[0]
        if failure is not None:
            raise ValueError(failure)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def _write(self, state: dict[str, Any], paused_s: float) -> None:
        """In the thread."""
        step, config, started = state["step"], self._config, time.monotonic()
        try:
            write_checkpoint(
                self._run,
                self._snapshot.tensors,
                state,
                config.keep_checkpoints,
                config.keep_every_steps,
            )
        except OSError as error:
            self.num_failed += 1
            newest = newest_state(self._run)
            self._failure = (
                f"step {step} could not be saved in {self._run / CHECKPOINTS}: "
                f"{error.strerror or error}; the newest checkpoint is "
                f"{'of step {}'.format(newest['step']) if newest else 'none'}"
            )
            self._say(f"warning: {self._failure}; the next save tries again")
        else:
            self._failure = None
            written_s = time.monotonic() - started
            self._say(f"step {step}  saved in {written_s:.1f} s, training paused {paused_s:.2f} s")

    def _after_interval(self) -> float:
        minutes = self._config.save_every_minutes
        return time.monotonic() + 60 * minutes if minutes else math.inf
