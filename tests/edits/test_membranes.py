"""Membranes: what they add, how far they open, and what they are together."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model
from expunge.edits import factors, membranes
from expunge.edits.gates import Tokens
from expunge.edits.membranes import Membranes
from expunge.models import Condition
from expunge.testing import membrane, random

SIZES = {"a": (6, 4), "b": (4, 4)}
"""Outputs and inputs of two layers."""
ROWS, WIDTH = 3, 5
SANTA = Concept(target="santa claus", kind="character")


def made(
    seed: int, tokens: Sequence[Sequence[int]] = ((1, 2),), rank: int = 1, **acts
) -> Membranes:
    """A membrane of two layers, whose phrases have random embeddings."""
    return Membranes.made(
        {name: random(out, rank, seed=seed + out) for name, (out, _) in SIZES.items()},
        {name: random(rank, into, seed=seed + 50 + into) for name, (_, into) in SIZES.items()},
        random(len(tokens), ROWS, WIDTH, seed=seed),
        tokens,
        **acts,
    )


def cosine(one: Tensor, other: Tensor) -> float:
    one, other = one.double().flatten(), other.double().flatten()
    return float(one @ other / (one @ one).sqrt() / (other @ other).sqrt())


def test_closeness_is_the_larger_of_cosine_and_share_of_tokens() -> None:
    tokens = ((1, 2), (7, 8, 8, 9))
    gate, prompts = made(3, tokens), random(3, ROWS, WIDTH, seed=8)
    known = [[5, 2, 2], [9, 8, 7, 1], []]
    shares = [[0.5, 0.0], [0.5, 1.0], [0.0, 0.0]]  # of the different tokens of each phrase
    phrases = random(2, ROWS, WIDTH, seed=3)
    cosines = [[cosine(prompt, phrase) for phrase in phrases] for prompt in prompts]
    expected = {
        "clipcos": cosines,
        "tokenuni": shares,
        "clipcos_tokenuni": [
            [max(pair) for pair in zip(*both, strict=True)]
            for both in zip(cosines, shares, strict=True)
        ],
        "allone": [[1.0, 1.0]] * 3,
    }
    for metric, values in expected.items():
        close = made(3, tokens, metric=metric).closeness(prompts, known)
        torch.testing.assert_close(close, torch.tensor(values))
    opened = made(3, tokens, strength=2.0).opened(prompts, known)
    nearest = gate.closeness(prompts, known).amax(1, keepdim=True)
    torch.testing.assert_close(opened, 2 * nearest)


@pytest.mark.parametrize("metric", ["tokenuni", "clipcos_tokenuni", "clipcos"])
def test_the_cosine_alone_counts_where_tokens_are_unknown(metric: str) -> None:
    prompts = torch.cat([random(1, ROWS, WIDTH, seed=3), -random(1, ROWS, WIDTH, seed=3)])
    close = made(3, metric=metric).closeness(prompts, [None, None])
    torch.testing.assert_close(close, torch.tensor([[1.0], [-1.0]]))


@pytest.mark.parametrize("rule", ["paper", "released"])
@pytest.mark.parametrize("rank", [1, 3])
def test_what_is_added_is_the_rule_written_down(rule: str, rank: int) -> None:
    gates = [made(20 * n, [[n, n + 1]], rank, strength=1.0 + n, rule=rule) for n in range(3)]
    joined = Membranes.joined(gates)
    prompts, known = random(2, ROWS, WIDTH, seed=4), [[1], None]
    opened = torch.cat([gate.opened(prompts, known) for gate in gates], 1)
    torch.testing.assert_close(joined.opened(prompts, known), opened)
    additions = joined.additions(prompts, known)
    for name, (out, into) in SIZES.items():
        for inputs in (random(2, 7, into, seed=5), random(2, into, 3, 2, seed=6)):
            added = additions[name](inputs)
            for row in range(2):
                if rule == "paper":
                    change = sum(
                        opened[row, i] * gate.up[name] @ gate.down[name]
                        for i, gate in enumerate(gates)
                    )
                else:
                    up = sum(opened[row, i] * gate.up[name] for i, gate in enumerate(gates))
                    down = sum(opened[row, i] * gate.down[name] for i, gate in enumerate(gates))
                    change = up @ down
                if inputs.ndim == 3:
                    expected = inputs[row] @ change.T
                else:
                    expected = torch.conv2d(inputs[row], change[:, :, None, None])
                torch.testing.assert_close(added[row], expected, rtol=1e-4, atol=1e-4)
                assert expected.shape[0 if inputs.ndim == 4 else 1] == out


def test_one_fully_open_membrane_is_the_same_by_both_rules() -> None:
    prompts, inputs = random(1, ROWS, WIDTH), random(1, 2, 4, seed=1)
    outputs = [
        made(0, rule=rule).additions(prompts, [[1, 2]])["a"](inputs)
        for rule in ("paper", "released")
    ]
    torch.testing.assert_close(*outputs)
    half = [
        made(0, rule=rule, metric="tokenuni").additions(prompts, [[2]])["a"](inputs)
        for rule in ("paper", "released")
    ]
    torch.testing.assert_close(half[0] / 2, half[1])  # the released rule squares it


def test_a_layer_that_one_leaves_alone() -> None:
    both, one = made(0), made(40)
    part = Membranes.made(
        {"a": one.up["a"]}, {"a": one.down["a"]}, random(1, ROWS, WIDTH, seed=40), [[1, 2]]
    )
    joined = Membranes.joined([part, both])
    prompts, known = random(1, ROWS, WIDTH), [[1]]
    inputs = random(1, 2, 4, seed=1)
    alone = {gate: gate.additions(prompts, known) for gate in (both, part)}
    added = joined.additions(prompts, known)
    torch.testing.assert_close(added["b"](inputs), alone[both]["b"](inputs))
    torch.testing.assert_close(
        added["a"](inputs), alone[both]["a"](inputs) + alone[part]["a"](inputs)
    )


def test_gradients_reach_the_prompt_and_the_input() -> None:
    prompts = random(1, ROWS, WIDTH).requires_grad_()
    inputs = random(1, 2, 4, seed=1).requires_grad_()
    Membranes.joined([made(0), made(9)]).additions(prompts, [None])["a"](inputs).sum().backward()
    assert prompts.grad.abs().sum() > 0
    assert inputs.grad.abs().sum() > 0


def test_what_is_stored_comes_back() -> None:
    gate = made(3, [[1, 2], [4]], 2, strength=1.5, metric="tokenuni")
    back = Membranes.of(gate.names, gate.tensors())
    assert (back.rule, back.metric) == (gate.rule, gate.metric)
    assert all(torch.equal(back.tensors()[key], value) for key, value in gate.tensors().items())


def test_what_cant_act_together_is_refused() -> None:
    for acts in ({"rule": "released"}, {"metric": "clipcos"}):
        with pytest.raises(ExpungeError, match=f"with {min(acts)} .* and .* can't act together"):
            Membranes.joined([made(0), made(1, **acts)])
    with pytest.raises(ExpungeError, match="the ranks 1, 2 can't be added up"):
        Membranes.joined([made(0, rule="released"), made(1, rank=2, rule="released")])
    wide = Membranes.made({"a": random(6, 1)}, {"a": random(1, 4)}, random(1, 2, 2), [[1]])
    with pytest.raises(ExpungeError, match="different text encoders"):
        Membranes.joined([made(0), wide])
    other = Membranes.made({"a": random(8, 1)}, {"a": random(1, 4)}, random(1, ROWS, WIDTH), [[1]])
    with pytest.raises(ExpungeError, match="different models: a has two sizes"):
        Membranes.joined([made(0), other])
    with pytest.raises(ExpungeError, match="has 10 numbers, those of the erased phrases 15"):
        made(0).closeness(random(1, 2, WIDTH), [None])


@torch.no_grad()
def predicted(model: Model, prompts: Sequence[str]) -> Tensor:
    latents = random(1, *model.latent_shape, seed=7).expand(len(prompts), -1, -1, -1)
    return model.predict(latents, 321, model.condition(prompts))


def test_in_the_unet_each_prompt_has_the_weights_it_asks_for(pico: Model, tmp_path) -> None:
    both = membrane(pico, Concept(target="ghost"), 1) + membrane(pico, SANTA, 2)
    both.save(tmp_path / "both.safetensors")
    both = Edit.load(tmp_path / "both.safetensors")
    prompts = ["a picture of santa claus", "a dog"]
    plain = predicted(pico, prompts)
    with both.applied(pico):
        together = predicted(pico, prompts)
    assert torch.equal(plain, predicted(pico, prompts))
    for row, prompt in enumerate(prompts):
        weights = {}
        for part in both.components:
            gate = part.payload
            opened = gate.opened(pico.encode([prompt]), [pico.tokens(prompt)])
            for name in gate.names:
                change = (opened[0, 0] * gate.up[name] @ gate.down[name]).reshape(
                    pico.base_weight(name).shape
                )
                weights[name] = weights.get(name, pico.base_weight(name)) + change
        pico.weights.write(weights)
        expected = predicted(pico, prompts)[row]
        pico.weights.write(dict.fromkeys(weights))
        torch.testing.assert_close(together[row], expected, rtol=1e-4, atol=1e-4)
        assert (together[row] - plain[row]).abs().max() > 1e-3
    parts = [Edit((part,)) for part in both.components]
    with parts[0].applied(pico), parts[1].applied(pico):
        torch.testing.assert_close(predicted(pico, prompts), together, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prompts", [["a ghost"], ["", "", "a ghost"], ["dog", "a ghost"] * 5])
def test_folded_into_weights_or_not_it_is_the_same(
    pico: Model, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many membranes become part of a layer's weight while nothing needs a gradient."""
    several = [membrane(pico, Concept(target=f"ghost {n}"), n, rank=3) for n in range(3)]
    with several[0].applied(pico), several[1].applied(pico), several[2].applied(pico):
        folded, made = predicted(pico, prompts), []
        whole = factors.PerPromptWeights.whole
        monkeypatch.setattr(
            factors.PerPromptWeights, "whole", lambda *at: made.append(at[1]) or whole(*at)
        )
        again = predicted(pico, prompts)
        assert torch.equal(folded, again)
        runs = 1 + sum(one != two for one, two in pairwise(prompts))
        kinds = {type(module) for module in made}
        assert kinds == (
            set() if runs > membranes.MOST_RUNS else {torch.nn.Linear, torch.nn.Conv2d}
        )
        latents = random(1, *pico.latent_shape, seed=7).expand(len(prompts), -1, -1, -1)
        count = len(made)
        thin = pico.predict(latents, 321, Condition(pico.encode(prompts).requires_grad_()))
        assert len(made) == count
    torch.testing.assert_close(folded, thin, rtol=1e-4, atol=1e-4)


def test_the_pipeline_knows_the_tokens(pico: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phrase deep in a prompt opens its membrane fully."""
    seen, real = [], Membranes.opened

    def opened(self: Membranes, conditions: Tensor, tokens: Tokens) -> Tensor:
        seen.append(real(self, conditions, tokens))
        return seen[-1]

    monkeypatch.setattr(Membranes, "opened", opened)
    with membrane(pico, SANTA, metric="tokenuni").applied(pico):
        for prompt in ("a dog and a santa", "a dog and a santa claus"):
            pico.pipe(prompt, num_inference_steps=2, output_type="latent")
    assert [opened.tolist() for opened in seen] == [[[0.0], [0.5]], [[0.0], [1.0]]]
