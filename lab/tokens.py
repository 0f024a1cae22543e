"""Questions to tokens: where does a patch stand, what is it like elsewhere, what moves by depth?

Nothing here needs a model: tokens go in, as helpers.inspection.tokens_after_each_block gives them.
"""

import torch
import torch.nn.functional as F


def place_error(tokens, places):
    """How many patches off is the place that a line reads from a token? (n, N, D), (N, 2) -> float.

    Ridge regression to each patch's row and column, places, on the tokens of all images but one,
    brought to mean 0 and standard deviation 1; tried on the one left out, each in turn. The mean
    distance over tokens and images. Guessing the middle of the grid needs no tokens: compare.
    """
    places, errors = places.double(), []
    middle = places.mean(dim=0)
    for i in range(len(tokens)):
        others = tokens[torch.arange(len(tokens)) != i].flatten(0, 1).double()  # ((n - 1) N, D)
        mean, std = others.mean(dim=0), others.std(dim=0) + 1e-9
        seen, wanted = (others - mean) / std, (places - middle).repeat(len(tokens) - 1, 1)
        ridge = seen.T @ seen + 0.01 * len(seen) * torch.eye(seen.shape[1]).double()  # (D, D)
        line = torch.linalg.solve(ridge, seen.T @ wanted)  # (D, 2)
        read = (tokens[i].double() - mean) / std @ line + middle  # (N, 2)
        errors.append((read - places).norm(dim=1).mean().item())
    return sum(errors) / len(errors)


def patches_in(box, grid, of=32):
    """Numbers of the patches in a box (top, bottom, left, right), bottom and right left out.

    The box is given on a grid of of x of patches; grid: (rows, cols) of the patches wanted, those
    that the box covers at least in part.
    """
    (top, bottom), (left, right) = (
        (low * n // of, -(-high * n // of))
        for low, high, n in zip(box[::2], box[1::2], grid, strict=True)
    )
    rows, cols = torch.arange(top, bottom), torch.arange(left, right)
    return (rows[:, None] * grid[1] + cols).flatten()


def nearest_in(tokens, other, pairs):
    """Do tokens find their like in another image? {part: (patches, the right ones there)} -> dict.

    tokens, other: (N, D). For each part (hits, numbers of the nearest tokens): the token of other
    with the largest cosine is a hit if it is one of the right ones.
    """
    unit, there = F.normalize(tokens, dim=-1), F.normalize(other, dim=-1)
    found = {}
    for part, (patches, right) in pairs.items():
        nearest = (unit[patches] @ there.T).argmax(dim=-1)
        found[part] = (int(torch.isin(nearest, right).sum()), nearest)
    return found


def colours_by_depth(layers):
    """Tokens of one image, a list of (N, D), -> as many (N, 3): red, green and blue from 0 to 1.

    Each layer's first three principal components, each with variance 1, turned together so that
    they lie as near as they can to those of the layer before (orthogonal Procrustes): what keeps
    its colour from layer to layer has not moved. Colours of two images cannot be compared.
    """
    shown, before = [], None
    for tokens in layers:
        centred = tokens.detach().double() - tokens.detach().double().mean(dim=0)
        along = torch.linalg.svd(centred, full_matrices=False).U[:, :3]  # (N, 3)
        if before is not None:
            left, _, right = torch.linalg.svd(along.T @ before)
            along = along @ (left @ right)
        before = along
        low, high = along.quantile(along.new_tensor([0.02, 0.98]), dim=0)
        shown.append(((along - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).float())
    return shown
