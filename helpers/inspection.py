"""Numbers about a model that is already there: what it computed on the way to its answer."""

import torch


@torch.no_grad()
def attention_maps(model, x):
    """Who looks at whom: images (B, C, H, W) -> one (B, h, N+1, N+1) tensor for each block.

    Entry [b, i, q, k] is the share of token k in what head i gives to token q, so rows sum to 1;
    row and column 0 are the class token (without one, N instead of N+1). Equations 5 and 6, from
    the qkv that a forward hook reads in every block: the model runs as it is and is left as it
    was. Call model.eval() first, or dropout shakes the numbers. ValueError if x has no batch.
    """
    if x.ndim != 4:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, (B, C, H, W) is needed: give one image as image[None]"
        )
    maps, hooks = [], []

    def recorder(num_heads):
        def record(module, inputs, qkv):
            B, N, width = qkv.shape
            qkv = qkv.view(B, N, 3, num_heads, width // (3 * num_heads))
            q, k, _ = qkv.permute(2, 0, 3, 1, 4)  # three of (B, h, N, d_k)
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, h, N, N)
            maps.append(scores.softmax(dim=-1))

        return record

    try:
        for block in model.blocks:
            record = recorder(block.attn.num_heads)
            hooks.append(block.attn.qkv.register_forward_hook(record))
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return maps
