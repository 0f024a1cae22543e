"""How other libraries name and shape the weights of a ViT, in tables.

One row for each of our tensors: our name | their name, if another | how theirs becomes ours, if not
as it is. * is "weight" and then "bias"; {i} is the number of a block; [a b c] are three tensors
that lie stacked in ours, in this order. Where our name has two rows, one file has the first and
another the second. Sources: timm 1.0 and DeiT (facebookresearch/deit),
torchvision.models.vision_transformer, google-research/vision_transformer (vit_jax/models_vit.py)
and google-research/big_vision (models/vit.py).
"""

import re
from typing import NamedTuple

# D width, h heads, d = D / h. Theirs -> ours. Linear layers: ours (out, in), as in torch.
RESHAPES = {
    "as it is": lambda w: w,
    "HWIO -> OIHW": lambda w: w.permute(3, 2, 0, 1),  # (P, P, C, D) -> (D, C, P, P)
    "(in, out) -> (out, in)": lambda w: w.permute(1, 0),
    "(D, h, d) -> (hd, D)": lambda w: w.flatten(1).permute(1, 0),  # one of q, k, v
    "(h, d, D) -> (D, hd)": lambda w: w.flatten(0, 1).permute(1, 0),  # U_msa
    "(h, d) -> (hd)": lambda w: w.flatten(),
}

TIMM = """
patch_embed.proj.*
cls_token
pos_embed
blocks.{i}.norm1.*
blocks.{i}.attn.qkv.*
blocks.{i}.attn.qkv.*  | blocks.{i}.attn.[q k v].*
blocks.{i}.attn.qkv.*  | blocks.{i}.attn.[q_proj k_proj v_proj].*
blocks.{i}.attn.proj.*
blocks.{i}.norm2.*
blocks.{i}.mlp.fc1.*
blocks.{i}.mlp.fc2.*
norm.*
pre_logits.0.*
pre_logits.0.*         | pre_logits.fc.*
head.*
"""

# {block} is encoder.layers.encoder_layer_{i}; linear_1 and linear_2 are the names before 0.14.
TORCHVISION = """
patch_embed.proj.*     | conv_proj.*
cls_token              | class_token
pos_embed              | encoder.pos_embedding
blocks.{i}.norm1.*     | {block}.ln_1.*
blocks.{i}.attn.qkv.*  | {block}.self_attention.in_proj_*
blocks.{i}.attn.qkv.weight | {block}.self_attention.[q k v]_proj_weight
blocks.{i}.attn.proj.* | {block}.self_attention.out_proj.*
blocks.{i}.norm2.*     | {block}.ln_2.*
blocks.{i}.mlp.fc1.*   | {block}.mlp.0.*
blocks.{i}.mlp.fc1.*   | {block}.mlp.linear_1.*
blocks.{i}.mlp.fc2.*   | {block}.mlp.3.*
blocks.{i}.mlp.fc2.*   | {block}.mlp.linear_2.*
norm.*                 | encoder.ln.*
pre_logits.0.*         | heads.pre_logits.*
head.*                 | heads.head.*
"""

# {block} is Transformer/encoderblock_{i}, {attention} is MultiHeadDotProductAttention_1.
OFFICIAL = """
patch_embed.proj.weight    | embedding/kernel                           | HWIO -> OIHW
patch_embed.proj.bias      | embedding/bias
cls_token                  | cls
pos_embed                  | Transformer/posembed_input/pos_embedding
blocks.{i}.norm1.weight    | {block}/LayerNorm_0/scale
blocks.{i}.norm1.bias      | {block}/LayerNorm_0/bias
blocks.{i}.attn.qkv.weight | {block}/{attention}/[query key value]/kernel | (D, h, d) -> (hd, D)
blocks.{i}.attn.qkv.bias   | {block}/{attention}/[query key value]/bias | (h, d) -> (hd)
blocks.{i}.attn.proj.weight | {block}/{attention}/out/kernel            | (h, d, D) -> (D, hd)
blocks.{i}.attn.proj.bias  | {block}/{attention}/out/bias
blocks.{i}.norm2.weight    | {block}/LayerNorm_2/scale
blocks.{i}.norm2.bias      | {block}/LayerNorm_2/bias
blocks.{i}.mlp.fc1.weight  | {block}/MlpBlock_3/Dense_0/kernel          | (in, out) -> (out, in)
blocks.{i}.mlp.fc1.bias    | {block}/MlpBlock_3/Dense_0/bias
blocks.{i}.mlp.fc2.weight  | {block}/MlpBlock_3/Dense_1/kernel          | (in, out) -> (out, in)
blocks.{i}.mlp.fc2.bias    | {block}/MlpBlock_3/Dense_1/bias
norm.weight                | Transformer/encoder_norm/scale
norm.bias                  | Transformer/encoder_norm/bias
pre_logits.0.weight        | pre_logits/kernel                          | (in, out) -> (out, in)
pre_logits.0.bias          | pre_logits/bias
head.weight                | head/kernel                                | (in, out) -> (out, in)
head.bias                  | head/bias
"""

