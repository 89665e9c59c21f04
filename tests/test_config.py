"""The configuration: sparse presets, strict reading, and the way back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from featuresplat.config import DensifyConfig, TrainConfig, from_dict, load_config, preset_names, to_dict
from featuresplat.errors import FeaturesplatError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return path


def test_the_promised_presets_are_there():
    assert {"draft", "fast", "quality"} <= set(preset_names())
    assert preset_names() == sorted(p.stem for p in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("name", preset_names())
def test_preset_is_sparse_and_loads(name):
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 20
    config = load_config(name)
    assert config.config == name
    # Every key in it takes effect.
    found, stack = to_dict(config), [(yaml.safe_load(text) or {}, to_dict(config))]
    while stack:
        given, have = stack.pop()
        for key, value in given.items():
            if isinstance(value, dict):
                stack.append((value, have[key]))
            else:
                assert have[key] == (float(value) if isinstance(have[key], float) else value)
    assert found["steps"] >= 1


def test_presets_grow_in_steps():
    steps = [load_config(name).steps for name in ("draft", "fast", "quality")]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("name", preset_names())
def test_round_trip_through_yaml(name, tmp_path):
    config = dataclasses.replace(load_config(name), out=tmp_path / "run", coarse_to_fine=(4, 2), seed=3)
    path = written(tmp_path, yaml.safe_dump(to_dict(config), sort_keys=False))
    assert load_config(path) == config


def test_keys_are_written_in_the_order_of_the_dataclass():
    assert list(to_dict(TrainConfig())) == [f.name for f in dataclasses.fields(TrainConfig)]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("stepz: 3", "unknown key 'stepz'", "Perhaps you meant 'steps'"),
        ("optim:\n  zzz: 3", "optim: unknown key 'zzz'", "means_lr"),
        ("steps: many", "steps: expected int, got 'many'", "of that type"),
        ("steps: 1.5", "steps: expected int, got 1.5", "of that type"),
        ("steps: true", "steps: expected int, got True", "of that type"),
        ("report: 1", "report: expected bool, got 1", "of that type"),
        ("optim:\n  means_lr: fast", "means_lr: expected float, got 'fast'", "of that type"),
        ("optim:\n  means_lr: true", "means_lr: expected float, got True", "of that type"),
        ("densify:\n  strategy: magic", "strategy: got 'magic'", "'mcmc', 'classic', 'none'"),
        ("coarse_to_fine: [4, two]", "coarse_to_fine: expected int, got 'two'", "of that type"),
        ("coarse_to_fine: 4", "coarse_to_fine: expected tuple", "of that type"),
        ("model: 3", "model: expected keys and values, got int", "key: value"),
        ("- steps", "expected keys and values, got list", "key: value"),
        ("steps: [", "not valid YAML", "Mend"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML", "Mend"),
    ],
)
def test_wrong_files_are_told_in_one_sentence(tmp_path, text, message, hint):
    path = written(tmp_path, text)
    with pytest.raises(FeaturesplatError) as caught:
        load_config(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert hint in caught.value.hint


def test_lenient_where_nothing_is_lost(tmp_path):
    config = load_config(written(tmp_path, "optim:\n  means_lr: 1e-4\n  sh0_lr: 1\ncoarse_to_fine: [4, 2]\nout: a/b\n"))
    assert (config.optim.means_lr, config.optim.sh0_lr) == (1e-4, 1.0)
    assert isinstance(config.optim.sh0_lr, float)
    assert config.coarse_to_fine == (4, 2)
    assert config.out == Path("a/b")


def test_an_empty_file_is_all_defaults(tmp_path):
    path = written(tmp_path, "# nothing differs\n")
    assert load_config(path) == TrainConfig(config=str(path))


def test_none_only_where_it_may_be(tmp_path):
    assert load_config(written(tmp_path, "backend: null")).backend is None
    with pytest.raises(FeaturesplatError, match="steps: expected int, got None"):
        load_config(written(tmp_path, "steps: null"))


def test_missing_presets_and_files():
    with pytest.raises(FeaturesplatError, match="no preset 'drafd'") as caught:
        load_config("drafd")
    assert "Perhaps you meant 'draft'" in caught.value.hint
    with pytest.raises(FeaturesplatError, match="no such configuration file") as caught:
        load_config("nowhere/x.yaml")
    assert "draft" in caught.value.hint


def test_defaults_are_not_shared():
    a, b = TrainConfig(), TrainConfig()
    a.densify.every = 1
    assert b.densify == DensifyConfig()
    assert from_dict(TrainConfig, {}) == b


def test_every_option_says_what_it_is():
    import ast
    import inspect

    from featuresplat import config

    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef):
            for field, help_text in zip(node.body[1:], node.body[2:], strict=False):
                if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).endswith("Config"):
                    assert isinstance(help_text, ast.Expr), f"{node.name}.{ast.unparse(field.target)} has no help"
