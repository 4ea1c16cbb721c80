"""The device and the precision in which a network computes, and transfers to the device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from wsi_assets.errors import ConfigError, ModelError


def resolve_device(name: str) -> torch.device:
    """The torch device with this name; ``auto`` is a CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: the name is not that of a CPU or CUDA device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device("cuda:0" if name == "cuda" else name)
    except RuntimeError:
        device = None
    gpus = torch.cuda.device_count()
    if device is None or not (device.type == "cpu" or (device.type == "cuda" and device.index < gpus)):
        raise ConfigError(
            f"there is no device {name!r} on this machine, on which torch finds {gpus} GPUs",
            remedy="Use auto, cpu, cuda or cuda:1",
        )
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """``auto`` is bfloat16 where the device computes with it natively, else float32.

    Emulated bfloat16 is slower than float32, so a CPU must have AMX or AVX-512 BF16 instructions.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        features = torch.cpu.get_capabilities()
        native = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return "bfloat16" if native else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which layers compute in ``precision``; weights, losses and sums stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``; copies to a GPU go through page-locked memory and are asynchronous."""
    if tensor.is_cpu and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@contextlib.contextmanager
def in_use(device: torch.device, batch_option: str) -> Iterator[None]:
    """Compute with fast cuDNN settings; at the end, restore them and torch's random state.

    Args:
        batch_option: name of the option that sets the batch size, for the error.

    Raises:
        ModelError: the GPU's memory is full.
    """
    on_gpu = device.type == "cuda"
    # All patches have one size: the search for the fastest convolution pays off from the second step on.
    fast = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True)
    try:
        with torch.random.fork_rng(devices=[device] if on_gpu else []), fast:
            yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            "the GPU's memory is full", remedy=f"Lower {batch_option}, or choose a smaller model_name"
        ) from error
