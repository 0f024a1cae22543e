"""torchvision's ViT-B/16 in our model: make pretrained.

helpers.weights.fetch finds the file of weights, or downloads it (330 MB, once), and checks it. Both
models, ours and torchvision's, then classify the photographs that come with the libraries, and
every logit must agree to 1e-4. The exit status is 1 if one does not, or if there is no file.
"""

import sys
from pathlib import Path

import torch
from torchvision.models import ViT_B_16_Weights, vit_b_16

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.plotting import sample_photo
from helpers.weights import model_from
from helpers.weights.fetch import fetch

WEIGHTS = ViT_B_16_Weights.IMAGENET1K_V1
PHOTOS = ("china.jpg", "flower.jpg", "grace_hopper.jpg")
TOLERANCE = 1e-4


def compare(peer, photos, transforms):
    """Our logits and those of peer, a torchvision VisionTransformer, with the same weights.

    photos: uint8 (n, 3, H, W); transforms: torchvision's, for these weights. Two tensors (n, K).
    """
    model, _ = model_from(peer.state_dict(), num_heads=peer.encoder.layers[0].num_heads)
    x = torch.stack([transforms(photo) for photo in photos])
    with torch.inference_mode():
        return model(x), peer.eval()(x)


def main():
    """Print the table -> exit status."""
    try:
        state = torch.load(fetch("vit-b16"), map_location="cpu", weights_only=True)
    except (OSError, ValueError) as error:
        print(f"make pretrained: {error}", file=sys.stderr)
        return 1
    peer = vit_b_16()
    peer.load_state_dict(state, strict=True)
    photos = torch.stack([torch.from_numpy(sample_photo(name, 256)) for name in PHOTOS])
    ours, theirs = compare(peer, photos, WEIGHTS.transforms())

    names = WEIGHTS.meta["categories"]
    print(f"{'photograph':18}{'ours':28}{'torchvision':28}{'largest difference':>18}")
    for photo, a, b in zip(PHOTOS, ours, theirs, strict=True):
        said = [f"{names[z.argmax()]} {z.softmax(0).max():.1%}" for z in (a, b)]
        print(f"{photo:18}{said[0]:28}{said[1]:28}{(a - b).abs().max().item():18.1e}")
    worst = (ours - theirs).abs().max().item()
    agree = worst <= TOLERANCE  # False for nan as well
    print(f"{ours.numel()} logits: the largest difference is {worst:.1e},", end=" ")
    print(f"{'within' if agree else 'ABOVE'} {TOLERANCE:.0e}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
