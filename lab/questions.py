"""Questions to a trained model: what can be read from its layers, and what can it do without?

images are uint8 (n, C, H, W) and data says how to normalise them, as in helpers.training.predict.
A model is put into eval mode, and left as it was. Whatever is drawn at random comes from a seed, or
from a generator on the CPU, so that every model meets the same changes.
"""

import copy
import warnings
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from helpers.augmentation import normalize
from helpers.inspection import token_similarity, tokens_after_each_block, visiting
from helpers.training import predict
from lab.parts import without


def accuracy(model, data, images, labels):
    """The share of images (n, C, H, W) whose largest logit is that of labels (n,); any model."""
    with visiting(model):
        answers = predict(model, data, images).argmax(dim=1)  # (n,)
    return (answers == labels.cpu()).double().mean().item()


# What can be read from the tokens of each layer


@torch.no_grad()
def layer_tokens(model, data, images, batch_size=256):
    """The tokens of all layers, z_0 to z_L: uint8 images -> (L + 1, n, N+1, D), on the CPU.

    (L + 1) n (N+1) D numbers of four bytes each; batch_size: images at once.
    """
    device, found = next(model.parameters()).device, []
    for batch in images.split(batch_size):
        layers = tokens_after_each_block(model, normalize(batch.to(device), data))
        found.append(torch.stack(layers).float().cpu())
    return torch.cat(found, dim=1)


def layer_features(model, data, images, batch_size=256):
    """What each layer says of an image: {"class token": (L + 1, n, D), "patches": the same}.

    "patches" is the mean of the patches' tokens; without a class token it stands alone. For
    linear_cka and for probes; on the CPU.
    """
    first, found = model.num_prefix_tokens, {}
    for batch in images.split(batch_size):
        tokens = layer_tokens(model, data, batch, batch_size)  # (L + 1, b, N+1, D)
        if first:
            found.setdefault("class token", []).append(tokens[:, :, 0])
        found.setdefault("patches", []).append(tokens[:, :, first:].mean(dim=2))
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}


@torch.no_grad()
def similarity_by_depth(model, x, batch_size=64):
    """token_similarity of z_0 to z_L, all tokens of an image, the mean over images: (L + 1,)."""
    total = 0
    for batch in x.split(batch_size):
        layers = [token_similarity(z).sum() for z in tokens_after_each_block(model, batch)]
        total = total + torch.stack(layers)
    return (total / len(x)).cpu()


def linear_cka(features):
    """How alike layers see the same n images: list of (n, p_i) -> (len, len), 0 to 1.

    Linear centred kernel alignment (Kornblith et al., arXiv 1905.00414, section 3): the cosine
    between the layers' Gram matrices, each feature's mean over the images subtracted first. 1 for
    layers that differ by a rotation and a scale; the widths p_i may differ; more axes are
    flattened. Take many more images than numbers, or unlike layers look alike. nan for a layer
    that is the same for all images, as the class token of z_0 is. On the CPU, in float64.
    """
    grams = []
    for layer in features:
        layer = layer.detach().cpu().double().flatten(1)  # (n, p)
        centred = layer - layer.mean(dim=0)
        gram = (centred @ centred.T).flatten()  # (n^2,)
        same = centred.norm() <= 1e-12 * layer.norm()
        grams.append(gram / (torch.nan if same else gram.norm()))
    grams = torch.stack(grams)  # (len, n^2)
    return grams @ grams.T


def linear_probe(features, labels, held_out_features, held_out_labels):
    """(train accuracy, held-out accuracy) of a linear classifier: features (n, D), labels (n,).

    Ridge regression to +1 and -1 for each class, in closed form (scikit-learn's RidgeClassifier,
    alpha 1), on features brought to mean 0 and standard deviation 1.
    """
    from sklearn.linear_model import RidgeClassifier  # here: the import takes a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1.0))
    x, held_out_x = (f.cpu().double().numpy() for f in (features, held_out_features))
    y, held_out_y = labels.cpu().numpy(), held_out_labels.cpu().numpy()
    probe.fit(x, y)
    return float(probe.score(x, y)), float(probe.score(held_out_x, held_out_y))


def probe_classes(model, data, train, held_out):
    """Can the class be read from a layer? {"class token": (L + 1, 2), "patches": the same}.

    linear_probe on what layer_features gives, a row for each of z_0 to z_L: accuracy on the images
    that it learned from, on held-out ones. train, held_out: Splits; take train from images that
    the model was trained on and held_out from others.
    """
    seen = layer_features(model, data, train.images)
    unseen = layer_features(model, data, held_out.images)
    return {
        name: torch.tensor([
            linear_probe(x, train.labels, held_out_x, held_out.labels)
            for x, held_out_x in zip(seen[name], unseen[name], strict=True)
        ])
        for name in seen
    }  # fmt: skip


