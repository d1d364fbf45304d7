from __future__ import annotations

import copy
import io
import subprocess
import sys

import pytest
import torch
from on_device import seeded
from torch import nn

from fundamentallm.config import ModelConfig, TrainingConfig
from fundamentallm.models import build_model
from fundamentallm.training.base_optimizer import Optimizer
from fundamentallm.training.muon import Muon, equally_long, orthogonalize
from fundamentallm.training.optimizers import SGD, Adam, AdamW, build_optimizers

SMALL = ModelConfig(vocab_size=11, d_model=16, num_heads=2, num_layers=2, sequence_length=8)


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalized_singular_values_are_near_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrices = torch.randn(5, *shape, generator=seeded(0))
    result = orthogonalize([matrices], dtype=dtype)[0].float()
    values = torch.linalg.svdvals(result)
    # A square random matrix has singular values near zero, which five iterations only bring on their way.
    lowest = 0.6 if shape[0] != shape[1] else 0.0
    assert values.max() < 1.3 and values.min() > lowest
    assert (values - 1).abs().median() < 0.3


@pytest.mark.parametrize("shape", [(128, 384), (384, 128), (128, 128)])
def test_bfloat16_orthogonalizes_badly_conditioned_matrices(shape: tuple[int, int]) -> None:
    generator = seeded(4)
    left = torch.linalg.qr(torch.randn(3, shape[0], 128, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(3, shape[1], 128, generator=generator)).Q
    matrices = (left * torch.logspace(-4, 0, 128)) @ right.mT
    rounded, exact = (orthogonalize([matrices], dtype=dtype)[0].float() for dtype in (torch.bfloat16, torch.float32))
    assert torch.linalg.svdvals(rounded).max() < 1.3
    assert (rounded - exact).norm() < 0.15 * exact.norm()


def test_orthogonalizing_a_batch_equals_one_by_one() -> None:
    matrices = torch.randn(4, 12, 20, generator=seeded(1))
    others = torch.randn(2, 30, 12, generator=seeded(2))
    together = [matrix for batch in orthogonalize([matrices, others]) for matrix in batch]
    for single, one in zip([*matrices, *others], together, strict=True):
        torch.testing.assert_close(orthogonalize([single[None]])[0][0], one, rtol=1e-4, atol=1e-5)


def test_orthogonalizing_keeps_the_singular_vectors() -> None:
    left, _, right = torch.linalg.svd(torch.randn(10, 10, generator=seeded(2)))
    matrix = left @ torch.linspace(0.5, 1.0, 10).diag() @ right
    inner = left.T @ orthogonalize([matrix[None]])[0][0] @ right.T
    assert (inner - inner.diagonal().diag()).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(20, 20), (16, 40), (40, 16)])
