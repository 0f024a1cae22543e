"""Which set of weights: a file may hold several, in dicts within dicts, under prefixes."""

import re
from collections.abc import Mapping
from os.path import commonprefix
from typing import NamedTuple

import helpers.weights.names as tables
from helpers.weights.files import few
from helpers.weights.names import LAYOUTS, Layout

# What tells a model's size, with the number of axes.
ESSENTIAL = {"patch_embed.proj.weight": 4, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2}


class Candidate(NamedTuple):
    """A set of weights: the path of its dict in the file, the prefix of its names there."""

    path: str
    prefix: str
    layout: Layout

    @property
    def key(self):
        return f"{self.path}.{self.prefix}".replace("/", ".").strip(".")


def dicts(weights, path=""):
    """Every dict in a checkpoint by its path, ("", ...), ("model", ...), without those in it."""
    own = {}
    for name, value in weights.items():
        if isinstance(value, Mapping):
            yield from dicts(value, f"{path}.{name}".lstrip("."))
        elif (short := re.sub(tables.WRAPPED, "", str(name))) in own:
            raise ValueError(
                f"{name} and another are both {short}: give a dict without one of them"
            )
        else:
            own[short] = value
    yield path, own


def candidates(dicts):
    """Every set with a patch embedding; if some have positions and blocks too, those alone."""
    found = {}
    for path, own in dicts.items():
        for layout in LAYOUTS:
            kernel, *others = (layout.names(ours)[0] for ours in ESSENTIAL)
            for name in own:
                prefix = name.removesuffix(kernel)
                if name.endswith(kernel) and prefix[-1:] in ("", ".", "/"):
                    lacks = sum(prefix + other not in own for other in others)
                    if lacks < found.get((path, prefix), (9,))[0]:
                        found[path, prefix] = lacks, Candidate(path, prefix, layout)
    fewest = min((lacks for lacks, _ in found.values()), default=0)
    return [candidate for lacks, candidate in found.values() if lacks == fewest]


def chosen(dicts, key):
    """(layout, prefix, its dict without other sets, the key taken, the keys left)."""
    every = candidates(dicts)
    if not every:
        names = [name for own in dicts.values() for name in own]
        raise ValueError(
            "no layout known here (timm, DeiT, torchvision, official .npz, Hugging Face): a patch "
            f"embedding and positions by none of their names, but {few(names) or 'nothing'}"
        )
    keys, inside = [one.key or '"" (the outermost)' for one in every], every
    if key is not None:
        key = key.replace("/", ".").strip(".")
        inside = [one for one in every if one.key == key]
        inside = inside or [one for one in every if one.key.startswith(f"{key}.")]
        if not inside:
            raise ValueError(f"key {key!r} names no set of weights: there are {few(keys)}")
    for usual in (
        lambda one: True,
        lambda one: not re.search(tables.AVERAGED, one.key),
        lambda one: re.fullmatch(tables.USUAL, one.key),
    ):
        if len(rest := [one for one in inside if usual(one)]) == 1:
            break
    else:
        asked = few([key for key, one in zip(keys, every, strict=True) if one in inside])
        raise ValueError(f"several sets of weights: {asked}. Choose one by key=")
    (one,) = rest
    inner = (key or "")[len(one.path) :].strip(".")  # told to look under this prefix alone
    scope = one.prefix[: len(inner) + 1] if inner else ""
    others = [other.prefix for other in every if other.path == one.path]
    others = tuple(prefix for prefix in others if not one.prefix.startswith(prefix))
    own = {
        name: value
        for name, value in dicts[one.path].items()
        if name.startswith(scope) and not name.startswith(others)
    }
    return one.layout, one.prefix, own, one.key, tuple(o.key for o in every if o != one)


def without(prefix, weights):
    """{name without the prefix: [(full name, value), ...]}, more than one where names meet.

    Of a name outside the prefix, the part that both have is taken off (vit. and classifier.); in
    a .npz, what lies outside is the optimizer's and is dropped. Blocks that jax stacked in one
    tensor, encoderblock/name (L, ...), become L tensors.
    """
    plain, stack = {}, "Transformer/encoderblock/"
    for name, value in weights.items():
        if name.startswith(prefix):
            short = name[len(prefix) :]
        elif prefix.endswith("/"):
            continue
        else:
            short = name[commonprefix([name, prefix]).rfind(".") + 1 :]
        stacked = short.startswith(stack) and getattr(value, "ndim", 0)
        layers = enumerate(value) if stacked else [("", value)]
        for i, layer in layers:
            here = short.replace(stack, f"Transformer/encoderblock_{i}/")
            plain.setdefault(here, []).append((name, layer))
    return plain
