"""A tensor that may be spread over processes (FSDP2's DTensor), and the same tensor whole."""

from __future__ import annotations

from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, in every process; all must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def put(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in another's place, precision and sharding."""
    tensor = tensor.to(like.device, like.dtype)
    if not hasattr(like, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements)  # type: ignore[attr-defined]
