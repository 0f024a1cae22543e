"""How other libraries name and shape the weights of a ViT, in tables.

One row for each of our tensors: our name | their name, if another | how theirs becomes ours, if not
as it is. * is "weight" and then "bias", and a kernel or scale has its bias, which is as it is,
beside it; {i} is the number of a block; [a b c] are three tensors that lie stacked in ours, in this
order. Where our name has two rows, one file has the first and another the second; a row that says
"times its rows" is a factor, LayerScale's, that our tensor takes in. Sources: timm 1.0, DeiT
(facebookresearch/deit) and DINOv2 (facebookresearch/dinov2), torchvision.models.vision_transformer,
google-research/vision_transformer (vit_jax/models_vit.py), google-research/big_vision
(models/vit.py) and transformers' ViT and Dinov2 (4.57; 5.12 and later, in memory alone, have other
names).
"""

import json
import re
from collections.abc import Mapping
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
FACTOR = (
    "times its rows"  # gamma * (W x + b) = (gamma W) x + gamma b (LayerScale, arXiv 2103.17239)
)

TIMM = """
patch_embed.proj.*
cls_token
pos_embed
blocks.{i}.norm1.*
blocks.{i}.attn.qkv.*
blocks.{i}.attn.qkv.*  | blocks.{i}.attn.[q k v].*
blocks.{i}.attn.qkv.*  | blocks.{i}.attn.[q_proj k_proj v_proj].*
blocks.{i}.attn.proj.*
blocks.{i}.attn.proj.* | blocks.{i}.ls1.gamma | times its rows
blocks.{i}.norm2.*
blocks.{i}.mlp.fc1.*
blocks.{i}.mlp.fc2.*
blocks.{i}.mlp.fc2.*   | blocks.{i}.ls2.gamma | times its rows
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

HUGGING_FACE = """
patch_embed.proj.*     | embeddings.patch_embeddings.projection.*
cls_token              | embeddings.cls_token
pos_embed              | embeddings.position_embeddings
blocks.{i}.norm1.*     | {block}.layernorm_before.*
blocks.{i}.attn.qkv.*  | {block}.attention.attention.[query key value].*
blocks.{i}.attn.proj.* | {block}.attention.output.dense.*
blocks.{i}.norm2.*     | {block}.layernorm_after.*
blocks.{i}.mlp.fc1.*   | {block}.intermediate.dense.*
blocks.{i}.mlp.fc2.*   | {block}.output.dense.*
norm.*                 | layernorm.*
head.*                 | classifier.*
"""
HUGGING_FACE_5 = (
    HUGGING_FACE.replace("attention.[query key value]", "[q_proj k_proj v_proj]")
    .replace("attention.output.dense", "attention.o_proj")
    .replace("intermediate.dense", "mlp.fc1")
    .replace("output.dense", "mlp.fc2")
)

# Dinov2 has the names of a ViT but for norms, MLP and LayerScale; 5.12 and later, again others.
HUGGING_FACE_DINOV2 = (
    (
        HUGGING_FACE.replace("layernorm_before", "norm1")
        .replace("layernorm_after", "norm2")
        .replace("{block}.intermediate.dense", "{block}.mlp.fc1")
        .replace("{block}.output.dense", "{block}.mlp.fc2")
    )
    + """
blocks.{i}.attn.qkv.*  | {block}.attention.[q_proj k_proj v_proj].*
blocks.{i}.attn.proj.* | {block}.attention.o_proj.*
blocks.{i}.attn.proj.* | {block}.layer_scale1.lambda1 | times its rows
blocks.{i}.mlp.fc2.*   | {block}.layer_scale2.lambda1 | times its rows
"""
)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Row(NamedTuple):
    """One row of a table: our name, their name or names, how theirs becomes ours."""

    ours: str
    theirs: tuple[str, ...]
    reshape: str


class Layout(NamedTuple):
    """A library's layout: its table, the mean and std of its images, if that tells, its eps."""

    name: str
    rows: tuple[Row, ...]
    normalisation: tuple | None
    norm_eps: float = 1e-6

    def names(self, ours):
        """Their name, or names, for one of our weights, from the first row that has it, or ours."""
        general = re.sub(r"^blocks\.\d+", "blocks.{i}", ours)
        i = ours.split(".")[1] if general != ours else ""
        rows = (row.theirs for row in self.rows if row.ours == general)
        return [name.format(i=i) for name in next(rows, [ours])]


