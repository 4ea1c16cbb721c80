"""One training in several processes, started by torch's own launcher.

``torchrun --nproc-per-node=4 script.py``, where the script calls ``train`` as it would alone: each process
takes its part of every batch, gradients and metrics are those of the whole batch, and rank 0 writes the files
and calls back. Batch statistics are shared between GPUs (SyncBatchNorm); on the CPU, where torch has no such
layer, each process uses its own part's and rank 0's running statistics are kept.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, distributed, nn

from wsi_assets.errors import ConfigError, one_line


@dataclass(frozen=True)
class Group:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def bounds(self, count: int) -> tuple[int, int]:
        """This process's half-open part of ``count`` consecutive things; parts differ by one at most."""
        edges = self._edges(count)
        return int(edges[self.rank]), int(edges[self.rank + 1])

    def gather(self, local: Tensor, count: int) -> Tensor:
        """Join the parts (``bounds`` of ``count``) of all processes in order; gradients do not flow."""
        if self.size == 1:
            return local.detach()
        sizes = np.diff(self._edges(count))
        padded = local.new_zeros((int(sizes.max()), *local.shape[1:]))
        padded[: len(local)] = local.detach()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def total(self, local: Tensor) -> Tensor:
        """Sum over all processes."""
        if self.size > 1:
            distributed.all_reduce(local)
        return local

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The module to call in training; its gradients are the mean of all processes'."""
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's running statistics, so that all validate the same network."""
        if self.size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def _edges(self, count: int) -> np.ndarray:
        return np.linspace(0, count, self.size + 1).round().astype(int)


def process_group(device: torch.device) -> Group:
    """The group torchrun started this process in, or a group of one.

    Joined on first use, it is left when the process ends: a second training in the same process would
    otherwise join again while another process is still leaving, and find its old address.

    Raises:
        ConfigError: ``WORLD_SIZE`` tells of other processes, and they cannot be joined.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and the other processes are not found "
                f"({one_line(error)[:200]})",
                remedy="Start with torchrun, or unset WORLD_SIZE to train in one process",
            ) from error
        atexit.register(_leave)
    if distributed.is_available() and distributed.is_initialized():
        return Group(distributed.get_rank(), distributed.get_world_size())
    return Group()


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def shared_batch_norm(model: nn.Module, group: Group, device: torch.device) -> nn.Module:
    """Batch statistics over all GPUs of the group."""
    if group.size > 1 and device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model
