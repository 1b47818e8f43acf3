"""Memory of the attention mask over a clip of 8 x 32 x 32 codes (BAIR and ViZDoom, Table 9: 16 layers).

Computed on any machine: the boolean mask of our dense fallback, shared by all layers; the block mask of FlexAttention,
which replaces it on CUDA; and the float matrix that the official full attention keeps in every layer. On CUDA the peak
memory of one layer's attention, forward and backward, is measured too: sparse with FlexAttention, causal with the fused
kernel, and the official attention, which stores all scores and their softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.models.attention import Mask, attend
from worldmodel.models.decoding_order import DecodingOrder
from worldmodel.models.sparse_attention import block_mask, clip_mask

LATENT, LOCAL_WINDOW, LAYERS, HEADS, CHANNELS = (8, 32, 32), 128, 16, 4, 128


def mask_memory(device: str, latent: tuple[int, int, int] = LATENT, local_window: int = LOCAL_WINDOW) -> dict[str, int]:
    """Bytes of each kind of mask or attention."""
    t, h, w = latent
    order, length = DecodingOrder("raster", h, w, 1), t * h * w
    blocks = block_mask(order, t, t, local_window, torch.device(device))
    parts = [part for part in blocks.as_tuple() if isinstance(part, Tensor)]
    shape = f"{t} x {h} x {w}"
    found = {
        f"mask of bits at {shape}, once for all layers": clip_mask(order, t, t, local_window).nbytes,
        f"block mask of FlexAttention at {shape}, once for all layers": sum(part.nbytes for part in parts),
        f"the official mask of floats at {shape}, in each layer": 4 * length**2,
        f"the same in {LAYERS} layers": LAYERS * 4 * length**2,
    }
    if device == "cuda":
        sparse: dict[str, Mask] = {"sparse, FlexAttention": blocks, "causal, fused": "causal"}
        for what, mask in sparse.items():
            found[f"peak of a layer's attention: {what}"] = peak_memory(length, mask)
        full = torch.ones(length, length, device=device).tril()
        found["peak of a layer's attention: full mask, the official way"] = full.nbytes + peak_memory(length, full)
    return found


def peak_memory(length: int, mask: Mask) -> int:
    """Peak bytes of attention in bfloat16, forward and backward, on CUDA; a float mask uses the official attention."""
    q, k, v = (
        torch.randn(1, HEADS, length, CHANNELS, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    if isinstance(mask, Tensor):
        scores = (q @ k.mT / CHANNELS**0.5).masked_fill(mask == 0, float("-inf"))
        out = scores.softmax(-1) @ v
    else:
        out = attend(q, k, v, mask)
    out.sum().backward()
    return torch.cuda.max_memory_allocated() - before
