"""A ViT with a part taken away, or with another in its place, from outside.

    without(model, "positions")
    without(model, "mlp", layer=3)                   # in the fourth block alone
    replace_part(model, "positions", kind="2-D", where="every layer")
    replace_part(model, "relu")

The model is changed in place and returned: give copy.deepcopy(model) to keep it. All the rest stays
as it was, so what differs in accuracy is owed to the part alone.
"""

import torch
from torch import nn

from helpers.model import EncoderBlock, VisionTransformer

PARTS = (
    "positions", "attention", "heads", "mlp", "depth", "class token", "residuals", "norm",
)  # fmt: skip

# Taken away


class Nothing(nn.Module):
    """Zeros, whatever comes in: what a residual connection adds when a part is removed."""

    def forward(self, x):
        return torch.zeros_like(x)


class NoResidualBlock(EncoderBlock):
    """What a half of the block makes replaces its input: (B, N, D) -> (B, N, D)."""

    def forward(self, x):
        x = self.attn(self.norm1(x))
        return self.mlp(self.norm2(x))


class ReadFirstPatch(VisionTransformer):
    """Neither class token nor mean: the head reads the first patch's token."""

    def forward(self, x):
        x = self.forward_features(x)[:, self.num_prefix_tokens]  # (B, N, D) -> (B, D)
        return self.head(self.pre_logits(x))  # (B, K)


def encoder_blocks(model):
    """Those of model.blocks that are blocks: positions may have been put between them."""
    return [block for block in model.blocks if isinstance(block, EncoderBlock)]


def without(model, part, layer=None):
    """Take a part away from a VisionTransformer in place -> model.

    positions: they become zeros that do not learn. heads: one wide head in the place of several,
    with weights of the same shapes. depth: the first block alone is left. class token: the head
    reads the first patch's token, after the last norm, instead of a class token, which goes, or of
    the mean.

    In every block, or in the one whose number is layer: attention, mlp, block (both): it adds
    nothing. A head's number, from 0: its columns of proj become zeros, and proj's bias stays.
    residuals: what attention or the MLP makes is not added to its input but replaces it. norm:
    tokens stay as they are; of all blocks, the last norm goes too.

    ValueError for another part, IndexError for a layer that is not there.
    """
    blocks = encoder_blocks(model) if layer is None else [encoder_blocks(model)[layer]]
    attending = [block.attn for block in blocks if not isinstance(block.attn, Nothing)]
    heads = range(max((attn.num_heads for attn in attending), default=0))
    if layer is not None and part in ("positions", "heads", "depth", "class token"):
        raise ValueError(f"{part} cannot be taken from one layer: leave layer out")
    if part == "positions":
        model.pos_embed.requires_grad_(False).zero_()
    elif part in ("attention", "mlp", "block"):
        for block in blocks:
            if part != "mlp":
                block.attn = Nothing()
            if part != "attention":
                block.mlp = Nothing()
    elif part in heads:
        for attn in attending:
            width = attn.proj.in_features // attn.num_heads
            with torch.no_grad():
                attn.proj.weight[:, part * width : (part + 1) * width] = 0
    elif part == "heads":
        for attn in attending:
            attn.num_heads = 1
    elif part == "depth":
        model.blocks = model.blocks[: 1 + list(model.blocks).index(blocks[0])]
    elif part == "class token":
        if model.num_prefix_tokens:
            table, learns = model.pos_embed.detach(), model.pos_embed.requires_grad
            model.pos_embed = nn.Parameter(table[:, 1:].clone(), requires_grad=learns)
            model.cls_token = None
            model.num_prefix_tokens -= 1
        model.__class__ = ReadFirstPatch  # the same parts, another forward
    elif part == "residuals":
        for block in blocks:
            block.__class__ = NoResidualBlock
    elif part == "norm":
        for block in blocks:
            block.norm1, block.norm2 = nn.Identity(), nn.Identity()
        if layer is None:
            model.norm = nn.Identity()
    else:
        choices = ", ".join([*PARTS, "block", *map(str, heads)])
        raise ValueError(f"part {part!r} is unknown: choose one of {choices}")
    return model


# Others in their place

REPLACEMENTS = {}


def replacement(function):
    """Register function(model, **options), which changes the model in place, by its name."""
    REPLACEMENTS[function.__name__.replace("_", " ")] = function
    return function


def replace_part(model, name, **options):
    """Make the change called name to a VisionTransformer in place -> model.

    ValueError for a name that is not in REPLACEMENTS, or options that it does not know.
    """
    if name not in REPLACEMENTS:
        raise ValueError(f"change {name!r} is unknown, there are: {', '.join(REPLACEMENTS)}")
    REPLACEMENTS[name](model, **options)
    return model


# Positions: Table 8 of the paper


