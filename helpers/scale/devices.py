"""Where a training runs, and in which precision: what "auto" means."""

import sys

import torch

PRECISIONS = ("auto", "float32", "bfloat16")


def choose_device(name="auto"):
    """The torch.device called name; "auto" is cuda, then mps, then cpu.

    ValueError for one that this machine has not.
    """
    if name != "auto":
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:  # torch built without it: AssertionError
            reason = str(error).splitlines()[0].split(". ")[0]
            raise ValueError(
                f"device is {name!r}, which torch cannot use here ({reason}): choose auto or cpu"
            ) from error
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_precision(name, device, width):
    """ "float32" or "bfloat16". "auto" takes bfloat16 where it was measured to be faster.

    That is on GPUs that multiply it, and on CPUs that do if tokens are at least 128 wide: below
    that, a step on a CPU is spent on other things than products. ValueError for another name.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision is {name!r}: choose one of {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    if device.type == "cuda":
        pays = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        pays = device.type == "cpu" and width >= 128 and cpu_multiplies_bfloat16()
    return "bfloat16" if pays else "float32"


def cpu_multiplies_bfloat16():
    """Whether this CPU has instructions for it; False with a torch too old to tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def in_a_notebook():
    """Whether a Jupyter kernel, or IPython, runs this."""
    return "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None
