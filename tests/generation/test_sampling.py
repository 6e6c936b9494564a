from collections.abc import Iterable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.generation import ImageRequest, Sampler, sample
from expunge.generation.sampling import _lanes, _Texts
from expunge.models import Condition, Model

FAST = Sampler(scheduler="ddim", steps=3, guidance_scale=4.0)
WORDS = ["santa claus", "a dog", "a cat, noto style", "ghost", "a photo of a man"]


def ask(count: int, **fields: object) -> list[ImageRequest]:
    return [
        ImageRequest(case_number=str(i), prompt=WORDS[i % len(WORDS)], seed=10 + i, **fields)
        for i in range(count)
    ]


def draw(
    model: Model, requests: Iterable[ImageRequest], sampler: Sampler = FAST
) -> dict[ImageRequest, Tensor]:
    return dict(sample(model, requests, sampler))


def same(one: dict[ImageRequest, Tensor], other: dict[ImageRequest, Tensor]) -> bool:
    return all(torch.equal(one[request], other[request]) for request in one.keys() & other.keys())


def test_a_picture_does_not_depend_on_what_is_drawn_beside_it(pico: Model) -> None:
    requests = ask(19)
    whole = draw(pico, requests)
    alone = {request: picture for r in requests[:4] for request, picture in draw(pico, [r]).items()}
    assert same(whole, alone)
    assert same(whole, draw(pico, requests[::-1]))
    assert same(whole, draw(pico, requests[1::2]))
    assert not torch.equal(whole[requests[0]], whole[requests[5]])


def test_the_same_on_the_bundled_model() -> None:
    from expunge import load

    model = load("emoji", device="cpu")
    words = ["dog face, noto style", "santa claus", "a pizza in twemoji style"]
    requests = [ImageRequest(case_number=w, prompt=w, seed=3) for w in ["a", "b", "c"]]
    requests = [r.model_copy(update={"prompt": w}) for r, w in zip(requests, words, strict=True)]
    whole = draw(model, requests)
    assert same(whole, draw(model, requests[::-1]))
    assert same(whole, draw(model, requests[1:2]))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_nor_on_the_number_of_threads(pico: Model, threads: int) -> None:
    requests, before = ask(7), torch.get_num_threads()
    expected = draw(pico, requests)
    torch.set_num_threads(threads)
    try:
        assert same(expected, draw(pico, requests))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_batches_shrink_where_rows_of_a_batch_differ(pico: Model) -> None:
    texts, predict = _Texts(pico), pico.predict
    assert _lanes(pico, (8, 8), texts) > 1

    def uneven(latents: Tensor, timestep: Tensor | int, condition: Condition) -> Tensor:
        predicted = predict(latents, timestep, condition)
        predicted[4:] += 1e-6
        return predicted

    pico.predict = uneven  # type: ignore[method-assign]
    assert _lanes(pico, (8, 8), texts) == 2


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "lms", "euler", "dpm++", "native"])
def test_agrees_with_the_pipeline_itself(pico: Model, scheduler: str) -> None:
    sampler = Sampler(scheduler=scheduler, steps=5, guidance_scale=3.0)
    requests = ask(3)
    drawn = draw(pico, requests, sampler)
    pico.pipe.scheduler = pico.process.scheduler(*sampler.sampling(pico)[:2])
    for request in requests:
        expected = pico.pipe(
            request.prompt,
            num_inference_steps=5,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="np",
        ).images[0]
        levels = torch.from_numpy(expected * 255).round()
        assert (levels - drawn[request].float()).abs().max() <= 1


def test_samples_are_the_draws_of_the_seed(pico: Model) -> None:
    """As in the released scripts, which draw the noise of all samples at once."""
    requests = [ask(1, sample=number)[0] for number in range(3)]
    drawn = draw(pico, requests)
    generator = torch.Generator().manual_seed(requests[0].seed)
    pictures = pico.pipe(
        requests[0].prompt,
        num_images_per_prompt=3,
        num_inference_steps=FAST.steps,
        guidance_scale=FAST.guidance_scale,
        generator=generator,
        output_type="np",
    ).images
    for request, expected in zip(requests, pictures, strict=True):
        assert (torch.from_numpy(expected * 255).round() - drawn[request]).abs().max() <= 1


def test_ancestral_noise_comes_from_each_seed(pico: Model) -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    pico.pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pico.pipe.scheduler.config)
    sampler, requests = Sampler(scheduler="native", steps=3), ask(5)
    assert same(draw(pico, requests, sampler), draw(pico, requests[3:], sampler))


def test_a_request_can_bring_its_own_guidance_and_size(pico: Model) -> None:
    plain, guided, wide = (
        ask(1)[0],
        ask(1, guidance_scale=9)[0],
        ask(1, width=24)[0],
    )
    drawn = draw(pico, [plain, guided, wide])
    assert not torch.equal(drawn[plain], drawn[guided])
    assert drawn[wide].shape == (16, 24, 3)
    assert drawn[plain].dtype == torch.uint8
    assert same(drawn, draw(pico, [wide]))
    assert same(drawn, draw(pico, [guided]))


def test_what_cannot_be_drawn_is_an_error(pico: Model) -> None:
    with pytest.raises(ExpungeError, match="case 0: 16×25 pixels; this model draws multiples of 2"):
        draw(pico, ask(1, width=25))
    with pytest.raises(ExpungeError, match="1001 steps: the model has only 1000 timesteps"):
        draw(pico, ask(1), Sampler(steps=1001))
    with pytest.raises(ValidationError):
        Sampler(guidance_scale=float("nan"))


def test_a_broken_model_is_never_drawn_silently(pico: Model) -> None:
    with torch.no_grad():
        pico.denoiser.get_parameter("conv_out.bias").fill_(float("nan"))
    with pytest.raises(ExpungeError, match="case 0: the picture became infinite or NaN"):
        draw(pico, ask(1))
