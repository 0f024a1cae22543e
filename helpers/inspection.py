"""Numbers about a model that is already there: what it computed on the way to its answer."""

import torch
import torch.nn.functional as F


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


@torch.no_grad()
def position_similarity(model):
    """Cosine of each position embedding with every other: (N, N), the class row left out.

    Figure 7, centre, of the paper; row i, reshaped to the grid of patches, is its small picture i.
    """
    positions = model.pos_embed[0, model.cls_token is not None :]  # (N, D)
    return F.cosine_similarity(positions[:, None], positions[None], dim=-1)  # (N, N)


def token_similarity(tokens):
    """How alike the tokens of an image are: (B, N, D) -> (B,), the mean cosine over all pairs.

    A token's cosine with itself is left out, so tokens at right angles give 0, equal ones give 1.
    """
    N = tokens.shape[1]
    unit = F.normalize(tokens, dim=-1)  # (B, N, D)
    cosines = unit @ unit.transpose(1, 2)  # (B, N, N)
    return (cosines.sum(dim=(1, 2)) - N) / (N * (N - 1))


@torch.no_grad()
def tokens_after_each_block(model, x):
    """Images (B, C, H, W) -> L + 1 tensors (B, N+1, D): z_0, then z_1 to z_L, read by hooks.

    Before the last norm. The model is left as it was; call model.eval() first.
    """
    tokens, hooks = [], []
    try:
        read = lambda module, inputs, output: tokens.append(output)  # noqa: E731
        hooks = [part.register_forward_hook(read) for part in (model.pos_drop, *model.blocks)]
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return tokens
