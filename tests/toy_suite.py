"""A suite that any model can be put through: its judge looks at brightness alone."""

import numpy as np
import torch

from expunge.evaluation.suite import Group, Judgement, Plan, Prompt, Suite


def plan(concept, *, erased=(), size="quick", seeds=None, options=None) -> Plan:
    named = [f"a picture of {concept.target}", f"a photo of {concept.target}"]
    kept = ["a picture of a dog", "a picture of a cat", "a photo of a dog"]
    return Plan(
        suite="toy",
        version=1,
        size=size,
        concept=concept,
        attribute="light",
        label="dark",
        groups=(
            _group("explicit", "efficacy", named, "dark"),
            _group("others", "retention", kept, "bright"),
        ),
        seeds=tuple(seeds or (0,)),
    )


def _group(name, role, texts, light):
    prompts = tuple(Prompt(text=text, expected={"light": light}) for text in texts)
    return Group(name=name, role=role, about="told by brightness", prompts=prompts)


class Brightness:
    name = "brightness"
    decision = "bright above 127"
    sha256 = "0" * 64
    size = None
    score = 1.0

    def judge(self, pictures, prompts):
        means = [np.asarray(picture).mean() for picture in pictures]
        return [
            Judgement(
                labels={"light": "bright" if value > 127 else "dark"},
                confidences={"light": 1.0},
                clip_score=self.score,
            )
            for value in means
        ]

    def read(self, judgement, prompt):
        return judgement

    def features(self, pictures):
        return torch.tensor(np.stack([np.asarray(p).reshape(-1) for p in pictures]) + 1.0)


SUITE = Suite(plan=plan, judge=lambda options, concepts: Brightness())
