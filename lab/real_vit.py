"""The trained ViT-S/14 of notebooks 11 and 12, and a witness that computes its tokens otherwise."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.functional import resize, rgb_to_grayscale

from helpers.checkpoints import load_checkpoint
from helpers.data import HOME
from helpers.weights.fetch import fetch, trained

SMALL = HOME / "data" / "checkpoints" / "fashion-mnist.safetensors"


def vit_for_photographs(img_size=224):
    """(model, see, real): vit-s14 for photographs of img_size pixels, or else a small stand-in.

    see(photo uint8 (3, H, W)) -> x (1, C, H', W'), as the model wants it. Where the weights cannot
    be had, real is False, a line says what to do, and the model is the small one of Fashion-MNIST:
    grey, 28 x 28 pixels, and no judge of photographs.
    """
    try:
        model, report = trained("vit-s14", img_size=img_size)
        mean, std = report.normalisation
        real = True
    except (OSError, ImportError) as problem:
        print(
            f"{problem}. Until then a small model looks, trained on clothes: nothing below is to "
            "be believed."
        )
        model, info = load_checkpoint(SMALL)
        mean, std, real = info["mean"], info["std"], False
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (mean, std))
    C, H, W = model.patch_embed.input_shape

    def see(photo):
        photo = torch.as_tensor(photo)
        if tuple(photo.shape[1:]) != (H, W):
            photo = resize(photo, (H, W), antialias=True)
        photo = photo / 255
        photo = photo if C == 3 else rgb_to_grayscale(photo)
        return ((photo - mean) / std)[None]

    return model.eval(), see, real


def as_pixels(see, photo):
    """What see makes of a photo, as the explorer wants it: (uint8 (1, C, H, W), facts on images).

    The mean and standard deviation are read off from black and white.
    """
    black, white = (see(np.full((3, 8, 8), grey, np.uint8))[0, :, :1, :1] for grey in (0, 255))
    std = 1 / (white - black)  # (C, 1, 1)
    mean = -black * std
    pixels = (255 * (see(photo) * std + mean)).round().to(torch.uint8)
    return pixels, SimpleNamespace(mean=mean.flatten().tolist(), std=std.flatten().tolist(),
                                   classes=tuple("0123456789"))  # fmt: skip


def witness(x):
    """vit-s14's tokens after each of its 12 blocks and after the last norm, by onnxruntime.

    x: (1, 3, 224, 224), what the file is made for. 13 arrays (1, 257, 384). ImportError without
    onnxruntime, which the tests need and the notebooks do not.
    """
    import onnx
    import onnxruntime

    file = onnx.load(str(fetch("vit-s14")))
    outputs = {node.name: node.output[0] for node in file.graph.node}
    start = "/backbone/encoder/layer."
    wanted = [
        [output for name, output in outputs.items() if name.startswith(f"{start}{i}/Add")][-1]
        for i in range(12)
    ]
    wanted.append(outputs["/backbone/layernorm/Add_1"])
    for name in wanted:
        file.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    session = onnxruntime.InferenceSession(
        file.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(wanted, {"input_image": x.numpy()})


def read_photo(path, size=448):
    """A picture's file -> its middle, uint8 (3, size, size), turned as the camera was held."""
    with Image.open(path) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    middle = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
    return np.array(middle).transpose(2, 0, 1)


def colours(tokens):
    """Tokens (N, D) -> (N, 3), red, green and blue from 0 to 1: where each lies along the three
    directions in which the tokens differ most, the first principal components."""
    x = tokens - tokens.mean(dim=0)  # (N, D)
    directions = torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :3]  # (D, D) -> (D, 3)
    along = x @ directions  # (N, D) @ (D, 3) -> (N, 3)
    along = along * (along**3).sum(dim=0).sign()  # of either sign, the one with the longer tail up
    low, high = along.quantile(along.new_tensor([0.02, 0.98]), dim=0)
    return ((along - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)  # never 0 / 0