def probe_positions(model, data, images, held_out_images):
    """Which patch is this token? Accuracy of a linear_probe with N classes -> (L + 1, 2).

    A row for each of z_0 to z_L: on the tokens of images, on those of held_out_images. The class
    token is left out; 1 / N by chance. 100 images are plenty: each gives N tokens.
    """
    first = model.num_prefix_tokens
    seen = layer_tokens(model, data, images)[:, :, first:]  # (L + 1, n, N, D)
    unseen = layer_tokens(model, data, held_out_images)[:, :, first:]
    patch = torch.arange(seen.shape[2])  # (N,)
    return torch.tensor([
        linear_probe(
            x.flatten(0, 1), patch.repeat(len(x)), held_x.flatten(0, 1), patch.repeat(len(held_x))
        )
        for x, held_x in zip(seen, unseen, strict=True)
    ])  # fmt: skip


# What its heads write


@torch.no_grad()
def change_without_heads(model, x):
    """How far does the class token turn if one head is missing? images (B, C, H, W) -> (L, h).

    1 - the cosine between the class token after the last norm with the head and without it, the
    mean over the images.
    """
    table = []
    with visiting(model):
        tokens = tokens_after_each_block(model, x)  # L + 1 tensors (B, N+1, D)
        before = model.norm(tokens[-1])[:, 0]
        for layer, block in enumerate(model.blocks):
            row = []
            for head in range(block.attn.num_heads):
                z = without(copy.deepcopy(model), head, layer).blocks[layer](tokens[layer])
                for later in model.blocks[layer + 1 :]:
                    z = later(z)
                after = model.norm(z)[:, 0]
                row.append(1 - F.cosine_similarity(before, after, dim=-1).mean().item())
            table.append(row)
    return torch.tensor(table)


