"""Other people's ViTs, built to the same sizes and given our weights. For tests alone."""

import pytest
import torch

from helpers.model import VisionTransformer

SMALL = dict(
    img_size=(32, 24), patch_size=4, in_chans=3, num_classes=10, embed_dim=60, depth=3, num_heads=6
)


def randomize(module, seed=0):
    """Every parameter drawn anew and none of them zero, so that zeros cannot hide an error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.rand(parameter.shape, generator=generator) * 0.3 + 0.05
            signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            parameter.copy_(values * signs)
    return module


def small_vit(**changes):
    """Our model at the teaching sizes, in float64, with random weights, in eval mode."""
    return randomize(VisionTransformer(**(SMALL | changes))).double().eval()


def images(model, batch=2, seed=1):
    """Random images (B, C, H, W) of the size that the model wants."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *model.patch_embed.input_shape, generator=generator).double()


def timm_copy(model, **changes):
    """timm's VisionTransformer with our weights, loaded strictly."""
    vision_transformer = pytest.importorskip("timm.models.vision_transformer", reason="no timm")
    pooled = model.cls_token is None
    peer = vision_transformer.VisionTransformer(
        img_size=model.patch_embed.input_shape[1:],
        patch_size=model.patch_embed.proj.kernel_size[0],
        in_chans=model.patch_embed.input_shape[0],
        num_classes=model.head.out_features,
        embed_dim=model.pos_embed.shape[-1],
        depth=len(model.blocks),
        num_heads=model.blocks[0].attn.num_heads,
        mlp_ratio=model.blocks[0].mlp.fc1.out_features / model.pos_embed.shape[-1],
        global_pool="avg" if pooled else "token",
        class_token=not pooled,
        fc_norm=False,
        **changes,
    )
    peer.load_state_dict(model.state_dict(), strict=True)
    return peer.double().eval()


def torchvision_name(name):
    """Our (timm's) name of a weight -> torchvision's."""
    for ours, theirs in (
        ("patch_embed.proj", "conv_proj"),
        ("cls_token", "class_token"),
        ("pos_embed", "encoder.pos_embedding"),
        ("blocks.", "encoder.layers.encoder_layer_"),
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
        ("attn.qkv.", "self_attention.in_proj_"),
        ("attn.proj", "self_attention.out_proj"),
        ("mlp.fc1", "mlp.0"),
        ("mlp.fc2", "mlp.3"),
        ("pre_logits.0", "heads.pre_logits"),
    ):
        name = name.replace(ours, theirs)
    for start, theirs in (("norm.", "encoder.ln."), ("head.", "heads.head.")):
        if name.startswith(start):
            name = name.replace(start, theirs)
    return name


def torchvision_copy(model, representation_size=None):
    """torchvision's VisionTransformer (square images only) with our weights, loaded strictly."""
    vision_transformer = pytest.importorskip("torchvision.models.vision_transformer")
    width = model.pos_embed.shape[-1]
    peer = vision_transformer.VisionTransformer(
        image_size=model.patch_embed.input_shape[1],
        patch_size=model.patch_embed.proj.kernel_size[0],
        num_layers=len(model.blocks),
        num_heads=model.blocks[0].attn.num_heads,
        hidden_dim=width,
        mlp_dim=model.blocks[0].mlp.fc1.out_features,
        num_classes=model.head.out_features,
        representation_size=representation_size,
    )
    weights = {torchvision_name(name): value for name, value in model.state_dict().items()}
    peer.load_state_dict(weights, strict=True)
    return peer.double().eval()
