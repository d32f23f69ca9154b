"""Copy nested containers of tensors to host memory, with the same sharing of storages."""

from __future__ import annotations

import copy
from typing import Any

import torch


def copy_to_host(value: Any) -> Any:
    """Return a deep copy of `value` whose tensors are in host memory.

    Tensors that share a storage share one in the copy, so that `torch.save` writes the same file for both, except for
    the device. From a GPU, storages are copied to pinned memory, and the function waits for all copies at the end.
    """
    storages: dict[int, torch.UntypedStorage] = {}
    found = _copied(value, storages)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found


def _copied(value: Any, storages: dict[int, torch.UntypedStorage]) -> Any:
    if isinstance(value, torch.Tensor):
        return _copied_tensor(value, storages)
    if isinstance(value, dict):
        found = copy.copy(value)  # keeps the class and attributes, such as the `_metadata` of a state dict
        for name, item in value.items():
            found[name] = _copied(item, storages)
        return found
    if type(value) in (list, tuple):
        return type(value)(_copied(item, storages) for item in value)
    return copy.deepcopy(value)


def _copied_tensor(tensor: torch.Tensor, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
    storage = tensor.untyped_storage()
    if storage._cdata not in storages:
        is_gpu = storage.device.type == "cuda"
        copied = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=is_gpu)
        source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        storages[storage._cdata] = copied.copy_(source, non_blocking=is_gpu).untyped_storage()
    found = torch.empty(0, dtype=tensor.dtype)
    found.set_(storages[storage._cdata], tensor.storage_offset(), tensor.shape, tensor.stride())
    return found.requires_grad_(tensor.requires_grad)
