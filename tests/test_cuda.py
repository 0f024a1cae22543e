"""What only a GPU can show: training, compiling, resuming, bfloat16, streaming and attention."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch

from helpers.data import load
from helpers.model import attention
from helpers.training import TrainConfig, fit, parameter_groups, train_step, training_batches
from tests.peers import randomize
from tests.test_training import PHOTO_SIZES, few_digits, same_weights, tiny_vit, two_photographs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
GPU = "cuda"
DRAWN = dict(mixup=0.3, cutmix=0.3, erase=0.2, drop_path=0.2, ema=0.9)


def config(**changes):
    settings = dict(epochs=4, batch_size=32, lr=3e-3, device=GPU, precision="float32")
    return TrainConfig(**(settings | changes))


@pytest.fixture
def deterministic(monkeypatch):
    """The same sums each time: without this, backward passes on a GPU add in any order."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_it_learns_real_digits():
    model = tiny_vit(embed_dim=32, depth=2, pos_embed_std=0.5)
    still = dict(shift=0, rotate=0, zoom=0, precision="auto", device="auto")
    history = fit(model, load("digits"), config(epochs=8, lr=5e-3, **still))
    assert history.device == GPU == next(model.parameters()).device.type
    assert history.epochs[0].train_loss > history.epochs[-1].train_loss
    assert history.test_accuracy > 0.85  # chance is 0.1


def test_the_gpu_gets_the_images_that_the_cpu_gets():
    """All numbers are drawn on the CPU; only the pixels between pixels are rounded elsewhere."""
    batches, few = [], few_digits(70)
    for device in ("cpu", GPU):
        read, generator = few.train.reader(torch.device(device)), torch.Generator().manual_seed(1)
        batches.append(list(training_batches(few, config(**DRAWN), generator, read)))
    for (x, y, _), (x_gpu, y_gpu, _) in zip(*batches, strict=True):
        assert x_gpu.device.type == GPU
        torch.testing.assert_close(x_gpu.cpu(), x, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(y_gpu.cpu(), y)


@pytest.mark.skipif(not shutil.which("cc"), reason="Triton needs a C compiler")
def test_compiled_training_is_the_same_training():
    """But for rounding; convolutions round to TF32, 10 bits, on a GPU."""
    torch._dynamo.reset()
    runs = [fit(tiny_vit(), few_digits(70), config(compile=on)) for on in (False, True)]
    eager, compiled = ([r.train_loss for r in run.epochs] + [run.test_loss] for run in runs)
    assert compiled == pytest.approx(eager, rel=1e-3)
    assert runs[0].compile_seconds == 0 < runs[1].compile_seconds


def test_a_resumed_run_ends_with_the_same_weights(tmp_path, deterministic):
    """Bit for bit: dropout and drop-path draw from the GPU's own random numbers."""
    few, settings = few_digits(100), config(**DRAWN, run_dir=str(tmp_path))
    straight, broken, again = (tiny_vit(drop_rate=0.1, depth=2) for _ in range(3))
    expected = fit(straight, few, config(**DRAWN))

    def stop(record):
        if record.epoch == 2:
            raise KeyboardInterrupt

    fit(broken, few, settings, on_epoch=stop)
    history = fit(again, few, replace(settings, resume=True))
    assert same_weights(again, straight) and history.test_loss == expected.test_loss


def test_a_step_in_bfloat16_is_close_to_one_in_float32():
    """bfloat16 keeps 8 bits: a gradient may be off by a few hundredths of its length."""
    first, losses, gradients = randomize(tiny_vit(embed_dim=64, depth=2)).to(GPU), [], []
    for parameter in first.parameters():
        parameter.data *= 0.2
    x, y = torch.randn(64, 1, 8, 8).to(GPU), torch.arange(64, device=GPU) % 10
    for precision in ("float32", "bfloat16"):
        model = copy.deepcopy(first)
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-3, fused=True)
        losses.append(train_step(model, x, y, optimizer, config(), precision)[0].item())
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


def test_streamed_pictures_arrive_whole_and_train_the_same_with_workers(tmp_path, deterministic):
    """Pinned memory must not be written anew before its copy to the GPU is done."""
    data = two_photographs(tmp_path)
    numbers = list(torch.arange(len(data.train)).split(3))
    cpu = data.train.reader(torch.device("cpu"), crop=0.08)(numbers, 5)
    gpu = list(data.train.reader(torch.device(GPU), crop=0.08, workers=2)(numbers, 5))
    for (x, y), (x_gpu, y_gpu) in zip(cpu, gpu, strict=True):
        assert x_gpu.device.type == GPU
        assert torch.equal(x_gpu.cpu(), x) and torch.equal(y_gpu.cpu(), y)
    models = [tiny_vit(**PHOTO_SIZES) for _ in range(2)]
    for model, workers in zip(models, (0, 2), strict=True):
        history = fit(model, data, config(batch_size=10, workers=workers))
        assert history.epochs[-1].train_loss < history.epochs[0].train_loss
    assert same_weights(*models)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("N, d", [(17, 8), (197, 64)])
def test_attention_is_the_formula_in_float64_forwards_and_backwards(dtype, tolerance, N, d):
    generator = torch.Generator().manual_seed(0)
    *qkv, gradient = (torch.randn(2, 3, N, d, generator=generator).to(dtype) for _ in range(4))
    q, k, v = (x.double().requires_grad_() for x in qkv)
    ours = [x.to(GPU, copy=True).requires_grad_() for x in qkv]
    expected = (q @ k.transpose(-2, -1) / d**0.5).softmax(dim=-1) @ v
    expected = [expected, *torch.autograd.grad(expected, (q, k, v), gradient.double())]
    out = attention(*ours)
    found = [out, *torch.autograd.grad(out, ours, gradient.to(GPU))]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double().cpu(), b, atol=tolerance, rtol=tolerance)
