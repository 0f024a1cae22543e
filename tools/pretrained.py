"""torchvision's ViT-B/16 in our model: make pretrained.

Takes the file of weights from data/, from the folder VIT_DATA names or from torch.hub's folder, and
otherwise downloads it there (330 MB, once, by torchvision). Its SHA-256 is checked each time. Both
models, ours and torchvision's, then classify the photographs that come with the libraries, and
every logit must agree to 1e-4. The exit status is 1 if one does not, or if there is no file.
"""

import hashlib
import os
import sys
from pathlib import Path

import torch
from torchvision.models import ViT_B_16_Weights, vit_b_16

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.data import DATA_FOLDER
from helpers.plotting import sample_photo
from helpers.weights import model_from

WEIGHTS = ViT_B_16_Weights.IMAGENET1K_V1
FILE = WEIGHTS.url.rpartition("/")[2]  # vit_b_16-c867db91.pth: the SHA-256 begins with c867db91
PHOTOS = ("china.jpg", "flower.jpg", "grace_hopper.jpg")
TOLERANCE = 1e-4


def places():
    """The folders that are searched for FILE, in this order."""
    own = [Path(os.environ["VIT_DATA"]).expanduser()] if os.environ.get("VIT_DATA") else []
    return [DATA_FOLDER, *own, Path(torch.hub.get_dir()) / "checkpoints"]


def check(path):
    """ValueError unless the file's SHA-256 begins as its name says."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    wanted = path.stem.rpartition("-")[2]
    if not digest.startswith(wanted):
        raise ValueError(
            f"{path} is not the published file, or not all of it: its SHA-256 begins with "
            f"{digest[: len(wanted)]}, not {wanted}. Delete it and call again"
        )


def fetch():
    """torchvision's state dict, from a file that is here or by a download.

    ConnectionError if it cannot be downloaded, ValueError for a file that is not the published one.
    """
    for folder in places():
        if (folder / FILE).is_file():
            check(folder / FILE)
            return torch.load(folder / FILE, map_location="cpu", weights_only=True)
    try:
        return WEIGHTS.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, no room, or another hash
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConnectionError(
            f"could not download {WEIGHTS.url} ({reason}). Try again with a network, or put the "
            f"file into {places()[0]}"
        ) from error


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
        state = fetch()
    except (ConnectionError, ValueError) as error:
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
