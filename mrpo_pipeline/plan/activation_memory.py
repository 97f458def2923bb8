"""Peak activation memory of a model, traced by running its code on torch's fake tensors, which have shapes and dtypes but no data.

Counts every storage from the operation that allocates it until its last reference goes: what autograd keeps for the backward
pass, what gradient checkpointing recomputes, gradients and temporaries. Does not count a kernel's own workspace, nor freed blocks
that an allocator keeps.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mrpo_pipeline.models import head_logps
from mrpo_pipeline.models.head import Head
from mrpo_pipeline.models.head_logps import LogitForm
from mrpo_pipeline.terminal import one_line

log = logging.getLogger("mrpo")


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts live bytes over the operations in its ``with`` block.

    Attributes:
        held: bytes of the models passed to ``hold``. now: live bytes, those included. peak: their maximum.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def hold(self, model: nn.Module) -> None:
        """Count a model's tensors as live from the start."""
        before = self.now
        for tensor in [*model.parameters(), *model.buffers()]:
            self._add(tensor)
        self.held += self.now - before

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self.now += self._alive[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


@contextmanager
def on_fake_device(model: nn.Module, *, as_gpu: bool = False) -> Iterator[Any]:
    """Replace the meta tensors of a model by fake ones; gives the mode under which they compute.

    Their device is the CPU, whose attention kernel keeps the same tensors as a GPU's.

    Args:
        as_gpu: use the GPU's chunk size of the output projection.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    with mode:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        fake: torch.Tensor = torch.empty(tensor.shape, dtype=tensor.dtype)
                        if isinstance(tensor, nn.Parameter):
                            fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
                        made[id(tensor)] = fake, tensor
                    tensors[name] = made[id(tensor)][0]  # type: ignore[assignment]
    chunk = head_logps.CPU_CHUNK_BYTES
    try:
        if as_gpu:
            head_logps.CPU_CHUNK_BYTES = head_logps.GPU_CHUNK_BYTES
        yield mode
    finally:
        head_logps.CPU_CHUNK_BYTES = chunk


def traced_bytes(
    model: nn.Module, run: Callable[[], None], *, as_gpu: bool, computing: AbstractContextManager[Any] | None = None
) -> tuple[int | None, str]:
    """Peak live bytes of a run in addition to the empty model's own; or None and the reason if it can't run on fake tensors.

    Args:
        run: uses the model. computing: a context around it, such as autocast.
    """
    live = LiveBytes()
    try:
        with on_fake_device(model, as_gpu=as_gpu) as mode:
            live.hold(model)
            with mode, live, computing or nullcontext():
                run()
    except Exception as error:  # an architecture may need the data of its tensors
        log.debug("tracing the model failed", exc_info=True)
        return None, f"{type(error).__name__}: {one_line(error, 160)}"
    return live.peak - live.held, ""


def head_for(model: Any) -> Head:
    """The head of a model without weights, by its configuration; unlike ``models.head`` it can't be checked, which needs weights."""
    text = model.config.get_text_config()
    cap = getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None)
    projection = model.get_output_embeddings()
    backbone = model.base_model
    if projection is None or backbone is model:
        return Head(model, notice="its head is not separable")
    return Head(
        model, backbone=backbone, projection=projection, form=LogitForm(1.0, cap), vocab_size=projection.weight.shape[0]
    )
