"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929), in plain PyTorch.

Letters: B images, C channels, H x W pixels, P patch side, N = H W / P^2 patches, D width of a
token, h heads of width d_k = D / h, M = mlp_ratio D, K classes. Attributes carry timm's names, so
timm's checkpoints load with strict=True.
"""

import torch
import torch.nn.functional as F
from torch import nn

# Table 1 of the paper; Ti and S are DeiT's (arXiv 2012.12877): depth, embed_dim, num_heads.
SIZES = {
    "Ti": (12, 192, 3),
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "H": (32, 1280, 16),
}
VARIANTS = ("Ti/16", "S/16", "S/32", "B/8", "B/16", "B/32", "L/16", "L/32", "H/14")


def check(given, allowed):
    """ValueError naming the first of given, {name: value}, that is not what allowed says it is."""
    for name, (words, fits) in allowed.items():
        if not fits(given[name]):
            raise ValueError(f"{name} is {given[name]!r}: it must be {words}")


COUNT = "a whole number, 1 or more", lambda n: n >= 1 and n == int(n)
COUNT_OR_0 = "a whole number, 0 or more", lambda n: n >= 0 and n == int(n)
NUMBER = "0 or more, and finite", lambda x: 0 <= x < float("inf")
BELOW_1 = "0 or more, and below 1", lambda x: 0 <= x < 1
ARGUMENTS = {  # what VisionTransformer takes, in words and as a test
    **dict.fromkeys(("patch_size", "in_chans", "embed_dim", "num_heads"), COUNT),
    **dict.fromkeys(("num_classes", "depth"), COUNT_OR_0),
    **dict.fromkeys(("norm_eps", "pos_embed_std"), NUMBER),
    "mlp_ratio": ("above 0, and finite", lambda x: 0 < x < float("inf")),
    "drop_rate": BELOW_1,
    "global_pool": ('"token" or "avg"', lambda x: x in ("token", "avg")),
    "representation_size": ("None, or 1 or more", lambda n: n is None or n >= 1),
}


class PatchEmbedding(nn.Module):
    """Images to patch tokens, x_p E of equation 1: (B, C, H, W) -> (B, N, D).

    A convolution whose stride is its kernel size is one linear map, applied to every patch.
    img_size is an int or (H, W). ValueError if patch_size does not divide it, or if the images
    that come do not have that size and in_chans channels.
    """

    def __init__(self, img_size=224, patch_size=16, in_chans=3, embed_dim=768):
        super().__init__()
        H, W = (img_size, img_size) if isinstance(img_size, int) else img_size
        if H < 1 or W < 1 or H % patch_size or W % patch_size:
            nearest = tuple(max(1, round(side / patch_size)) * patch_size for side in (H, W))
            raise ValueError(
                f"img_size is {H} x {W} and patch_size is {patch_size}: both sides must be a "
                f"multiple of patch_size; the nearest such img_size is {nearest}"
            )
        self.input_shape = (in_chans, H, W)
        self.grid_size = (H // patch_size, W // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x):
        if x.ndim != 4 or x.shape[1:] != self.input_shape:
            raise ValueError(
                f"images of shape {tuple(x.shape)} given, (B, C, H, W) with (C, H, W) = "
                f"{self.input_shape} needed: resize the images or build the model for them"
            )
        x = self.proj(x)  # (B, C, H, W) -> (B, D, H/P, W/P)
        return x.flatten(2).transpose(1, 2).contiguous()  # (B, D, N) -> (B, N, D)


def attention(q, k, v):
    """Equations 6 and 7, softmax(q k^T / sqrt(d_k)) v: three (B, h, N, d_k) -> (B, h, N, d_k).

    torch's fused kernel computes it without storing the (N, N) matrix. Its backward pass is slow in
    bfloat16 on a CPU (benchmarks/README.md), so there it is written out.
    """
    if q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, h, N, N)
        return scores.softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class MultiHeadSelfAttention(nn.Module):
    """MSA, equations 5 to 8: (B, N, D) -> (B, N, D), h heads side by side.

    qkv is U_qkv of all heads in one matrix, rows in the order q, k, v; proj is U_msa. Dropout comes
    after proj; the attention weights have none. ValueError if num_heads does not divide dim.
    """

    def __init__(self, dim, num_heads=8, drop_rate=0.0):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            divisors = [h for h in range(1, dim + 1) if dim % h == 0]
            nearest = min(divisors, key=lambda h: abs(h - num_heads))
            raise ValueError(
                f"num_heads is {num_heads} and the width is {dim}: the heads must divide the width "
                f"evenly; the nearest such num_heads is {nearest}"
            )
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x):
        B, N, D = x.shape
        heads = (B, N, self.num_heads, D // self.num_heads)  # (B, N, h, d_k)
        q, k, v = (t.view(heads).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        x = attention(q, k, v)  # three of (B, h, N, d_k) -> (B, h, N, d_k)
        x = x.transpose(1, 2).reshape(B, N, D)  # heads side by side again
        return self.proj_drop(self.proj(x))


class MLP(nn.Module):
    """The MLP of equation 3: each token by itself, (..., D) -> M -> (..., D), GELU between.

    GELU is the exact erf form, as in timm and torchvision. Dropout after both dense layers.
    """

    def __init__(self, dim, hidden_dim, drop_rate=0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x):
        x = self.drop(self.act(self.fc1(x)))  # (..., D) -> (..., M)
        return self.drop(self.fc2(x))  # (..., M) -> (..., D)


class EncoderBlock(nn.Module):
    """Equations 2 and 3, norm before each half and a residual around it: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim, num_heads, mlp_ratio=4.0, drop_rate=0.0, norm_eps=1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = MultiHeadSelfAttention(dim, num_heads, drop_rate)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, int(mlp_ratio * dim), drop_rate)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))  # equation 2
        return x + self.mlp(self.norm2(x))  # equation 3