def _rows(table, block=""):
    table = table.replace("{block}", block).replace("{attention}", "MultiHeadDotProductAttention_1")
    rows = []
    for line in filter(str.strip, table.splitlines()):
        ours, theirs, reshape = (*map(str.strip, line.split("|")), "", "")[:3]
        for kind in ("weight", "bias") if "*" in line else ("",):
            name = (theirs or ours).replace("*", kind)
            if kind == "bias" and reshape != FACTOR:
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
    Layout("Hugging Face", _rows(HUGGING_FACE, "encoder.layer.{i}"), None, 1e-12),
    Layout("Hugging Face", _rows(HUGGING_FACE_5, "layers.{i}"), None, 1e-12),
    Layout("Hugging Face", _rows(HUGGING_FACE_DINOV2, "encoder.layer.{i}"), IMAGENET),
)

# Several sets of weights in one file: a set whose path has a word of AVERAGED is a copy of another;
# one whose path is USUAL words alone is the one that is meant.
AVERAGED = r"(^|[._])(ema|swa|averaged?|avg|shadow|momentum)([._]|$)"
USUAL = r"((state_dict|model|model_state_dict|weights|module|_orig_mod|params|opt\.target)(\.|$))*"

# What torch itself puts into a name, wherever, when it compiles or shards a part.
WRAPPED = r"(?<![^.])_(orig_mod|checkpoint_wrapped_module|fsdp_wrapped_module)\."

# A classifier by another name than the table's: read if it is one linear layer.
HEADS = r"(heads?|fc|classifier|(last_)?linear|(mlp|cls|class|classification)_head|out|output)\."

# What no forward pass reads, or not on the way to the class token, though it be a tensor of floats.
EXTRAS = (
    r"(^|\.)(n_averaged|num_batches_tracked|total_ops|total_params|position_ids|mask_token)$"
    r"|^(criterion|loss|loss_fn|(\w+_)?metrics?|(\w+_)?acc(uracy)?)\.|^pooler\."
)

