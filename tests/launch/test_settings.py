"""The command line: what is composed, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from engine.config import Config
from engine.errors import DataError
from engine.models.presets import tiny_presets
from engine.models.transformer import count_parameters
from engine.validate import validate
from launch import helptext
from launch.codes import Outcome
from launch.mistakes import known_keys
from launch.settings import CONF, repeat_flags, run_with_config


def compose(*argv: str) -> Config:
    """Return the configuration a command line gives."""
    seen: list[Config] = []

    def task(config: Config, overrides: list[str]) -> Outcome:
        seen.append(config)
        return Outcome(0)

    assert run_with_config(task, list(argv)) == 0
    return seen[0]


def refuse(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return the one line with which a command line is refused."""

    def task(config: Config, overrides: list[str]) -> Outcome:
        raise AssertionError("must not start")

    try:
        code: object = run_with_config(task, list(argv))
    except SystemExit as end:
        code = end.code
    output = capsys.readouterr()
    assert (code, output.out) == (2, "")
    assert output.err.startswith("trimaran: ")
    assert output.err.count("\n") == 1
    return output.err.removeprefix("trimaran: ").strip()


def test_defaults_are_typed() -> None:
    config = compose()
    assert isinstance(config, Config)
    assert config.model.name == "llama-tiny"
    assert config.parallel.tp == 1
    assert config.data.cache_dir == "runs/data"
    validate(config, 1)


def test_overrides_win_over_experiment_wins_over_groups() -> None:
    assert compose("experiment=default").parallel.tp == 2
    config = compose("experiment=default", "optim.lr=1", "parallel=single", "data.paths=[a,[0.5,b]]")
    assert (config.optim.lr, config.parallel.tp, config.data.paths) == (1.0, 1, ["a", [0.5, "b"]])


def test_keys_of_a_mapping_are_the_users_own(capsys: pytest.CaptureFixture[str]) -> None:
    together = compose("ops.overrides={rms_norm: reference, rope: cpu}").ops.overrides
    assert together == compose("ops.overrides.rms_norm=reference", "+ops.overrides.rope=cpu").ops.overrides
    assert together == {"rms_norm": "reference", "rope": "cpu"}
    assert "Cannot assign int to Dict[str, str]" in refuse(capsys, "ops.overrides=3")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("choice", [f"{g.name}={o}" for g in CONF.iterdir() if g.is_dir() for o in options(g.name)])
def test_every_option_composes_and_is_sound(choice: str) -> None:
    needs_paths = choice in ("data=jsonl", "data=text", "data=megatron") or choice.startswith("experiment=")
    more = ["data.paths=[corpus.jsonl]"] if needs_paths and choice != "experiment=default" else []
    if choice == "parallel=tp8":
        more.append("model=llama2-7b")
    if choice == "cluster=torchrun":
        more.append("cluster.rendezvous=node1:29400")
    validate(compose(choice, *more), None)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("gpt2-124m", 124_439_808), ("llama2-7b", 6_738_415_616), ("llama3-8b", 8_030_261_248), ("llama-20m", 20_453_760)],
)
def test_presets_have_the_published_number_of_parameters(preset: str, parameters: int) -> None:
    model = compose(f"model={preset}").model
    assert model.vocab_size is not None
    assert count_parameters(model, model.vocab_size) == parameters


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("optim.lrr=1", "unknown key optim.lrr. Did you mean 'optim.lr'?"),
        ("model.seq_len=8", "unknown key model.seq_len. Did you mean 'data.seq_len'?"),
        ("+train.stepz=8", "unknown key train.stepz. Did you mean 'train.steps'?"),
        ("paralel=tp2", "unknown key paralel. Did you mean 'parallel'?"),
        ("model=llama-tinny", "model has no option 'llama-tinny'. Did you mean 'llama-tiny'?"),
        ("optim.lr=fast", "optim.lr=fast: Value 'fast' of type 'str' could not be converted to Float"),
        ("train.steps=1.5", "train.steps=1.5: Value '1.5' of type 'float' could not be converted to Integer"),
        ("data.paths=my corpus.txt", "data.paths=my corpus.txt is not a list; write data.paths=[my corpus.txt]."),
        ("optim.lr", "cannot read the argument 'optim.lr'; write key=value or group=option."),
        ("run.name=${run.nam}", "Interpolation key 'run.nam' not found"),
    ],
)
def test_mistakes_get_one_line(capsys: pytest.CaptureFixture[str], argument: str, answer: str) -> None:
    assert refuse(capsys, argument) == answer


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("layerz: 2", "unknown key model.layerz"),
        ("layers: two", "'two' of type 'str' could not be converted to Integer"),
        ("layers: [", "mine.yaml, line 2: not YAML"),
    ],
)
def test_mistakes_in_files_get_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, answer: str
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(content + "\n")
    assert answer in refuse(capsys, f"--config-dir={tmp_path}", "model=mine")


def test_an_error_of_the_task_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def task(config: Config, overrides: list[str]) -> Outcome:
        raise DataError("no such file")

    with pytest.raises(SystemExit) as end:
        run_with_config(task, [])
    assert end.value.code == 2
    assert capsys.readouterr().err == "trimaran: no such file\n"


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compose()
    assert list(tmp_path.iterdir()) == []


def test_cfg_job_prints_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with_config(lambda config, overrides: Outcome(1), ["--cfg", "job", "optim.lr=0.125"]) == 0
    assert "lr: 0.125" in capsys.readouterr().out


def test_help_lists_every_group_option_and_key_with_its_comment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_with_config(lambda config, overrides: Outcome(1), ["--help"])
    assert end.value.code == 0
    page = capsys.readouterr().out
    for group in (folder.name for folder in CONF.iterdir() if folder.is_dir()):
        small = tiny_presets(CONF / "model") if group == "model" else ()
        assert f"{group}: {', '.join(sorted([*options(group), *small]))}" in page
    for key in known_keys():
        assert f"  {key}=" in page or f"\n{key}: " in page, key
    for section in helptext.sections():
        for documented in section.keys:
            assert documented.comment in page
    assert "data.cache_dir=${run.root}/data" in page


def test_help_shows_defaults_as_a_user_would_write_them() -> None:
    defaults: Any = OmegaConf.to_container(OmegaConf.structured(Config), resolve=False)
    parser = OverridesParser.create()
    for section in helptext.sections():
        for key in section.keys:
            written = parser.parse_override(f"{section.name}.{key.name}={key.default}").value()
            assert written == defaults[section.name][key.name], key


def test_repeated_flags_are_those_that_choose_the_configuration() -> None:
    argv = ["--config-dir", "/a", "-m", "optim.lr=1", "-cn", "other"]
    assert repeat_flags(argv) == ["--config-name", "other", "--config-dir", "/a"]
