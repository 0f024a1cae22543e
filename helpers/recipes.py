"""The settings that suit each data set: on a CPU, on a GPU, and as others have published them."""

MIXED = dict(policy="trivial", mixup=0.25, cutmix=0.5, drop_path=0.1, ema=0.999)
UPRIGHT = dict(rotate=0, zoom=0)  # what is photographed upright: no turns, no zoom

DIGITS = dict(patch_size=2, embed_dim=64, depth=3, num_heads=4, mlp_ratio=2.0, pos_embed_std=0.5)

# For each recipe and data set: arguments of VisionTransformer, fields of TrainConfig.
RECIPES = {
    "small": {  # minutes on a CPU
        "digits": (
            DIGITS,
            dict(epochs=80, batch_size=64, lr=3e-3, weight_decay=0.3),
        ),
        "mnist": (
            dict(patch_size=7, embed_dim=64, depth=4, num_heads=4, pos_embed_std=0.5),
            dict(epochs=20, batch_size=128, lr=3e-3, shift=2),
        ),
        "fashion-mnist": (
            dict(patch_size=7, embed_dim=64, depth=4, num_heads=4, pos_embed_std=0.5),
            dict(epochs=20, batch_size=128, lr=3e-3, **UPRIGHT),
        ),
        "cifar10": (
            dict(patch_size=4, embed_dim=192, depth=9, num_heads=12, mlp_ratio=2.0),
            dict(epochs=100, batch_size=128, lr=1e-3, shift=4, **UPRIGHT),
        ),
    },
    "full": {  # minutes on a GPU
        "digits": (
            DIGITS,
            dict(epochs=80, batch_size=128, lr=5e-3, weight_decay=0.3, mixup=0.1, drop_path=0.05,
                 ema=0.98),
        ),
        "mnist": (
            dict(patch_size=4, embed_dim=192, depth=6, num_heads=6),
            dict(epochs=60, batch_size=512, lr=2e-3, shift=3, rotate=15, zoom=0.15, drop_path=0.1,
                 cutmix=0.25, ema=0.999),
        ),
        "fashion-mnist": (
            dict(patch_size=4, embed_dim=192, depth=9, num_heads=6),
            dict(epochs=120, batch_size=512, lr=2e-3, shift=2, **UPRIGHT, **MIXED),
        ),
        "cifar10": (
            dict(patch_size=4, embed_dim=256, depth=9, num_heads=8),
            dict(epochs=120, batch_size=512, lr=2e-3, shift=4, **UPRIGHT, **MIXED),
        ),
    },
    "published": {  # the strongest plain ViT from scratch that we know of: aanna0701/SPT_LSA_ViT
        "cifar10": (
            dict(patch_size=4, embed_dim=192, depth=9, num_heads=12, mlp_ratio=2.0),
            dict(epochs=100, batch_size=128, lr=1e-3, weight_decay=0.05, shift=4, **UPRIGHT,
                 policy="auto", erase=0.25, mixup=0.5, cutmix=0.5, drop_path=0.1),
        ),
    },
}  # fmt: skip


def recipe(data, kind="small"):
    """(arguments of VisionTransformer, fields of TrainConfig) for data, an ImageData.

    kind: a key of RECIPES. A data set without a recipe, your own folder say, is cut into at least
    8 x 8 patches, as large as its size allows. ValueError for another kind, or one that is for
    other data.
    """
    if kind not in RECIPES:
        raise ValueError(f"recipe is {kind!r}: choose one of {', '.join(RECIPES)}")
    known = [key for key in RECIPES[kind] if f"{data.name}_".startswith(f"{key}_")]
    C, H, W = data.train.image_shape
    if known:
        sizes, training = RECIPES[kind][known[0]]
    elif kind == "published":
        raise ValueError(f"no recipe is published for {data.name}, only for cifar10")
    else:
        sizes = dict(patch_size=largest_patch(H, W), embed_dim=128, depth=6, num_heads=4)
        training = dict(epochs=50, batch_size=64, lr=1e-3, shift=H // 16)
        training |= MIXED if kind == "full" else {}
    return dict(img_size=(H, W), in_chans=C, num_classes=len(data.classes), **sizes), training


def largest_patch(H, W):
    """The largest patch side that divides both sides and leaves at least 8 patches along each."""
    return max((p for p in range(1, min(H, W) // 8 + 1) if H % p == W % p == 0), default=1)
