"""The command line, called in this process: what it does, and one sentence and one remedy for what it cannot do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from featuresplat import Cameras, FeatureField, FeaturesplatError, Gaussians
from featuresplat.cli import main
from featuresplat.config import load_config
from featuresplat.io.cameras import write_cameras
from featuresplat.io.formats import load_gaussians
from featuresplat.io.scene_folder import write_scene_folder
from featuresplat.render import file_names
from featuresplat.verbs.train import TrainArgs, preset_of

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
NAMES = ("left/a.jpg", "left/b.jpg", "left/c.jpg", "left/d.jpg")


@pytest.fixture
def run(tmp_path, make_scene) -> Path:
    """A run folder of fifty Gaussians and four cameras, the second of them held out."""
    s = make_scene(cameras=4)
    sh0 = (s.colors[:, None] - 0.5) / 0.28209479177387814
    logits = torch.logit(s.opacities)
    gaussians = Gaussians(s.means, s.quats, s.scales.log(), logits, sh0, torch.zeros(50, 3, 3))
    cameras = Cameras(s.viewmats.double(), s.Ks.double(), s.width, s.height, names=NAMES)
    fields = {"f": FeatureField(s.features)}
    info = {"split": {"train": [NAMES[0], *NAMES[2:]], "test": [NAMES[1]]}, "source": str(tmp_path / "gone")}
    write_scene_folder(tmp_path / "run", gaussians, cameras, fields, info=info)
    return tmp_path / "run"


def refused(capsys, argv: list[str], *words: str) -> None:
    """The command exits with 2 and says two lines, without a traceback, that hold ``words``."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 2, err
    for word in words:
        assert word in err


