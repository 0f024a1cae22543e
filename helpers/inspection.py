"""Numbers about a model that is already there: what it computed on the way to its answer.

x is a batch of images as the model takes them: (B, C, H, W), normalised, on the model's device.
Every function puts the model into eval mode, and leaves it as it was.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F


@contextmanager
def visiting(model):
    """Inside, model is in eval mode; yields a list for the handles of hooks.

    Afterwards, also after an error, every module has its mode back and the listed hooks are gone.
    """
    modes, hooks = [(module, module.training) for module in model.modules()], []
    try:
        model.eval()
        yield hooks
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training


# Attention


@torch.no_grad()
def attention_maps(model, x):
    """Who looks at whom: images (B, C, H, W) -> one (B, h, N+1, N+1) tensor for each block.

    Entry [b, i, q, k] is the share of token k in what head i gives to token q, so rows sum to 1;
    row and column 0 are the class token (without one, N instead of N+1). Equations 5 and 6, from
    the qkv that a forward hook reads in every block: the model runs as it is and is left as it
    was. ValueError if x has no batch.
    """
    if x.ndim != 4:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, (B, C, H, W) is needed: give one image as image[None]"
        )
    maps = []

    def recorder(num_heads):
        def record(module, inputs, qkv):
            B, N, width = qkv.shape
            qkv = qkv.view(B, N, 3, num_heads, width // (3 * num_heads))
            q, k, _ = qkv.permute(2, 0, 3, 1, 4)  # three of (B, h, N, d_k)
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, h, N, N)
            maps.append(scores.softmax(dim=-1))

        return record

    with visiting(model) as hooks:
        for block in model.blocks:
            record = recorder(block.attn.num_heads)
            hooks.append(block.attn.qkv.register_forward_hook(record))
        model(x)
    return maps


@torch.no_grad()
def attention_distance(model, x, batch_size=64):
    """How far each head looks: images (B, C, H, W) -> (L, h), in pixels.

    Figures 7 (right) and 11, appendix D.7: patch side times the Euclidean distance on the grid of
    patches, weighted by attention, summed over keys; the mean over queries and images. The class
    token's row and column are dropped and the rest is not renormalised, so what a patch gives to
    the class token counts as distance 0. batch_size: images at once.
    """
    rows, cols = model.patch_embed.grid_size
    row, col = torch.arange(rows), torch.arange(cols)
    places = torch.cartesian_prod(row, col).to(x)  # (N, 2)
    distance = (places[:, None] - places[None]).norm(dim=-1)  # (N, N), in patches
    distance *= model.patch_embed.proj.stride[0]
    first, total = model.num_prefix_tokens, 0
    for batch in x.split(batch_size):
        for_layers = [
            (found[:, :, first:, first:] * distance).sum(dim=-1).mean(dim=-1).sum(dim=0)  # (h,)
            for found in attention_maps(model, batch)
        ]
        total = total + torch.stack(for_layers)  # (L, h)
    return (total / len(x)).cpu()


def attention_rollout(maps):
    """How much of each first token is in each last one: maps of L blocks -> (B, N+1, N+1).

    maps: what attention_maps returns. Figures 6 and 14, appendix D.8, after Abnar and Zuidema
    (arXiv 2005.00928): heads averaged; the identity added, which stands for the residual; rows
    divided by their sum; then A_L ... A_2 A_1, for the first layer acts first. Row q says what
    token q of z_L is made of, if values and MLPs are left out of the account; rows sum to 1.
    """
    found = None
    for attention in maps:
        layer = attention.mean(dim=1)  # (B, h, N+1, N+1) -> (B, N+1, N+1)
        layer = layer + torch.eye(layer.shape[-1]).to(layer)
        layer = layer / layer.sum(dim=-1, keepdim=True)
        found = layer if found is None else layer @ found
    return found


def answer_mask(attention, model):
    """What the answer takes from each patch: (..., N+1, N+1) -> (..., rows, cols).

    The class token's row, cut to the patches; of a model without one, (..., N, N), the mean over
    the rows, which its head reads. attention: a rollout, figure 6, or raw maps of a block of model,
    for each head or averaged. ValueError if it is not of this model's tokens.
    """
    N, prefix = model.patch_embed.num_patches, model.num_prefix_tokens
    if attention.shape[-1] != N + prefix:
        raise ValueError(
            f"attention between {attention.shape[-1]} tokens given, the model has {N} patches and "
            f"{prefix} tokens before them: give the model of the maps"
        )
    row = attention[..., 0, prefix:] if prefix else attention.mean(dim=-2)
    return row.unflatten(-1, model.patch_embed.grid_size)


# Weights


@torch.no_grad()
def position_similarity(model):
    """Cosine of each position embedding with every other: (N, N), the class row left out.

    Figure 7, centre, of the paper; row i, reshaped to the grid of patches, is its small picture i.
    """
    positions = model.pos_embed[0, -model.patch_embed.num_patches :]  # (N, D)
    return F.cosine_similarity(positions[:, None], positions[None], dim=-1)  # (N, N)


# Tokens


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

    Before the last norm. The model is left as it was.
    """
    tokens = []
    with visiting(model) as hooks:
        for part in (model.pos_drop, *model.blocks):
            read = lambda module, inputs, output: tokens.append(output)  # noqa: E731
            hooks.append(part.register_forward_hook(read))
        model(x)
    return tokens