class VisionTransformer(nn.Module):
    """Equations 1 to 4 and the head: images (B, C, H, W) -> logits (B, K).

    img_size: an int or (H, W). global_pool: "token" reads the class token; "avg" has none and reads
    the mean of the N normed tokens. representation_size puts the tanh layer of the pre-training
    head before the last linear layer (section 3.1). num_classes=0 leaves the head out and returns
    features. pos_embed_std is the standard deviation of the positions at the start. ValueError for
    sizes that do not fit together, at the start or at the call.
    """

    def __init__(self, img_size=224, patch_size=16, in_chans=3, num_classes=1000, embed_dim=768,
                 depth=12, num_heads=12, mlp_ratio=4.0, drop_rate=0.0, global_pool="token",
                 representation_size=None, norm_eps=1e-6, pos_embed_std=0.02):  # fmt: skip
        super().__init__()
        check(locals(), ARGUMENTS)
        self.patch_embed = PatchEmbedding(img_size, patch_size, in_chans, embed_dim)
        N, prefix = self.patch_embed.num_patches, int(global_pool == "token")
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if prefix else None
        self.pos_embed = nn.Parameter(torch.zeros(1, N + prefix, embed_dim))
        self.num_prefix_tokens = prefix  # the tokens before those of the patches
        self.pos_drop = nn.Dropout(drop_rate)
        block = (embed_dim, num_heads, mlp_ratio, drop_rate, norm_eps)
        self.blocks = nn.Sequential(*[EncoderBlock(*block) for _ in range(depth)])
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        features = representation_size or embed_dim
        tanh_layer = [nn.Linear(embed_dim, features), nn.Tanh()] if representation_size else []
        self.pre_logits = nn.Sequential(*tanh_layer)
        self.head = nn.Linear(features, num_classes) if num_classes else nn.Identity()
        self.pos_embed_std = pos_embed_std
        initialize(self, pos_embed_std)

    def forward_features(self, x):
        """Images (B, C, H, W) -> every token after the last norm: (B, N+1, D), or (B, N, D)."""
        x = self.patch_embed(x)  # (B, C, H, W) -> (B, N, D)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # (B, N+1, D)
        x = self.pos_drop(x + self.pos_embed)  # z_0, equation 1
        return self.norm(self.blocks(x))

    def forward(self, x):
        x = self.forward_features(x)  # (B, N+1, D)
        y = x.mean(dim=1) if self.cls_token is None else x[:, 0]  # equation 4: (B, D)
        return self.head(self.pre_logits(y))  # (B, K)

    def no_weight_decay(self):
        """Names of the parameters that are no matrices, so that weight decay leaves them alone."""
        return {"cls_token", "pos_embed"}


@torch.no_grad()
def initialize(model, pos_embed_std=0.02):
    """The official code's starting weights (google-research/vision_transformer, models_vit.py).

    Xavier-uniform for the encoder, with q, k and v each a (D, D) matrix of its own; MLP biases
    N(0, 1e-6), positions N(0, pos_embed_std); truncated normal of variance 1 / fan_in for the patch
    embedding and the tanh layer; zeros for the class token, the head and all other biases.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.zeros_(module.bias)
        if name.endswith("attn.qkv"):
            for matrix in module.weight.chunk(3):  # (3 D, D) -> three of (D, D)
                nn.init.xavier_uniform_(matrix)
        elif name.endswith(("attn.proj", "mlp.fc1", "mlp.fc2")):
            nn.init.xavier_uniform_(module.weight)
            if "mlp" in name:
                nn.init.normal_(module.bias, std=1e-6)
        elif name == "patch_embed.proj" or name.startswith("pre_logits."):
            if isinstance(module, nn.Linear | nn.Conv2d):
                std = module.weight[0].numel() ** -0.5 / 0.8796  # 0.8796: what truncation leaves
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        elif name == "head" and isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
    nn.init.normal_(model.pos_embed, std=pos_embed_std)


def nearest_variant(name):
    """The name in VARIANTS that comes closest: "B/16" for "vit_base_patch16_224" or "ViT-B-16"."""
    plain = str(name).upper().replace("DEIT", "").replace("VIT", "").replace("PATCH", "")
    parts = plain.translate(str.maketrans("_-.", "///")).split("/")
    starts, numbers = {p[:1] for p in parts}, {p.lstrip("ABEGHILMNRSTUY") for p in parts}
    usual = ("B/16", *VARIANTS)
    return min(usual, key=lambda v: (v[0] not in starts, v.split("/")[1] not in numbers))


def create_vit(variant, **overrides):
    """A model of Table 1 by its name, "B/16" say, any argument of VisionTransformer overridden.

    ValueError for a name that is not in VARIANTS.
    """
    if variant not in VARIANTS:
        raise ValueError(
            f"variant {variant!r} is unknown, did you mean {nearest_variant(variant)!r}? There "
            f"are: {', '.join(VARIANTS)}"
        )
    size, patch_size = variant.split("/")
    depth, embed_dim, num_heads = SIZES[size]
    sizes = dict(patch_size=int(patch_size), embed_dim=embed_dim, depth=depth, num_heads=num_heads)
    return VisionTransformer(**(sizes | overrides))
