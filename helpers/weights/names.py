"""How other libraries name and shape the weights of a ViT, in tables.

One row for each of our tensors: our name | their name, if another | how theirs becomes ours, if not
as it is. * is "weight" and then "bias", and a kernel or scale has its bias, which is as it is,
beside it; {i} is the number of a block; [a b c] are three tensors that lie stacked in ours, in this
order. Where our name has two rows, one file has the first and another the second. Sources: timm 1.0
and DeiT (facebookresearch/deit), torchvision.models.vision_transformer,
google-research/vision_transformer (vit_jax/models_vit.py) and google-research/big_vision
(models/vit.py).
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
patch_embed.proj.*         | embedding/kernel                           | HWIO -> OIHW
cls_token                  | cls
pos_embed                  | Transformer/posembed_input/pos_embedding
blocks.{i}.norm1.*         | {block}/LayerNorm_0/scale
blocks.{i}.attn.qkv.weight | {block}/{attention}/[query key value]/kernel | (D, h, d) -> (hd, D)
blocks.{i}.attn.qkv.bias   | {block}/{attention}/[query key value]/bias   | (h, d) -> (hd)
blocks.{i}.attn.proj.*     | {block}/{attention}/out/kernel             | (h, d, D) -> (D, hd)
blocks.{i}.norm2.*         | {block}/LayerNorm_2/scale
blocks.{i}.mlp.fc1.*       | {block}/MlpBlock_3/Dense_0/kernel          | (in, out) -> (out, in)
blocks.{i}.mlp.fc2.*       | {block}/MlpBlock_3/Dense_1/kernel          | (in, out) -> (out, in)
norm.*                     | Transformer/encoder_norm/scale
pre_logits.0.*             | pre_logits/kernel                          | (in, out) -> (out, in)
head.*                     | head/kernel                                | (in, out) -> (out, in)
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
    """One row of a table: our name, their name or names, how theirs becomes ours."""

    ours: str
    theirs: tuple[str, ...]
    reshape: str


class Layout(NamedTuple):
    """A library's layout: its table, and the mean and std that its images need, if that tells."""

    name: str
    rows: tuple[Row, ...]
    normalisation: tuple | None

    def names(self, ours):
        """Their name, or names, for one of our weights, from the first row that has it."""
        general = re.sub(r"^blocks\.\d+", "blocks.{i}", ours)
        i = ours.split(".")[1] if general != ours else ""
        return next([n.format(i=i) for n in row.theirs] for row in self.rows if row.ours == general)


def _rows(table, block=""):
    table = table.replace("{block}", block).replace("{attention}", "MultiHeadDotProductAttention_1")
    rows = []
    for line in table.strip().splitlines():
        ours, theirs, reshape = (*map(str.strip, line.split("|")), "", "")[:3]
        for kind in ("weight", "bias") if "*" in line else ("",):
            name = (theirs or ours).replace("*", kind)
            if kind == "bias":
                name, reshape = re.sub("(kernel|scale)$", "bias", name), ""
            start, *stacked = re.split(r"[\[\]]", name)  # "a.[q k v].c" -> "a.", "q k v", ".c"
            parts = [start + p + stacked[1] for p in stacked[0].split()] if stacked else [name]
            rows.append(Row(ours.replace("*", kind), tuple(parts), reshape or "as it is"))
    return tuple(rows)


TORCHVISION_BLOCK, JAX_BLOCK = "encoder.layers.encoder_layer_{i}", "Transformer/encoderblock_{i}"
LAYOUTS = (
    Layout("timm", _rows(TIMM), None),
    Layout("torchvision", _rows(TORCHVISION, TORCHVISION_BLOCK), IMAGENET),
    Layout("official", _rows(OFFICIAL, JAX_BLOCK), HALF),
    Layout("big_vision", _rows(BIG_VISION, JAX_BLOCK), HALF),
)
PREFIX = r"((module|model|_orig_mod)\.)*(opt/target/|params/)?"  # may stand before every name

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
    (r"\battn\.[qk]_norm\.|\b(attn|mlp)\.norm\.", "a norm inside the attention or the MLP"),
    (r"\bnorm_pre\.|\bln_pre\.", "a norm before the first block, as in CLIP"),
    (r"\bfc_norm\.", "a norm after average pooling, not before it (timm's fc_norm, MAE, BEiT)"),
    (r"\battn_pool\.|\bMAPHead_0/|\bprobe$", "attention pooling (arXiv 2106.04560) as the head"),
    (r"rel_pos|relative_position|\brope\b|\bfreqs", "relative or rotary positions"),
    (r"\bmask_token$|\bdecoder_", "masked-image pre-training, with parts for masks or a decoder"),
    (r"\bmlp\.(w12|w1|fc1_g)\.|\battn\.gate\.", "a gate in the MLP (SwiGLU) or the attention"),
    (r"\bpatch_embed\.(backbone|norm)\.|\bconv_proj\.(\d|conv_)|\bconv_root/|\bpatch_embed\.proj\.\d",
     "another stem than one convolution (a ResNet, a stack of convolutions or a norm)"),
)  # fmt: skip
