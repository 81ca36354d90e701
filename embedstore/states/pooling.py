"""Reduces the states of a text's tokens to one vector."""

from __future__ import annotations

from typing import Any

POOLS = ("mean", "last", "first", "max")


def pooled(states: Any, mask: Any, pool: str) -> Any:
    """States (n_texts, n_tokens, dim) as (n_texts, dim), over the tokens where ``mask`` (n_texts, n_tokens) is 1.

    pool: 'mean', 'last', 'first' or 'max' of those tokens, on whichever side a batch is padded. float32.
    """
    import torch

    states = states.float()
    if pool == "mean":
        weight = mask.to(states.dtype)
        total = torch.bmm(weight.unsqueeze(1), states).squeeze(1)
        return total / weight.sum(dim=1, keepdim=True).clamp(min=1e-9)
    if pool == "max":
        return states.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).max(dim=1).values
    places = torch.arange(mask.shape[1], device=mask.device)
    if pool == "first":
        chosen = torch.where(mask > 0, places, mask.shape[1]).min(dim=1).values.clamp(max=mask.shape[1] - 1)
    else:
        chosen = torch.where(mask > 0, places, -1).max(dim=1).values.clamp(min=0)
    return states[torch.arange(len(states), device=states.device), chosen]
