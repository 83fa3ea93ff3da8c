"""The only place that knows DeepSpeed: an optimiser step, and the state behind it.

What the rest of the trainer sees is free of ZeRO stage, precision and world size: losses,
the norm of the gradients, and each parameter's fp32 weight and Adam moments by name.
"""

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError  # comes with deepspeed, which raises it
from torch import Tensor, nn

from fusmae.config import OptimConfig
from fusmae.training.ds_config import EnginePlan
from fusmae.training.optim import parameter_groups, torch_adamw
from fusmae.training.ranks import Ranks
from fusmae.training.step import SplitStep, StepGuard, Update


class ParameterState(NamedTuple):
    """One parameter's fp32 weight and Adam moments, each of the parameter's whole shape."""

    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


def join_ranks(ranks: Ranks, deterministic: bool) -> torch.device:
    """Start the process group; the device of this rank.

    On a CPU nothing is compiled: DeepSpeed's shared-memory all-reduce would need a compiler
    and half a minute, and gloo does the same.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            # Else every rank takes every core: 1,856 ms a step against 195 on 2 cores.
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.local_size))
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    import deepspeed  # here, because it reads DS_ACCELERATOR when it is imported

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed 0.19.8 calls functions that torch 2.13 has renamed; nobody here can act on it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if on_gpu:
        torch.cuda.set_device(ranks.local_rank)
    else:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return torch.device("cuda", ranks.local_rank) if on_gpu else torch.device("cpu")


def check_compile(plan: EnginePlan) -> None:
    """Whether `compile_model` can be had here.

    Raises:
        ValueError: there is no compiler, or ZeRO stage 3, which gathers weights between layers.
    """
    if plan.stage == 3:
        raise ValueError(
            "run.compile with ZeRO stage 3 is refused: DeepSpeed gathers weights inside the "
            "model's forward pass; set run.compile = false, or use stage 1 or 2"
        )
    if not (os.environ.get("CXX") or any(map(shutil.which, ("g++", "clang++", "c++")))):
        raise ValueError(
            "run.compile needs a C++ compiler (g++, clang++ or $CXX), there is none; "
            "install one, or set run.compile = false"
        )


def compile_model(model: nn.Module) -> None:
    """Have a module's forward and backward pass compiled when they first run, for one batch size.

    Before `Engine` takes a model: DeepSpeed's own `compile` compiles its hooks, too. Only the
    method is replaced, so parameters keep their names.
    """
    model.forward = torch.compile(model.forward, dynamic=False)


class Engine:
    """A model under DeepSpeed.

    The model is called as `model(images, masks)` and returns scalar losses by name, with
    their sum under "loss". Every method is called by all ranks together.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig, plan: EnginePlan) -> None:
        """Raises ValueError if DeepSpeed does not accept the configuration."""
        import deepspeed

        self.plan = plan
        if plan.deepspeed_adam:
            adam = _deepspeed_adam(model, optim, plan.offload)
        else:
            adam = torch_adamw(model, optim)
        # DeepSpeed moves and casts the model; its parameters stay the same objects.
        try:
            started = deepspeed.initialize(model=model, optimizer=adam, config=plan.config)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ValueError(f"DeepSpeed refuses its config at {key}: {first['msg']}") from None
        self._engine: Any = started[0]
        self._fragments = deepspeed.utils
        self._gathered = deepspeed.zero.GatheredParameters
        self._named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self._losses: list[Tensor] = []  # of the step's micro-batches
        self._split: SplitStep | None = None
        self._guard: StepGuard | None = None
        if plan.device_guard:
            self._split = SplitStep(self._engine.optimizer) if plan.stage else None
            self._guard = StepGuard(adam, optim.clip_norm, in_parts=plan.stage > 0)
        if plan.stage == 0 and torch.distributed.get_world_size() == 1:
            # Nothing to reduce, and DeepSpeed would still copy every gradient to and fro.
            self._engine.enable_backward_allreduce = False
        self._create_adam_state()

    @property
    def device(self) -> torch.device:
        device: torch.device = self._engine.device
        return device

    @property
    def _optimizer(self) -> Any:
        """The Adam that steps: DeepSpeed's wrapper around it exists from stage 1 on."""
        return self._engine.optimizer.optimizer if self.plan.stage else self._engine.optimizer

    def forward_backward(self, images: dict[str, Tensor], masks: Any) -> dict[str, Tensor]:
        """The losses of one micro-batch, detached; gradients are accumulated.

        `plan.accumulation` calls belong to a step, and `update` follows the last of them.
        """
        losses = self._engine(self._cast(images), masks)
        self._engine.backward(losses["loss"])
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
        detached = {name: loss.detach() for name, loss in losses.items()}
        self._losses.append(detached["loss"])
        return detached

    def losses(self, images: dict[str, Tensor], masks: Any) -> dict[str, Tensor]:
        """The losses of one micro-batch from which nothing is learned."""
        self._engine.eval()
        with torch.no_grad():
            losses: dict[str, Tensor] = self._engine(self._cast(images), masks)
        self._engine.train()
        return losses

    def _cast(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """The images in the dtype of the weights."""
        if self.plan.precision != "bf16":
            return images
        return {sensor: image.bfloat16() for sensor, image in images.items()}

    def update(self, rate: float) -> Update:
        """Clip and apply the accumulated gradients, unless their norm or a loss is not finite.

        A step that is skipped changes neither weights nor Adam's state. Under the default
        configurations (`plan.device_guard`) the host waits for nothing here.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        losses, self._losses = self._losses, []
        if self._guard is not None:
            update = self._guard.judge(self._gradients(), losses)
            self._engine.step()
            return update
        self._engine.step()
        norm: Any = self._engine.get_global_grad_norm()
        skipped = not self._engine.was_step_applied()
        if self.plan.stage == 3:
            # DeepSpeed 0.19.8 overwrites the gradients of the parameters that a step uses; those
            # of a sensor that is left out would be the last step's again.
            self._engine.optimizer.grad_partitions_flat_buffer.zero_()
        return Update(torch.tensor(float(norm)), torch.tensor(float(skipped)))

    def _gradients(self) -> list[Tensor]:
        """This rank's accumulated gradients: all of them at stage 0, else its part."""
        if self._split is None:
            for _, parameter in self._named:
                if parameter.grad is None:  # of a sensor that was left out
                    parameter.grad = torch.zeros_like(parameter)
            return [p.grad for _, p in self._named if p.grad is not None]
        return self._split.gradients()

    def sum_over_ranks(self, values: list[float | Tensor]) -> list[float]:
        """The sums of numbers that each rank has its own of, exact in float64; synchronises."""
        stacked = torch.stack(
            [torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in values]
        )
        torch.distributed.all_reduce(stacked)
        return stacked.tolist()

    def is_any(self, mine: bool) -> bool:
        """Whether it is so on any rank; synchronises."""
        return self.sum_over_ranks([float(mine)])[0] > 0

    def gather_over_ranks(self, value: Any) -> list[Any]:
        """One picklable value of each rank, in rank order."""
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        torch.distributed.barrier()

    @property
    def adam_steps(self) -> int:
        """Updates that Adam has made; its bias correction depends on it."""
        # DeepSpeed's FusedAdam counts in one state of each group only, hence the maximum.
        return max((int(state["step"]) for state in self._optimizer.state.values()), default=0)

    def states(self) -> Iterator[tuple[str, ParameterState]]:
        """Each trainable parameter's name and whole state, in the model's order.

        A tensor is valid until the next one is asked for.
        """
        if self.plan.stage == 0:
            for name, parameter in self._named:
                state = self._optimizer.state[parameter]
                yield (
                    name,
                    ParameterState(parameter.detach(), state["exp_avg"], state["exp_avg_sq"]),
                )
            return
        get_moment = self._fragments.safe_get_full_optimizer_state
        for name, parameter in self._named:
            weight = self._fragments.safe_get_full_fp32_param(parameter)
            moments = (get_moment(parameter, key) for key in ParameterState._fields[1:])
            yield name, ParameterState(weight, *moments)

    def restore(self, state_of: Callable[[str], ParameterState], adam_steps: int) -> None:
        """Set every parameter's state and Adam's count of updates.

        Args:
            state_of: the whole state of the parameter of this name, on the CPU, the same on
                every rank.
            adam_steps: as `adam_steps` was when the state was taken.
        """
        for adam in self._optimizer.state.values():
            counter = adam["step"]
            adam["step"] = (
                torch.full_like(counter, adam_steps) if torch.is_tensor(counter) else adam_steps
            )
        for name, parameter in self._named:
            state = state_of(name)
            whole = self._gathered([parameter], modifier_rank=0, enabled=self.plan.stage == 3)
            with whole, torch.no_grad():
                parameter.copy_(state.weight)
            if self.plan.stage == 0:
                for key in ParameterState._fields[1:]:
                    self._optimizer.state[parameter][key].copy_(getattr(state, key))
            elif self.plan.stage == 3:
                self._set_partition(parameter, state)
            else:
                self._fragments.safe_set_full_fp32_param(parameter, state.weight)
                for key in ParameterState._fields[1:]:
                    self._fragments.safe_set_full_optimizer_state(
                        parameter, getattr(state, key), key
                    )

    def _set_partition(self, parameter: Any, state: ParameterState) -> None:
        """Set this rank's part of a parameter's state under stage 3.

        DeepSpeed's `safe_set_full_*` fails at stage 3 where the ranks do not divide the
        parameter: the last part is padded, which is what happens here.
        """
        size = parameter.ds_tensor.numel()
        start = size * torch.distributed.get_rank()

        def part(whole: Tensor) -> Tensor:
            piece = whole.flatten()[start : start + size]
            return nn.functional.pad(piece, (0, size - len(piece)))

        self._fragments.safe_set_local_fp32_param(parameter, part(state.weight))
        for key in ParameterState._fields[1:]:
            self._fragments.safe_set_local_optimizer_state(
                parameter, part(getattr(state, key)), key
            )

    def _create_adam_state(self) -> None:
        """Make Adam's state, zeros, as its first step would.

        Otherwise DeepSpeed 0.19.8 links its fragments to the state after the first parameter
        group's first step, when the second group still has none, and never again. A restored
        run needs the state before its first step, too. The attribute names are DeepSpeed's.
        """
        wrapper = self._engine.optimizer
        if self.plan.stage == 0:
            tensors = [parameter for _, parameter in self._named]
        elif self.plan.stage == 3:
            tensors = wrapper.fp32_partitioned_groups_flat
        else:
            tensors = wrapper.single_partition_of_fp32_groups
        for tensor in tensors:
            self._optimizer.state[tensor] = {
                "step": 0 if self.plan.deepspeed_adam else torch.zeros((), device=tensor.device),
                "exp_avg": torch.zeros_like(tensor.detach()),
                "exp_avg_sq": torch.zeros_like(tensor.detach()),
            }
        if self.plan.stage in (1, 2):
            wrapper._lazy_init_hp_params_optimizer_state()


def _deepspeed_adam(model: nn.Module, optim: OptimConfig, offload: bool) -> Any:
    """DeepSpeed's AdamW, of the GPU or of the host; it compiles its kernel on first use."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    return (DeepSpeedCPUAdam if offload else FusedAdam)(
        parameter_groups(model, optim.weight_decay),
        lr=optim.warmup_lr,
        betas=optim.betas,
        eps=optim.eps,
    )
