"""A live pipeline keeps its flags: it is frozen while it is used here, and no longer."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from diffusers import StableDiffusionPipeline

from expunge import Concept, ExpungeError, Model, erase, load
from expunge.doctor import examine
from expunge.generation import ImageRequest, Sampler, sample
from expunge.testing import pipeline

REQUESTS = [ImageRequest(case_number=str(seed), prompt="a dog", seed=seed) for seed in range(2)]
GHOST = Concept(target="ghost", anchor="dog")
Flags = list[bool]


def flags(pipe: StableDiffusionPipeline) -> Flags:
    networks = (pipe.unet, pipe.vae, pipe.text_encoder)
    return [
        *(module.training for network in networks for module in network.modules()),
        *(weight.requires_grad for network in networks for weight in network.parameters()),
    ]


@pytest.fixture
def trained(tmp_path: Path) -> StableDiffusionPipeline:
    """A pipeline in the midst of its user's training: some flags on, some off, with dropout."""
    pipe = pipeline(tmp_path)
    pipe.unet.train()
    pipe.unet.mid_block.eval()
    pipe.unet.conv_in.requires_grad_(False)
    pipe.text_encoder.train()
    for module in pipe.unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    return pipe


def drawn(model: Model) -> list[torch.Tensor]:
    return [picture for _, picture in sample(model, REQUESTS, Sampler(steps=2))]


def failing(model: Model) -> None:
    with pytest.raises(ExpungeError, match="loss became"):
        erase(
            model,
            GHOST,
            "esd",
            iterations=3,
            trajectories=1,
            batch_size=2,
            num_inference_steps=2,
            lr=1e30,
        )


USES: dict[str, Callable[[Model], object]] = {
    "draw": drawn,
    "encode": lambda model: model.encode(["a ghost"]),
    "solve": lambda model: erase(model, GHOST, "uce"),
    "train": lambda model: erase(
        model, GHOST, "esd", iterations=1, trajectories=1, batch_size=2, num_inference_steps=2
    ),
    "fail": lambda model: failing(model),
    "apply": lambda model: erase(model, GHOST, "uce").apply(model),
    "examine": lambda model: examine(model),
}


@pytest.mark.parametrize("use", USES)
def test_a_live_pipeline_has_its_own_flags_again(
    trained: StableDiffusionPipeline, use: str
) -> None:
    before = flags(trained)
    assert {True, False} == {*before}
    model = load(trained)
    assert flags(trained) == before
    USES[use](model)
    assert flags(trained) == before
    assert all(weight.grad is None for weight in trained.unet.parameters())
    assert all(weight.grad is None for weight in trained.text_encoder.parameters())


def test_a_pipeline_in_training_draws_the_pictures_of_one_that_is_not(
    trained: StableDiffusionPipeline, tmp_path: Path
) -> None:
    wanted = drawn(load(pipeline(tmp_path)))
    model = load(trained)
    for _ in range(2):
        assert all(map(torch.equal, drawn(model), wanted))


def test_the_last_of_several_threads_puts_the_flags_back(trained: StableDiffusionPipeline) -> None:
    model, before = load(trained), flags(trained)
    both, one_left = Barrier(2), Barrier(2)

    def first() -> None:
        with model.frozen():
            both.wait(10)
        one_left.wait(10)

    def second() -> Flags:
        with model.frozen():
            both.wait(10)
            one_left.wait(10)
            return flags(trained)

    with ThreadPoolExecutor(2) as pool:
        _, inside = pool.submit(first), pool.submit(second)
        assert not any(inside.result())
    assert flags(trained) == before


def test_threads_that_draw_side_by_side_leave_the_flags_alone(
    trained: StableDiffusionPipeline,
) -> None:
    model, before, wanted = load(trained), flags(trained), drawn(load(trained))
    with ThreadPoolExecutor(3) as pool:
        for pictures in pool.map(lambda _: drawn(model), range(6)):
            assert all(map(torch.equal, pictures, wanted))
    assert flags(trained) == before


def test_a_model_loaded_by_its_name_is_frozen_for_good() -> None:
    model = load("emoji", device="cpu")
    assert not any(flags(model.pipe))