# --- help and words it does not know ---------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["train", "render", "eval", "export", "report", "doctor", "demo"])
def test_every_verb_has_help(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert f"featuresplat {verb}" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert f"\n  {verb} " in capsys.readouterr().out


def test_words_that_are_not_known(capsys):
    refused(capsys, ["rendr"], "no verb 'rendr'", "Perhaps you meant 'render'.")
    refused(capsys, ["fly"], "no verb 'fly'", "Verbs: train, ")
    assert main(["render", "runs/x", "--pth", "test"]) == 2
    assert "--path" in capsys.readouterr().err
    assert main(["train", "x", "--stps", "3"]) == 2
    assert "--steps" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--version"]) == 0


def test_debug_shows_the_whole_traceback():
    with pytest.raises(FeaturesplatError, match="no such run folder"):
        main(["report", "--debug", "nowhere/at/all"])


@pytest.mark.parametrize("verb", ["train", "render", "eval", "export", "report"])
def test_without_input_a_verb_says_what_it_wants(verb, capsys):
    refused(capsys, [verb], f"{verb}: expected", f"featuresplat {verb} ")


@pytest.mark.parametrize("verb", ["render", "eval", "report", "export"])
def test_a_run_that_is_none(verb, tmp_path, capsys):
    more = [str(tmp_path / "o.ply")] if verb == "export" else []
    refused(capsys, [verb, str(tmp_path / "missing"), *more], "there is no such run folder")
    (tmp_path / "empty").mkdir()
    refused(capsys, [verb, str(tmp_path / "empty"), *more], "is empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("no run")
    refused(capsys, [verb, str(tmp_path / "other"), *more], "holds no scene.json")
    (tmp_path / "other" / "scene.json").write_text('{"format": 99}')
    refused(capsys, [verb, str(tmp_path / "other"), *more], "format 99", "Update featuresplat.")


# --- train ---------------------------------------------------------------------------------------------------


def parse(*argv: str) -> TrainArgs:
    import tyro

    return tyro.cli(TrainArgs, args=argv, default=TrainArgs(settings=preset_of(list(argv))))


def test_flags_change_the_preset_in_any_order(tmp_path):
    args = parse("--steps", "40", "photos", "--config", "quality", "--densify.strategy", "classic", "--downscale", "2")
    assert (args.scene, args.downscale) == ("photos", 2)
    assert args.settings.model.budget == 300_000  # of the preset
    assert (args.settings.steps, args.settings.densify.strategy) == (40, "classic")
    assert parse("photos").settings == load_config("fast")
    own = tmp_path / "own.yaml"
    own.write_text("steps: 12\nmodel: {budget: 5}\n")
    args = parse("photos", f"--config={own}", "--model.budget", "6")
    assert (args.settings.steps, args.settings.model.budget) == (12, 6)


def test_a_runs_own_config_is_for_repeating_it_elsewhere_and_for_resuming(tmp_path):
    saved = {"config": "quality", "steps": 77, "out": str(tmp_path), "overwrite": True}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    config = preset_of(["photos", "--config", str(tmp_path / "config.yaml")])
    assert (config.steps, config.out, config.overwrite) == (77, None, False)
    assert preset_of(["photos", "--out", str(tmp_path), "--resume"]).steps == 77
    assert preset_of(["photos", "--out", str(tmp_path)]).steps == 7000


def test_training_on_what_is_no_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["train", "missing"], "missing: there is no such folder or video")
    (tmp_path / "empty").mkdir()
    refused(capsys, ["train", "empty"], "empty")
    (tmp_path / "text.txt").write_text("no data")
    refused(capsys, ["train", "text.txt"], "text.txt")
    refused(capsys, ["train", "empty", "--config", "fats"], "no preset 'fats'", "Perhaps you meant 'fast'")
    (tmp_path / "bad.yaml").write_text("stepz: 3\n")
    refused(capsys, ["train", "empty", "--config", "bad.yaml"], "unknown key 'stepz'", "'steps'")
    (tmp_path / "broken.yaml").write_text("steps: 3\nmodel: {budget: [}\n")
    refused(capsys, ["train", "empty", "--config", "broken.yaml"], "not valid YAML (line 2: ")
    (tmp_path / "picture.yaml").write_bytes(bytes(range(256)))
    refused(capsys, ["train", "empty", "--config", "picture.yaml"], "picture.yaml: cannot be read", "YAML file of text")
    refused(capsys, ["train", str(DEMO), "--device", "warp"], "warp")
    refused(capsys, ["train", str(DEMO), "--steps", "0"], "steps: expected at least 1, got 0", "--steps")
    refused(capsys, ["train", str(DEMO), "--eval-every", "0"], "eval_every: expected at least 1", "--eval-every")
    refused(capsys, ["train", str(DEMO), "--out", "text.txt/run"], "text.txt/run", "Choose another name.")
    assert not (tmp_path / "runs").exists()


# --- render --------------------------------------------------------------------------------------------------


def test_test_views_become_images_named_as_their_photographs(run, capsys):
    assert main(["render", str(run), "--path", "test", "--what", "rgb,depth,alpha", "--quiet"]) == 0
    out = run / "renders" / "test"
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*.*"))
    assert files == ["alpha/b.png", "depth/b.npy", "depth/b.png", "rgb/b.png"]
    depth = np.load(out / "depth" / "b.npy")
    alpha = np.asarray(Image.open(out / "alpha" / "b.png"))
    assert depth.dtype == np.float32
    assert depth.shape == alpha.shape == (33, 40)
    assert 2.0 < np.median(depth[alpha > 128]) < 4.0  # the ball is three units away
    assert "3 images in " in capsys.readouterr().out


def test_rendered_colours_are_those_of_the_rasterizer(run, make_scene, tmp_path):
    import featuresplat

    s = make_scene(cameras=4)
    assert main(["render", str(run), "--path", "train", "--out", str(tmp_path / "o"), "--quiet"]) == 0
    assert sorted(p.name for p in (tmp_path / "o" / "rgb").iterdir()) == ["a.png", "c.png", "d.png"]
    call = (s.means, s.quats, s.scales, s.opacities, s.colors, s.viewmats[2:3], s.Ks[2:3], 40, 33)
    truth = featuresplat.rasterize(*call, backend="reference").rgb
    picture = torch.from_numpy(np.array(Image.open(tmp_path / "o" / "rgb" / "c.png"))).float() / 255
    torch.testing.assert_close(picture, truth[0], atol=0.6 / 255 + 1e-4, rtol=0)


def test_films_and_numbered_frames(run, tmp_path):
    base = ["render", str(run), "--frames", "3", "--out", str(tmp_path / "o"), "--quiet", "--width", "20"]
    assert main([*base, "--format", "gif", "--what", "rgb,depth,alpha"]) == 0
    for kind in ("rgb", "depth", "alpha"):
        with Image.open(tmp_path / "o" / f"{kind}.gif") as film:
            assert (film.n_frames, film.size) == (3, (20, 16))
    assert main([*base, "--path", "spline", "--format", "png"]) == 0
    assert sorted(p.name for p in (tmp_path / "o" / "rgb").iterdir()) == ["00000.png", "00001.png", "00002.png"]


def test_a_path_of_ones_own(run, tmp_path, make_scene):
    s = make_scene(cameras=2)
    write_cameras(tmp_path / "mine.json", Cameras(s.viewmats, s.Ks, 40, 33, names=("one", "two")))
    assert main(["render", str(run), "--path", str(tmp_path / "mine.json"), "--format", "png", "--quiet"]) == 0
    assert sorted(p.name for p in (run / "renders" / "mine" / "rgb").iterdir()) == ["one.png", "two.png"]


def test_renders_that_cannot_be(run, tmp_path, capsys):
    refused(capsys, ["render", str(run), "--what", "rgb,normals"], "'normals'", "rgb, depth, alpha")
    refused(capsys, ["render", str(run), "--what", ","], "nothing", "rgb, depth, alpha")
    refused(capsys, ["render", str(run), "--path", "sideways"], "'sideways'", "orbit, spline, test, train")
    refused(capsys, ["render", str(run), "--path", "none.json"], "none.json: there is no such file")
    (tmp_path / "bad.json").write_text("{")
    refused(capsys, ["render", str(run), "--path", str(tmp_path / "bad.json")], "not readable JSON")
    refused(capsys, ["render", str(run), "--frames", "0"], "frames", "got 0")
    refused(capsys, ["render", str(run), "--width", "0"], "width", "got 0")
    refused(capsys, ["render", str(run), "--device", "warp"], "'warp'", "--device cpu")
    (run / "gaussians.ply").write_bytes((run / "gaussians.ply").read_bytes()[:-7])
    refused(capsys, ["render", str(run)], "gaussians.ply")


def test_images_of_one_stem_do_not_overwrite_each_other():
    assert file_names(["x/a.jpg", "x/b.png", ""]) == ["a", "b", "00002"]
    assert file_names(["x/a.jpg", "y/a.jpg"]) == ["x_a", "y_a"]
    assert file_names(["a.jpg", "a.png"]) == ["a.jpg", "a.png"]
    assert len(set(file_names(["a", "a"]))) == 2
    assert not any("/" in n or "\\" in n for n in file_names(["../../a.jpg", "..\\a.jpg"]))


# --- export --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".ply", ".compressed.ply", ".splat", ".spz"])
def test_export_writes_what_reads_back(run, ending, tmp_path, capsys):
    with warnings.catch_warnings():
        assert main(["export", str(run), str(tmp_path / f"o{ending}")]) == 0
    assert "50 Gaussians" in capsys.readouterr().out
    back = load_gaussians(tmp_path / f"o{ending}")
    assert len(back.gaussians) == 50
    assert (back.features is not None) == (ending == ".ply")
    # A file is a source as good as a run.
    assert main(["export", str(tmp_path / f"o{ending}"), str(tmp_path / "again.ply")]) == 0
    assert len(load_gaussians(tmp_path / "again.ply").gaussians) == 50


def test_plain_leaves_the_features_out(run, tmp_path):
    assert main(["export", "--plain", str(run), str(tmp_path / "o.ply")]) == 0
    assert load_gaussians(tmp_path / "o.ply").features is None


def test_exports_that_cannot_be(run, tmp_path, capsys):
    refused(capsys, ["export", str(run)], "expected the file to write", "OUT.ply")
    refused(capsys, ["export", str(run), str(tmp_path / "o.obj")], "'.obj'", ".splat")
    refused(capsys, ["export", str(run), str(run / "gaussians.ply")], "what would be exported")
    (tmp_path / "cut.ply").write_bytes((run / "gaussians.ply").read_bytes()[:-7])
    refused(capsys, ["export", str(tmp_path / "cut.ply"), str(tmp_path / "o.ply")], "cut.ply")


# --- eval, report, demo: on photographs ------------------------------------------------------------------------


def test_photographs_that_are_gone(run, capsys):
    (run / "config.yaml").write_text("steps: 1\n")
    refused(capsys, ["eval", str(run)], "the photographs of this run are no longer there")


def test_a_scene_is_trained_measured_rendered_and_reported(tmp_path, capsys):
    run = tmp_path / "run"
    small = ["--steps", "20", "--downscale", "4", "--model.budget", "3000", "--no-report", "--eval-views", "1"]
    assert main(["train", *small, str(DEMO), "--out", str(run), "--device", "cpu", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["eval", str(run)]) == 0
    out = capsys.readouterr().out
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert test["images"][0]["name"].rsplit("/", 1)[-1] in out
    assert f"{test['psnr']:.2f}" in out
    assert "n/a" in out or test["lpips"] is not None
    assert main(["render", str(run), "--path", "test", "--quiet"]) == 0
    stems = {Path(i["name"]).stem for i in test["images"]}
    assert {p.stem for p in (run / "renders" / "test" / "rgb").iterdir()} == stems
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").stat().st_size > 10_000
    assert main(["train", *small, str(DEMO), "--out", str(run)]) == 2  # it holds a run already
    assert "--overwrite" in capsys.readouterr().err


def test_the_demo_wants_its_scene_and_leaves_other_runs_alone(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["demo", "--data", str(tmp_path)], "the demo scene is not here", "--data")
    refused(capsys, ["demo", "--out", str(run)], "holds a run already", "--out")


# --- streams and signals ---------------------------------------------------------------------------------------


def test_interrupts_bugs_and_warnings_are_said_briefly(monkeypatch, capsys):
    from featuresplat.verbs import doctor, report

    def stop() -> None:
        raise KeyboardInterrupt("stopped at step 3; go on with --resume.")

    def bug() -> None:
        warnings.warn("something odd", stacklevel=1)
        raise ValueError("deep inside")

    monkeypatch.setattr(report, "run", stop)
    monkeypatch.setattr(doctor, "run", bug)
    assert main(["report"]) == 130
    assert "go on with --resume" in capsys.readouterr().err
    assert main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[0] == "note: something odd"
    assert "ValueError: deep inside" in err
    assert "--debug" in err


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_goes_away_is_no_error():
    code = "import sys; from featuresplat.cli import main; sys.exit(main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1