# What a config beside the weights may say: our word | its words. Parts of it are looked through.
CONFIG = {
    "num_heads": ("num_heads", "num_attention_heads"),
    "norm_eps": ("norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    "embed_dim": ("embed_dim", "hidden_size"),
    "depth": ("depth", "num_hidden_layers"),
    "img_size": ("img_size", "image_size"),
    "mean": ("mean", "image_mean"),
    "std": ("std", "image_std"),
}
PAIRS = ("img_size", "image_size", "mean", "image_mean", "std", "image_std")  # which may be lists
CONFIG_PARTS = ("vit", "model", "model_args", "pretrained_cfg", "vision_config", "config",
                "hyper_parameters", "args")  # fmt: skip

# The same for what our model cannot be told: fact | words | values that it is, by a regular
# expression | what the others are.
CONFIG_FACTS = (
    ("activation", r"hidden_act(ivation)?|act_layer|activation(_function|_fn)?",
     r"(<class ')?((torch\.)?nn\.)?(modules\.activation\.)?gelu(_python|_erf|_exact)?('>)?"
     r"(\((approximate='none')?\))?",
     "another activation than the exact GELU"),
    ("activation", "(use_)?quick_gelu", "false", "another activation than the exact GELU"),
    ("norm_order", r"norm_first|normalize_before|do_layer_norm_before", "true", "norms after"),
    ("norm_order", r"(is_)?pre_?(layer_?)?(norm|ln)", "true", "norms after"),
    ("norm_order", r"(use_|res_|is_)?post_?(layer_?)?(norm|ln)", "false", "norms after"),
    ("norm_order", r"(layer_?)?norm_(order|position|style|mode)", "pre.*|before", "norms after"),
    ("global_pool", r"(global_)?pool(ing)?(_(type|mode|method))?",
     "token|tok|cls|cls_token|class_token|first|avg|average|gap|mean", "another pooling"),
    ("mean_pooling", "use_mean_pooling", "false", "a mean of the patches after a class token"),
)  # fmt: skip
# How each library resizes a grid of positions: the arguments of torch's F.interpolate.
# official: scipy.ndimage.zoom(order=1), which is bilinear with the corners kept.
INTERPOLATIONS = {
    "official": dict(mode="bilinear", align_corners=True),
    "torchvision": dict(mode="bicubic", align_corners=True),
    "timm": dict(mode="bicubic", antialias=True),
    "Hugging Face": dict(mode="bicubic"),
    "DINOv2": dict(mode="bicubic", offset=0.1),  # Meta's: scaled by (new + 0.1) / old
}

# A name that shows that a file's model computes something else: searched for as a regular
# expression | what it is.
REFUSED = (
    (r"\bdist_token$|\bdistillation_token$|\bhead_dist\.|\bdistillation_classifier\.",
     "the distillation token of DeiT: a second class token"),
    (r"\bdetection_tokens$", "the detection tokens of YOLOS: more tokens"),
    (r"\breg_token$|register_tokens", "register tokens (arXiv 2309.16588): more tokens"),
    (r"\.ls\d?\.gamma$|\.gamma_\d$|\.lambda_?\d$",
     "layer-scale (arXiv 2103.17239) by a name that this library has not"),
    (r"\battn\.[qk]_norm\.|\b(attn|mlp)\.norm\.", "a norm inside the attention or the MLP"),
    (r"\bnorm_pre\.|\bln_pre\.", "a norm before the first block, as in CLIP"),
    (r"\bfc_norm\.", "a norm after average pooling, not before it (timm's fc_norm, MAE, BEiT)"),
    (r"\battn_pool\.|\bMAPHead_0/|\bprobe$", "attention pooling (arXiv 2106.04560) as the head"),
    (r"rel_pos|relative_position|\brope\b|\bfreqs", "relative or rotary positions"),
    (r"\bdecoder_", "masked-image pre-training, with parts for masks or a decoder"),
    (r"\bmlp\.(w12|w1|fc1_g)\.|\battn\.gate\.", "a gate in the MLP (SwiGLU) or the attention"),
    (r"\bpatch_embed(dings)?\.(backbone|norm)\.|\bconv_proj\.(\d|conv_)|\bconv_root/|\bpatch_embed\.proj\.\d",
     "another stem than one convolution (a ResNet, a stack of convolutions or a norm)"),
)  # fmt: skip


def _statements(config):
    """(name, value) of what a config says, of its known parts too; JSON in a string is read."""
    for name, value in config.items():
        if isinstance(value, str) and value[:1] in set("{[0123456789tf"):
            try:
                value = json.loads(value)
            except ValueError:
                pass
        if isinstance(value, Mapping) and name in CONFIG_PARTS:
            yield from _statements(value)
        elif isinstance(value, str | int | float | list | tuple):
            yield name, value


def told(configs):
    """What configs, dicts as of JSON, say: {our word: value}, the first that says it believed.

    ValueError for what our model cannot be.
    """
    flat = {}
    for name, value in (pair for config in configs for pair in _statements(config)):
        flat.setdefault(name, value)
    words = {theirs: ours for ours, those in CONFIG.items() for theirs in those}
    said = {}
    for name, value in flat.items():
        for fact, pattern, ours, other in CONFIG_FACTS:
            if re.fullmatch(pattern, name):
                if not re.fullmatch(ours, str(value).lower()):
                    raise ValueError(f"{name} is {value!r} in the config: {other}, not our ViT")
                said[fact] = value
        if name in words and (name in PAIRS or isinstance(value, int | float)):
            said.setdefault(words[name], value)
    if flat.get("do_normalize") is False:
        said = {name: value for name, value in said.items() if name not in ("mean", "std")}
    if "global_pool" in said:
        mean = str(said["global_pool"]).lower() in ("avg", "average", "gap", "mean")
        said["global_pool"] = "avg" if mean else "token"
    return said
