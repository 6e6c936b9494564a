"""The demo from end to end on the bundled model, with few pictures of few steps."""

import pytest

from expunge.cli import demo as command
from expunge.cli import main
from expunge.evaluation.records import Report
from expunge.evaluation.suites import emoji
from expunge.models.stable_diffusion import StableDiffusion


@pytest.fixture(autouse=True)
def small(monkeypatch):
    size = emoji.EmojiPlanSize(1, 2, kept_every=26, kept_styles=1, styled_every=26, seeds=(0,))
    monkeypatch.setitem(emoji.SIZES, "quick", size)
    usual = StableDiffusion.usual_sampling.fget
    hurried = property(lambda model: usual(model)._replace(steps=2))
    monkeypatch.setattr(StableDiffusion, "usual_sampling", hurried)
    erase = command.erase

    def hasty(model, concept, method, **options):
        few = {"iterations": 2, "trajectories": 2, "num_inference_steps": 2}
        return erase(model, concept, method, **{**options, **(few if method == "esd" else {})})

    monkeypatch.setattr(command, "erase", hasty)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_demo_erases_measures_and_shows_and_continues_where_it_stopped(tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "santa claus (character), UCE" in shown
    assert "ink (style), ESD" in shown
    assert shown.count("95 % CI") > 12
    for name in ("report.html", "report.json", "before-after.png"):
        assert (tmp_path / name).exists()
    report, made = Report.load(tmp_path), files(tmp_path)
    for picture in list(tmp_path.rglob("images/edited*/*.png"))[::3]:
        picture.unlink()
    assert main(["demo", "--output", str(tmp_path)]) == 0
    assert Report.load(tmp_path) == report
    again = files(tmp_path)
    base, edits = "images/base", "edits/"
    kept = [path for path in made if base in str(path) or edits in str(path)]
    pictures = [path for path in kept if path.suffix in {".png", ".safetensors"}]
    assert all(again[path] == made[path] for path in pictures)