# big_vision numbers the parts of a block otherwise, and adds positions before the class token.
BIG_VISION = (
    OFFICIAL.replace("Transformer/posembed_input/", "")
    .replace("LayerNorm_2", "LayerNorm_1")
    .replace("MlpBlock_3", "MlpBlock_0")
    .replace("{attention}", "MultiHeadDotProductAttention_0")
)

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Row(NamedTuple):
    """One row of a table: our name, their name or names, how theirs become ours."""

    ours: str
    theirs: tuple[str, ...]
    reshape: str


class Layout(NamedTuple):
    """A library's layout: its table, the name that gives it away, its resize and its images."""

    name: str
    rows: tuple[Row, ...]
    patch_kernel: str
    prefix: str  # what may stand before every name, a regular expression
    interpolation: str
    normalisation: tuple | None  # (mean, std); None: the names do not tell


def _rows(table, block=""):
    table = table.replace("{block}", block).replace("{attention}", "MultiHeadDotProductAttention_1")
    rows = []
    for line in table.strip().splitlines():
        ours, theirs, reshape = (*map(str.strip, line.split("|")), "", "")[:3]
        for kind in ("weight", "bias") if "*" in line else ("",):
            name = (theirs or ours).replace("*", kind)
            start, *stacked = re.split(r"[\[\]]", name)  # "a.[q k v].c" -> "a.", "q k v", ".c"
            parts = [start + p + stacked[1] for p in stacked[0].split()] if stacked else [name]
            rows.append(Row(ours.replace("*", kind), tuple(parts), reshape or "as it is"))
    return tuple(rows)


def general_name(name):
    """Our name of one weight -> (the name in the tables, the number of its block or "")."""
    block = re.match(r"blocks\.(\d+)\.", name)
    return re.sub(r"^blocks\.\d+\.", "blocks.{i}.", name), block[1] if block else ""


DOTTED, SLASHED = r"((module|model|_orig_mod)\.)*", r"(opt/target/|params/)?"
JAX_BLOCK = "Transformer/encoderblock_{i}"
LAYOUTS = (
    Layout("timm", _rows(TIMM), "patch_embed.proj.weight", DOTTED, "timm", None),
    Layout("torchvision", _rows(TORCHVISION, "encoder.layers.encoder_layer_{i}"),
           "conv_proj.weight", DOTTED, "torchvision", IMAGENET),
    Layout("official", _rows(OFFICIAL, JAX_BLOCK), "embedding/kernel", SLASHED, "official", HALF),
    Layout("big_vision", _rows(BIG_VISION, JAX_BLOCK), "embedding/kernel", SLASHED, "official",
           HALF),
)  # fmt: skip

# How each library resizes a grid of positions: the arguments of torch's F.interpolate.
# official: scipy.ndimage.zoom(order=1), which is bilinear with the corners kept.
INTERPOLATIONS = {
    "official": dict(mode="bilinear", align_corners=True),
    "torchvision": dict(mode="bicubic", align_corners=True),
    "timm": dict(mode="bicubic", antialias=True),
}

# A name that shows that a file's model computes something else: searched for as a regular
# expression | what it is.
REFUSED = (
    (r"\bdist_token$|\bhead_dist\.", "the distillation token of DeiT: a second class token"),
    (r"\breg_token$|register_tokens", "register tokens (arXiv 2309.16588): more tokens"),
    (r"\.ls\d?\.gamma$|\.gamma_\d$", "layer-scale (arXiv 2103.17239): a factor on each branch"),
    (r"\battn\.[qk]_norm\.", "qk-norm (arXiv 2302.05442): LayerNorm on queries and keys"),
    (r"\b(attn|mlp)\.norm\.", "a norm inside the attention or the MLP (arXiv 2210.06423)"),
    (r"\bnorm_pre\.|\bln_pre\.", "a norm before the first block, as in CLIP"),
    (r"\bfc_norm\.", "a norm after average pooling, not before it (timm's fc_norm, MAE, BEiT)"),
    (r"\battn_pool\.|\bMAPHead_0/|\bprobe$", "attention pooling (arXiv 2106.04560) as the head"),
    (r"rel_pos|relative_position", "relative positions, as in BEiT"),
    (r"\brope\b|\bfreqs", "rotary positions"),
    (r"\bmask_token$|\bdecoder_", "masked-image pre-training, with parts for masks or a decoder"),
    (r"\bmlp\.(w12|w1|fc1_g)\.", "a gated MLP (SwiGLU)"),
    (r"\battn\.gate\.", "gated attention"),
    (r"\bpatch_embed\.(backbone|norm)\.|\bconv_proj\.(\d|conv_)|\bconv_root/|\bpatch_embed\.proj\.\d",
     "another stem than one convolution (a ResNet, a stack of convolutions or a norm)"),
)  # fmt: skip