def test_muon_is_torchs_muon_with_equally_long_vectors(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fundamentallm.training.muon._arithmetic", lambda device: torch.float32)  # on any processor
    generator = seeded(3)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(torch.zeros(shape))
    mine = Muon([ours], lr=0.02, momentum=0.95, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.0, adjust_lr_fn="original")
    expected = start.clone()
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator)
        for parameter, optimizer in zip((ours, theirs), (mine, reference), strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
        direction = theirs.detach().clone()
        theirs.detach().zero_()
        expected = expected * (1 - 0.02 * 0.1) + 0.02 * equally_long(direction)
    # theirs computes in bfloat16, whose relative precision is 1/256, through five iterations
    assert (ours - expected).norm() < 0.02 * (expected - start).norm()


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
def test_vectors_along_the_longer_side_become_equally_long(shape: tuple[int, int]) -> None:
    rows, columns = shape
    generator = seeded(6)
    direction = torch.randn(3, *shape, generator=generator) * torch.rand(rows, 1, generator=generator)
    even = equally_long(direction)
    lengths = even.norm(dim=-1 if rows >= columns else -2)
    torch.testing.assert_close(lengths, torch.full_like(lengths, min(1.0, rows / columns) ** 0.5))
    torch.testing.assert_close(even.norm(dim=(-2, -1)), torch.full((3,), rows**0.5, device=even.device))
    assert torch.equal(even.sign(), direction.sign())
    assert not equally_long(torch.zeros(1, *shape)).any()  # what nothing points to stays where it is


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (AdamW, lambda groups: torch.optim.AdamW(groups, 0.01, betas=(0.9, 0.95))),
        (Adam, lambda groups: torch.optim.Adam(groups, 0.01, betas=(0.9, 0.95))),
        (SGD, lambda groups: torch.optim.SGD(groups, 0.01, momentum=0.9, nesterov=True)),
    ],
)
def test_every_optimizer_equals_torchs(ours, theirs, decay: float) -> None:
    generator = seeded(5)
    starts = [torch.randn(4, 6, generator=generator), torch.randn(6, generator=generator)]
    pairs = [[nn.Parameter(start.clone()) for start in starts] for _ in range(2)]
    groups = [[{"params": [m], "weight_decay": decay}, {"params": [v], "weight_decay": 0.0}] for m, v in pairs]
    optimizers = [ours(groups[0], 0.01), theirs(groups[1])]
    for step in range(6):
        gradients = [torch.randn(start.shape, generator=generator) for start in starts]
        for parameters, optimizer in zip(pairs, optimizers, strict=True):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            if step == 3:
                parameters[1].grad = None  # a parameter that one pass did not reach stays, and counts its own steps
            optimizer.step()
            optimizer.zero_grad()
            assert all(parameter.grad is None for parameter in parameters)
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_training_loads_no_compiler() -> None:
    code = """
import sys, torch
from fundamentallm.config import ModelConfig, TrainingConfig
from fundamentallm.models import build_model
from fundamentallm.training.optimizers import build_optimizers
model = build_model(ModelConfig(vocab_size=11, d_model=16, num_heads=2, num_layers=1, sequence_length=8))
optimizers = build_optimizers(model, TrainingConfig())
model(torch.zeros(1, 8, dtype=torch.int64)).sum().backward()
for optimizer in optimizers:
    optimizer.step()
    optimizer.zero_grad()
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_muon_batches_shapes_and_skips_parameters_without_gradient() -> None:
    matrices = [nn.Parameter(torch.randn(6, 6)) for _ in range(3)] + [nn.Parameter(torch.randn(4, 6))]
    before = [matrix.detach().clone() for matrix in matrices]
    for matrix in (matrices[0], matrices[2], matrices[3]):
        matrix.grad = torch.randn_like(matrix)
    Muon(matrices, lr=0.1).step()
    assert [bool((a != b).any()) for a, b in zip(matrices, before, strict=True)] == [True, False, True, True]


@pytest.mark.parametrize("name", ["muon", "adamw", "adam", "sgd"])
def test_every_parameter_belongs_to_exactly_one_group(name: str) -> None:
    model = build_model(SMALL)
    optimizers = build_optimizers(model, TrainingConfig(optimizer=name))
    found = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters())
    assert all(group["initial_lr"] == group["lr"] for o in optimizers for group in o.param_groups)


def test_only_matrices_decay() -> None:
    model = build_model(SMALL)
    (adamw,) = build_optimizers(model, TrainingConfig(optimizer="adamw", weight_decay=0.1))
    for group in adamw.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] > 0}
    muon, rest = build_optimizers(model, TrainingConfig(optimizer="muon", weight_decay=0.1))
    assert {group["weight_decay"] for group in muon.param_groups} == {0.1}
    assert {group["weight_decay"] for group in rest.param_groups} == {0.0}
    assert any(p.ndim == 2 for group in rest.param_groups for p in group["params"])  # the embedding


def test_a_model_without_blocks_trains_under_muon_by_adamw_alone() -> None:
    optimizers = build_optimizers(build_model(ModelConfig(architecture="bigram", vocab_size=7)), TrainingConfig())
    assert [type(optimizer) for optimizer in optimizers] == [AdamW]


@pytest.mark.parametrize("name", ["muon", "adamw", "adam", "sgd"])
def test_state_survives_saving_with_weights_only(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(SMALL)
    config = TrainingConfig(optimizer=name)
    optimizers = build_optimizers(model, config)
    tokens = torch.randint(11, (2, 8))

    def step(model: nn.Module, optimizers: list[Optimizer]) -> None:
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    step(model, optimizers)
    file = io.BytesIO()
    torch.save([optimizer.state_dict() for optimizer in optimizers], file)
    twin = copy.deepcopy(model)
    restored = build_optimizers(twin, config)
    file.seek(0)
    for optimizer, state in zip(restored, torch.load(file, weights_only=True), strict=True):
        optimizer.load_state_dict(state)
    step(model, optimizers)
    step(twin, restored)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