def sine_positions(count, dim):
    """The table of "Attention Is All You Need": (count, dim), dim even."""
    speed = 10000 ** (-torch.arange(0, dim, 2) / dim)  # (dim/2,)
    angle = torch.arange(count)[:, None] * speed  # (count, 1) * (dim/2,) -> (count, dim/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # -> (count, dim)


def sine_positions_2d(rows, cols, dim):
    """A table (rows * cols, dim): half of the coordinates for the row, half for the column."""
    y = sine_positions(rows, dim // 2).repeat_interleave(cols, dim=0)  # 0 0 0 .. 1 1 1 ..
    x = sine_positions(cols, dim // 2).repeat(rows, 1)  # 0 1 2 .. 0 1 2 ..
    return torch.cat([y, x], dim=1)  # two of (rows * cols, dim/2) -> (rows * cols, dim)


class OneTable(nn.Module):
    """1-D: a learned vector for each token, as in equation 1. () -> (1, N+1, D)"""

    def __init__(self, grid, tokens, dim, std):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, dim) * std)

    def forward(self):
        return self.pos_embed


class RowsAndColumns(nn.Module):
    """2-D: half of a vector learned for the row, half for the column. () -> (1, N+1, D)

    A class token gets a vector of its own.
    """

    def __init__(self, grid, tokens, dim, std):
        super().__init__()
        rows, cols = grid
        shapes = [(rows, 1, dim // 2), (1, cols, dim // 2), (tokens - rows * cols, dim)]
        self.pos_embed = nn.ParameterList([torch.randn(shape) * std for shape in shapes])

    def forward(self):
        y, x, class_row = self.pos_embed
        grid = (len(y), x.shape[1], -1)
        table = torch.cat([y.expand(grid), x.expand(grid)], dim=2).flatten(0, 1)  # (N, D)
        return torch.cat([class_row, table])[None]


class Waves(nn.Module):
    """Fixed sines and cosines, half for the row, half for the column. () -> (1, N+1, D)

    Zeros for a class token, which has no place.
    """

    def __init__(self, grid, tokens, dim, std):
        super().__init__()
        table = sine_positions_2d(*grid, dim)  # values in -1..1, mean square 1/2
        class_rows = torch.zeros(tokens - len(table), dim)
        self.register_buffer("table", torch.cat([class_rows, table])[None])

    def forward(self):
        return self.table


TABLES = {"1-D": OneTable, "2-D": RowsAndColumns, "sine": Waves}


class AddPositions(nn.Module):
    """(B, N, D) -> (B, N, D): adds a table of positions."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, x):
        return x + self.table()


@replacement
def positions(model, kind, where="input", std=0.5):
    """Table 8: kind is "none", "1-D", "2-D" or "sine"; where they are added:

    "input": once, before the first block; "every layer": before each block, from a table of its
    own; "every layer, shared": before each block, from one table. std: of learned ones at the
    start. ValueError for another kind or place, or a width that does not divide by 4.
    """
    places = ("input", "every layer", "every layer, shared")
    if kind not in ("none", *TABLES) or where not in places:
        raise ValueError(
            f"positions {kind!r} at {where!r}: choose one of none, {', '.join(TABLES)}, and one of "
            + "; ".join(places)
        )
    _, tokens, D = model.pos_embed.shape
    if D % 4:
        raise ValueError(f"the width is {D}: row and column need a half each, of pairs of waves")
    without(model, "positions")
    if kind in ("none", "sine") and model.num_prefix_tokens:
        nn.init.normal_(model.cls_token, std=std)  # what its row of a learned table gives it
    if kind == "none":
        return
    blocks = encoder_blocks(model)
    count = len(blocks) if where == "every layer" else 1
    tables = [TABLES[kind](model.patch_embed.grid_size, tokens, D, std) for _ in range(count)]
    if where == "every layer, shared":
        tables *= len(blocks)
    steps = []
    for number, block in enumerate(blocks):
        if number < len(tables):
            steps.append(AddPositions(tables[number]))
        steps.append(block)
    model.blocks = nn.Sequential(*steps)


# The block


class PostNormBlock(EncoderBlock):
    """The block of the 2017 Transformer: the norm comes after the addition, on the main road."""

    def forward(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


@replacement
def norm_after(model):
    """Norm after each half, as in 2017; the last norm goes, since every block ends with one."""
    for block in encoder_blocks(model):
        block.__class__ = PostNormBlock  # the same parts, in another order
    model.norm = nn.Identity()


@replacement
def relu(model):
    """max(0, x) in the place of GELU in every MLP, as in 2017."""
    for block in encoder_blocks(model):
        block.mlp.act = nn.ReLU()


# The start


@replacement
def small_normal_start(model):
    """N(0, 0.02) for every matrix, the class token and the positions; zeros for every bias."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        elif "norm" not in name:
            nn.init.zeros_(parameter)


@replacement
def torch_start(model):
    """torch's default for every nn.Linear and nn.Conv2d; positions and class token as they are."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