@torch.no_grad()
def written_by_heads(block, z):
    """What each head adds to each token: z (B, N, D), as it enters block -> (B, h, N, D).

    A V U, head by head, U the rows of the output projection that belong to the head. Their sum and
    the projection's bias are what the block's attention adds.
    """
    B, N, D = z.shape
    h = block.attn.num_heads
    qkv = block.attn.qkv(block.norm1(z)).view(B, N, 3, h, D // h)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # three of (B, h, N, d_k)
    attention = (q @ k.transpose(-2, -1) * (D // h) ** -0.5).softmax(dim=-1)  # (B, h, N, N)
    rows = block.attn.proj.weight.view(D, h, D // h)
    return torch.einsum("bhnd,ohd->bhno", attention @ v, rows)


# What its filters look for


@torch.no_grad()
def embedding_components(model, n=28):
    """What the patch embedding looks at: (components (n, C, P, P), their shares of variance (n,)).

    Figure 7, left: principal components of the D filters of model.patch_embed, each a point of
    P^2 C numbers, the mean filter subtracted. For showing, each is scaled by itself: 0.5 is zero,
    its largest number is 1 (a component's sign means nothing). Fewer than n, min(D, P^2 C), if
    there are not as many. Largest share first; all shares together are 1. On the CPU.
    """
    weight = model.patch_embed.proj.weight.cpu().double()  # (D, C, P, P)
    filters = weight.flatten(1)  # (D, P^2 C)
    _, spread, components = torch.linalg.svd(filters - filters.mean(dim=0), full_matrices=False)
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    shown = 0.5 + 0.5 * components / largest  # (min(D, P^2 C), P^2 C)
    shares = spread**2 / (spread**2).sum()
    return shown[:n].view(-1, *weight.shape[1:]).float(), shares[:n].float()


# What the model can do without


def accuracy_without(model, data, images, labels):
    """Accuracy with one part taken away at a time: (L, h + 3), a row for each block.

    Columns: without head 0 to h - 1, then without all of the attention, the MLP, the whole block.
    """
    table = []
    for layer, block in enumerate(model.blocks):
        parts = (*range(block.attn.num_heads), "attention", "mlp", "block")
        lesser = (without(copy.deepcopy(model), part, layer) for part in parts)
        table.append([accuracy(one, data, images, labels) for one in lesser])
    return torch.tensor(table)


@contextmanager
def partly_shown(model, share, generator):
    """While this lasts, model gets a random share of each image's patch tokens, 0 < share <= 1.

    round(share N) tokens of z_0, one at least, drawn for each image by itself, with the positions
    that they had; what stands before them always stays. They come in random order, which no part
    of the encoder can see: share 1 changes nothing but rounding. generator: on the CPU.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}: a share of the patches above 0 and up to 1 is needed")
    first = model.num_prefix_tokens

    def choose(module, inputs, tokens):
        B, N, D = tokens.shape
        count = max(1, round(share * (N - first)))
        order = torch.rand(B, N - first, generator=generator).argsort(dim=1)[:, :count] + first
        order = torch.cat([torch.arange(first).expand(B, -1), order], dim=1)
        return tokens.gather(1, order[:, :, None].expand(-1, -1, D).to(tokens.device))

    hook = model.pos_drop.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def accuracy_when_shown(model, data, images, labels, shares, seed=0):
    """Accuracy when only a share of the patch tokens goes in, for each of shares: (len(shares),).

    The patches of a smaller share are among those of a larger one.
    """
    found = []
    for share in shares:
        generator = torch.Generator().manual_seed(seed)
        with partly_shown(model, share, generator):
            found.append(accuracy(model, data, images, labels))
    return torch.tensor(found)


# What the answer depends on, and how two such maps agree


class Pointing(nn.Module):
    """Logits: the cosine of the class token with that of each given image, images (n, C, H, W).

    For a model without a head, so that what asks for the logit of a class can be asked of it.
    """

    def __init__(self, model, images):
        super().__init__()
        self.model = model
        self.wanted = self.class_token(images).detach()  # (n, D)

    def class_token(self, x):
        return F.normalize(self.model.forward_features(x)[:, 0], dim=-1)  # (B, D)

    def forward(self, x):
        return self.class_token(x) @ self.wanted.T  # (B, n)


@torch.no_grad()
def occlusion_drop(model, x, labels, patch_size, probability=False, batch_size=256):
    """What each patch is worth: images (B, C, H, W), labels (B,) -> (B, rows, cols), on the CPU.

    How much the logit of labels' class, or with probability=True its probability, falls when the
    square of patch_size x patch_size pixels is hidden under grey: 0, the mean after normalisation.
    Above 0 where the patch speaks for the class. Any model from images to logits will do.
    batch_size: images at once. ValueError if patch_size does not divide both sides.
    """
    B, _, H, W = x.shape
    if H % patch_size or W % patch_size:
        raise ValueError(
            f"images of {H} x {W} pixels given, patch_size is {patch_size}: it must divide both"
        )
    rows, cols = H // patch_size, W // patch_size
    row, col = torch.arange(H) // patch_size, torch.arange(W) // patch_size
    patch_of = (row[:, None] * cols + col).to(x.device)  # (H, W): the patch that a pixel lies in
    labels = labels.to(x.device)

    def score(images, classes):
        logits = model(images)  # (b, K)
        values = logits.softmax(dim=-1) if probability else logits
        return values.gather(1, classes[:, None])[:, 0]  # (b,)

    drops = []
    with visiting(model):
        clear = torch.cat([
            score(*part)
            for part in zip(x.split(batch_size), labels.split(batch_size), strict=True)
        ])  # fmt: skip
        for number in torch.arange(B * rows * cols, device=x.device).split(batch_size):
            image = number // (rows * cols)  # (b,)
            hidden = patch_of == (number % (rows * cols))[:, None, None]  # (b, H, W)
            images = x[image].masked_fill(hidden[:, None], 0)
            drops.append(clear[image] - score(images, labels[image]))
    return torch.cat(drops).view(B, rows, cols).cpu()


def rank_correlation(a, b):
    """Do two maps order the patches alike? Two (B, rows, cols) -> (B,), Spearman's, -1 to 1.

    nan where a map is constant and has no order. ValueError for shapes that differ.
    """
    from scipy.stats import ConstantInputWarning, spearmanr  # here: its import takes a second

    if a.shape != b.shape:
        raise ValueError(f"maps {tuple(a.shape)} and {tuple(b.shape)} given: one shape is needed")
    pairs = zip(a.detach().cpu().flatten(1), b.detach().cpu().flatten(1), strict=True)
    with warnings.catch_warnings(category=ConstantInputWarning, action="ignore"):
        return torch.tensor([spearmanr(*pair).statistic for pair in pairs], dtype=torch.float64)


def mean_and_interval(values):
    """(mean, low, high) of numbers (n,): the mean and its 95% interval, 1.96 standard errors wide.

    Each side, from the normal distribution: for 30 independent numbers or more. ValueError if
    there are fewer than 2, or some are nan.
    """
    if len(values) < 2 or values.isnan().any():
        raise ValueError(
            f"{len(values)} numbers given, {int(values.isnan().sum())} of them nan: an interval "
            "needs 2 or more, none of them nan (rank_correlation gives nan for a constant map)"
        )
    values = values.cpu().double()
    mean, error = values.mean().item(), (values.std() / len(values) ** 0.5).item()
    return mean, mean - 1.96 * error, mean + 1.96 * error
