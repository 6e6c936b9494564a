"""Reports with known judgements and one-coloured pictures; no model draws, no judge looks."""

from pathlib import Path

from PIL import Image

from expunge.concepts import Concept
from expunge.evaluation.protocol import Protocol
from expunge.evaluation.records import Evaluation, Picture, PicturePair, Report
from expunge.evaluation.scoring import Unrelated, drawn_instead, examples, measure, most_changed
from expunge.evaluation.suite import Plan
from expunge.evaluation.suites.emoji import plan
from expunge.statistics.rates import Estimate

SANTA = Concept(target="santa claus", kind="character", synonyms=("santa",))
INK = Concept(target="ink", kind="style")


def picture(file: Path, labels: dict[str, str], score: float, colour: str) -> Picture:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), colour).save(file)
    sure = dict.fromkeys(labels, 0.9)
    return Picture(file=file, labels=labels, confidences=sure, clip_score=score)


def pairs(asked: Plan, folder: Path, *, still_drawn: int = 1, broken: int = 2) -> list[PicturePair]:
    """The base model is always right; the edited one draws the concept ``still_drawn`` times in
    each group and gets ``broken`` kept prompts of each group wrong."""
    made: list[PicturePair] = []
    for group in asked.groups:
        shots = [shot for shot in asked.shots if shot.group == group.name]
        for index, shot in enumerate(shots):
            right = dict(shot.prompt.expected)
            erased = group.role == "efficacy" and index >= still_drawn
            wrong = erased or (group.role == "retention" and index < broken)
            labels = {**right, asked.attribute: "nothing"} if wrong else right
            made.append(
                PicturePair(
                    group=group.name,
                    prompt=shot.prompt,
                    seed=shot.seed,
                    base=picture(folder / f"base/{shot.number}.png", right, 31.0, "crimson"),
                    edited=picture(
                        folder / f"edited/{shot.number}.png",
                        labels,
                        30.0 - index % 2,
                        "teal" if wrong else "crimson",
                    ),
                    feature_drift=0.02 + 0.01 * (index % 3),
                    pixel_drift=0.01,
                )
            )
    return made


def evaluation(concept: Concept, folder: Path, **outcomes: int) -> Evaluation:
    asked = plan(concept)
    judged = pairs(asked, folder, **outcomes)
    unrelated = Unrelated(Estimate(0.6, (0.5, 0.7), 50), Estimate(0.3, (0.2, 0.4), 50))
    return Evaluation(
        concept=asked.label,
        kind=concept.kind,
        edit="0123456789abcdef",
        summary=f"{concept.target} (uce): 24 parameters, 0.02 MB",
        provenance=(
            {"method": "uce", "settings": {"erase_scale": 1.0}, "seed": 0, "keep": ["dog face"]},
        ),
        protocol=protocol(asked),
        measurements=measure(asked, judged, unrelated),
        drawn_instead=drawn_instead(asked, judged),
        examples=examples(asked, judged),
        most_changed=most_changed(asked, judged),
    )


def protocol(asked: Plan) -> Protocol:
    return Protocol(
        plan=asked,
        model="emoji",
        fingerprint="f" * 64,
        sampler={"scheduler": "ddim", "steps": 20, "guidance_scale": 4.0},
        image_size=(64, 64),
        device="cpu",
        dtype="float32",
        judge="made up",
        judge_sha256="0" * 64,
        decision="as told",
        versions={"expunge": "0"},
    )


def report(folder: Path) -> Report:
    return Report(evaluations=(evaluation(SANTA, folder), evaluation(INK, folder / "ink")))
