from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from hyenarec import cli
from hyenarec.config import (
    MODEL_CONFIGS,
    DataConfig,
    GRU4RecConfig,
    ModelConfig,
    OptimizerConfig,
    SASRecConfig,
    TrainConfig,
    to_dict,
)
from hyenarec.evaluation import recommend
from hyenarec.models.registry import COUNT_BASED, LEARNED
from hyenarec.train.run_log import read_log

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run, made by the command line; its data lie beside it."""
    folder = tmp_path_factory.mktemp("cli")
    lines = [f"u{user} i{(user + step) % 12}\n" for user in range(40) for step in range(6 + user % 5)]
    (folder / "events.txt").write_text("".join(lines))
    options = (
        "--model.dim 8 --model.num_blocks 1 --model.max_len 12 --epochs 2 --batch_events 40 --device cpu"
    )
    words = [
        "train",
        "--data.path",
        str(folder / "events.txt"),
        "--output_dir",
        str(folder / "run"),
        *options.split(),
    ]
    assert cli.main(words) == 0
    return folder / "run"


@pytest.fixture
def received(monkeypatch):
    """The configurations that `hyenarec train` hands to `hyenarec.train.train`, which does not run."""
    configs: list[TrainConfig] = []
    monkeypatch.setattr("hyenarec.train.train", configs.append)
    return configs


def test_every_setting_is_an_option(received):
    words = (
        "--data.path x.csv --data.exclude_history --model.dim 32 --optimizer.betas [0.8,0.9] --patience null"
    )
    assert cli.main(["train", *words.split(), "--resume", "--precision", "bf16"]) == 0
    assert received == [
        TrainConfig(
            data=DataConfig(path="x.csv", exclude_history=True),
            model=ModelConfig(dim=32),
            optimizer=OptimizerConfig(betas=(0.8, 0.9)),
            patience=None,
            resume=True,
            precision="bf16",
        )
    ]


def test_no_option_is_the_default_configuration(received):
    assert cli.main(["train"]) == 0
    assert received == [TrainConfig()]


def test_a_file_gives_settings_and_options_overrule_it(received, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model:\n  dim: 48\n  kernel: mlp\nepochs: 7\nresume: true\n")
    assert cli.main(["train", "--config", str(path), "--epochs", "3", "--resume", "false"]) == 0
    assert received == [TrainConfig(model=ModelConfig(dim=48, kernel="mlp"), epochs=3)]


@pytest.mark.parametrize(
    "text",
    [
        "batch_tokens: 70\noptimizer:\n  learning_rate: 3e-3\n",
        '{"batch_tokens": 70, "optimizer": {"learning_rate": 3e-3}}',
    ],
)
def test_a_file_may_have_the_old_name_of_a_setting(received, tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    words = ["train", "--config", str(path)]
    for more in (
        [],
        ["--batch_events", "80"],
        ["--batch_tokens", "80"],
        ["--batch_tokens=80"],
        ["--batch_tok", "80"],
    ):
        assert cli.main([*words, *more]) == 0
    expected = TrainConfig(batch_events=70, optimizer=OptimizerConfig(learning_rate=3e-3))
    assert received == [expected, *4 * [dataclasses.replace(expected, batch_events=80)]]


def test_a_file_has_a_setting_by_one_name_only(received, tmp_path, capsys):
    (tmp_path / "both.yaml").write_text("batch_tokens: 70\nbatch_events: 80\n")
    assert cli.main(["train", "--config", str(tmp_path / "both.yaml")]) == 2
    said = "hyenarec: batch_events must be given once, got 80 and, by its old name batch_tokens, 70\n"
    assert capsys.readouterr().err == said and received == []


@pytest.mark.parametrize("command", [["train"], ["bench", "train"]])
def test_help_has_the_present_name_only(capsys, command):
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    text = capsys.readouterr().out
    assert "--batch_events" in text and "batch_tokens" not in text


def test_the_settings_of_a_run_start_another_like_it(trained, received):
    assert cli.main(["train", "--config", str(trained / "train_config.json"), "--output_dir", "other"]) == 0
    report = json.loads((trained / "report.json").read_text())
    assert report["config"]["batch_tokens"] == 40
    assert json.loads(json.dumps(to_dict(received[0]))) == {
        **report["config"],
        "output_dir": "other",
    }


def test_the_name_of_a_model_brings_its_settings_and_defaults(received, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model:\n  name: sasrec\n  num_heads: 4\nepochs: 7\n")
    words = [
        ["--model.name", "sasrec"],
        ["--model.name=gru4rec", "--model.num_layers", "2"],
        ["--config", str(path), "--model.dim", "32"],
    ]
    assert [cli.main(["train", *options]) for options in words] == [0, 0, 0]
    assert received == [
        TrainConfig(model=SASRecConfig()),
        TrainConfig(model=GRU4RecConfig(num_layers=2)),
        TrainConfig(model=SASRecConfig(num_heads=4, dim=32), epochs=7),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--model.width", "3"], "model.width"),
        (["train", "--model.name", "sasrec", "--model.kernel", "mlp"], "model.kernel"),
        (["train", "--model.num_heads", "2"], "model.num_heads"),
        (["train", "--model.name"], "model.name"),
        (["train", "--config", "{folder}/unknown.yaml"], "model.width"),
        (["train", "--batch_size", "64"], "batch_size"),
        (["train", "--config", "{folder}/older.json"], "batch_size"),
        (["train", "--model.kernel", "fourier"], "fourier"),
        (["train", "--epochs", "many"], "epochs"),
        (["train", "--config", "{folder}/none.yaml"], "none.yaml"),
        (["fly"], "fly"),
        (["evaluate"], "model"),
    ],
)
def test_words_that_mean_nothing_are_errors(received, tmp_path, capsys, words, said):
    (tmp_path / "unknown.yaml").write_text("model:\n  width: 3\n")
    (tmp_path / "older.json").write_text('{"batch_size": 64}')
    with pytest.raises(SystemExit) as ended:
        cli.main([word.format(folder=tmp_path) for word in words])
    assert ended.value.code == 2 and said in capsys.readouterr().err and received == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --model.name lstm", "hyenarec: model.name must be one of 'hyenarec', 'sasrec', "),
        ("train --model.dim 0", "hyenarec: model.dim must be an integer of at least 1, got 0\n"),
        (
            "train --data.path nowhere.txt --output_dir {folder}",
            "hyenarec: path must be a file, got nowhere.txt\n",
        ),
        ("evaluate --model nowhere", "hyenarec: folder must hold config.json and"),
        (
            "recommend --model {run}",
            "hyenarec: either user or history must be given, got None and None\n",
        ),
        ("recommend --model {run} --user nobody", "user must be one of the data's 40 users, got 'nobody'\n"),
        (
            "recommend --model {run} --history i99",
            "history must hold at least one item that the model knows, or none at all, got 'i99'\n",
        ),
        (
            "recommend --model {run} --user u1 --k 13",
            "k must be from 1 to 12, the size of the catalogue, got 13\n",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(trained, tmp_path, capsys, words, said):
    assert cli.main(words.format(folder=tmp_path, run=trained).split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_debug_shows_where_an_error_came_from(monkeypatch):
    with pytest.raises(ValueError, match=r"model\.dim must be"):
        cli.main(["train", "--model.dim", "0", "--debug"])
    monkeypatch.setenv("HYENAREC_DEBUG", "1")
    with pytest.raises(ValueError, match=r"model\.dim must be"):
        cli.main(["train", "--model.dim", "0"])


def test_a_diverging_run_is_told_in_one_sentence(monkeypatch, capsys):
    def diverge(config):
        raise FloatingPointError("loss must stay finite, got nan at step 3")

    monkeypatch.setattr("hyenarec.train.train", diverge)
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err == "hyenarec: loss must stay finite, got nan at step 3\n"


def test_evaluate_repeats_the_reported_figures(trained, capsys):
    assert cli.main(["evaluate", "--model", str(trained), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    report = json.loads((trained / "report.json").read_text())
    assert printed.startswith(report["protocol"])
    for name, result in report["results"].items():
        assert f"{result['figures']['NDCG@10']['mean']:.4f}" in next(
            line for line in printed.splitlines() if line.startswith(name)
        )


def test_evaluate_takes_the_runs_data_and_options_overrule_them(trained, capsys):
    words = [
        "evaluate",
        "--model",
        str(trained),
        "--targets",
        "validation",
        "--k",
        "3",
        "--data.exclude_history",
    ]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "leave-one-out validation, 40 users, all 12 items ranked, history excluded, max_len 12"
    )
    assert "NDCG@3" in printed


def test_a_file_may_name_the_model(trained, tmp_path, capsys):
    path = tmp_path / "evaluate.yaml"
    path.write_text(f"model: {trained}\ndata:\n  exclude_history: true\n")
    assert cli.main(["evaluate", "--config", str(path), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(
        "leave-one-out test, 40 users, all 12 items ranked, history excluded"
    )
    path.write_text(f"model: {trained}\n")
    assert cli.main(["recommend", "--config", str(path), "--user", "u1", "--k", "4"]) == 0
    by_file = capsys.readouterr().out
    assert cli.main(["recommend", "--model", str(trained), "--user", "u1", "--k", "4"]) == 0
    assert capsys.readouterr().out == by_file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"data": {}}', "it has no 'seed'"),
        ('{"seed": 1}', "it has no 'data'"),
        ('{"seed": 1, "data": {"road": "x"}}', "road"),
        ('{"seed": 1, "dat', "cannot be read"),
        ("[]", "cannot be read"),
    ],
)
def test_damaged_settings_of_a_run_are_told_in_one_sentence(tmp_path, capsys, text, said):
    path = tmp_path / "train_config.json"
    path.write_text(text)
    assert cli.main(["evaluate", "--model", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"hyenarec: {path} must hold the settings of a run" in error and said in error


def test_evaluate_refuses_another_catalogue(trained, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("".join(f"u{user} j{step}\n" for user in range(3) for step in range(12)))
    assert cli.main(["evaluate", "--model", str(trained), "--data.path", str(other)]) == 2
    assert "data must have the catalogue that the model was trained on, 12 items" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loss"),
    [(name, "softmax") for name in MODEL_CONFIGS] + [(name, "sampled_softmax") for name in LEARNED],
)
def test_every_model_trains_evaluates_and_recommends(name, loss, trained, tmp_path, capsys):
    words = ["train", "--model.name", name, "--data.path", str(trained.parent / "events.txt")]
    words += ["--output_dir", str(tmp_path / "run"), "--model.max_len", "12", "--device", "cpu"]
    if name not in COUNT_BASED:
        options = "--model.dim 16 --model.dropout 0.1 --batch_events 40 --epochs 8 --optimizer.warmup_steps 0"
        words += [*options.split(), "--optimizer.learning_rate", "0.02", "--loss.name", loss]
    assert cli.main(words) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    title = MODEL_CONFIGS[name].title
    assert list(report["results"]) == list(dict.fromkeys([title, "Markov", "Popularity"]))
    ndcg = {row: result["figures"]["NDCG@10"]["mean"] for row, result in report["results"].items()}
    if name not in COUNT_BASED:
        losses = [record["loss"] for record in read_log(tmp_path / "run")]
        assert losses[-1] < 0.8 * losses[0] and ndcg[title] > ndcg["Popularity"]
    capsys.readouterr()
    assert cli.main(["evaluate", "--model", str(tmp_path / "run"), "--device", "cpu"]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(title))
    assert f"{ndcg[title]:.4f}" in row
    asked = ["--history", "i0 i1 i2 i3 i4", "--k", "2"]  # its order need not be learned of two
    assert cli.main(["recommend", "--model", str(tmp_path / "run"), *asked]) == 0
    best = capsys.readouterr().out
    assert best.count("\n") == 2 and (name in ("popularity", "personal") or best.startswith("i5\t"))


def test_counting_is_of_the_training_events_and_takes_a_folder_over(trained, tmp_path, capsys):
    words = ["train", "--data.path", str(trained.parent / "events.txt"), "--output_dir", str(tmp_path)]
    assert cli.main([*words, "--model.name", "popularity"]) == 0
    assert recommend.load(tmp_path).model.counts.sum() == sum(6 + user % 5 - 2 for user in range(40))
    assert cli.main([*words, "--model.name", "markov"]) == 2
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert cli.main([*words, "--model.name", "markov", "--overwrite"]) == 0
    assert recommend.load(tmp_path).model.config.name == "markov"
    assert json.loads((tmp_path / "report.json").read_text())["epochs"] == 0


def test_recommend_prints_items_and_scores(trained, capsys):
    history = ["i1", "i2", "i3", "i4", "i5", "i6"]
    # Nobody in the run's data repeats, so what was had is left out.
    expected = recommend.load(trained).recommend(history, k=4, exclude_history=True)
    lines = "".join(f"{item}\t{score:.4f}\n" for item, score in expected)
    assert cli.main(["recommend", "--model", str(trained), "--user", "u1", "--k", "4"]) == 0
    # u1 has the items i1 to i7: its history is whole here, nothing is held out.
    whole = capsys.readouterr().out
    assert whole.count("\n") == 4 and whole != lines
    assert cli.main(["recommend", "--model", str(trained), "--history", "i1 i2 i3 i4 i5 i6", "--k", "4"]) == 0
    assert capsys.readouterr().out == lines


def test_recommend_has_items_for_a_new_user(trained, capsys):
    expected = recommend.load(trained).recommend([], k=4)
    assert cli.main(["recommend", "--model", str(trained), "--history", "", "--k", "4"]) == 0
    assert capsys.readouterr().out == "".join(f"{item}\t{score:.4f}\n" for item, score in expected)


def test_moments_are_refused_by_a_model_that_has_no_use_for_them(trained, capsys):
    model = ["recommend", "--model", str(trained), "--history", "i1 i2"]
    assert cli.main([*model, "--timestamps", "1 2"]) == 2
    assert "timestamps must not be given to a model that was trained without" in capsys.readouterr().err
    assert cli.main([*model, "--at", "2"]) == 2
    assert "at must not be given to a model that was trained without time_unit" in capsys.readouterr().err


def test_recommend_takes_whole_numbers_for_ids(tmp_path, capsys):
    histories = {user: [str(100 + (user + step) % 12) for step in range(6)] for user in range(20)}
    lines = [f"{user} {item}\n" for user, items in histories.items() for item in items]
    (tmp_path / "events.txt").write_text("".join(lines))
    words = ["train", "--data.path", str(tmp_path / "events.txt"), "--output_dir", str(tmp_path / "run")]
    assert cli.main([*words, "--epochs", "1", "--model.dim", "8", "--device", "cpu"]) == 0
    capsys.readouterr()
    model = ["recommend", "--model", str(tmp_path / "run"), "--k", "3"]
    assert cli.main([*model, "--user", "7"]) == 0
    by_user = capsys.readouterr().out
    assert cli.main([*model, "--history", " ".join(histories[7])]) == 0
    assert capsys.readouterr().out == by_user
    assert cli.main([*model, "--user", "seven"]) == 2
    assert "user must be whole numbers, as the ids of the data are, got 'seven'" in capsys.readouterr().err


def test_a_model_that_knows_time_recommends_for_a_moment(tmp_path, capsys):
    moments = [(user, step, 7 * user + 50 * step) for user in range(20) for step in range(6)]
    lines = [f"{user} {100 + hour // 4 % 6} {hour}\n" for user, _, hour in moments]
    (tmp_path / "events.txt").write_text("".join(lines))
    words = ["train", "--data.path", str(tmp_path / "events.txt"), "--output_dir", str(tmp_path / "run")]
    words += ["--model.time_unit", "hour", "--epochs", "2", "--model.dim", "8", "--device", "cpu"]
    assert cli.main(words) == 0
    assert cli.main(["evaluate", "--model", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    model = ["recommend", "--model", str(tmp_path / "run"), "--k", "3"]
    assert cli.main([*model, "--user", "2", "--at", "300"]) == 0
    by_user = capsys.readouterr().out
    of_user = [(line.split()[1], line.split()[2]) for line in lines if line.startswith("2 ")]
    items, hours = (" ".join(column) for column in zip(*of_user, strict=True))
    assert cli.main([*model, "--history", items, "--timestamps", hours, "--at", "300"]) == 0
    assert capsys.readouterr().out == by_user
    assert cli.main([*model, "--user", "2", "--at", "312"]) == 0
    assert capsys.readouterr().out != by_user
    for arguments, message in (
        (
            ["--user", "2"],
            "at must be the moment to recommend for: the model was trained with the time, got None",
        ),
        (["--user", "2", "--at", "10"], "at must not be before the last event, 264, got 10"),
        (
            ["--history", items, "--at", "300"],
            "timestamps must say when the events of the histories happened, with at",
        ),
        (
            ["--history", items, "--timestamps", "1 2", "--at", "300"],
            "timestamps must be one for each of the 6 items",
        ),
        (
            ["--history", items, "--timestamps", "1 x", "--at", "300"],
            "timestamps must be whole numbers, got 'x'",
        ),
        (["--user", "2", "--timestamps", "1 2", "--at", "300"], "timestamps must be given with history only"),
    ):
        assert cli.main([*model, *arguments]) == 2
        assert message in capsys.readouterr().err
    assert cli.main([*model, "--history", "", "--at", "300"]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    (tmp_path / "other.txt").write_text("".join(f"{line.strip()}000000000\n" for line in lines))
    other = ["--data.path", str(tmp_path / "other.txt")]
    for command in (
        ["evaluate", "--model", str(tmp_path / "run")],
        [*model, "--user", "2", "--at", str(10**12)],
    ):
        assert cli.main([*command, *other]) == 2
        assert "model.time_unit must be the unit of the timestamps of" in capsys.readouterr().err


def test_doctor_is_a_command(monkeypatch):
    monkeypatch.setattr("hyenarec.doctor.main", lambda: 1)
    assert cli.main(["doctor"]) == 1


def test_python_m_hyenarec_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "hyenarec", "--help"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "{train,evaluate,recommend,bench,doctor}" in done.stdout


@pytest.mark.slow
def test_training_needs_no_command_line_packages():
    program = "import sys; sys.modules['jsonargparse'] = None; import hyenarec.train"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


@pytest.mark.parametrize(
    "words, message",
    [
        ("--epochs many", "epochs must be an integer or 'auto', got many"),
        ("--patience 0.5", "patience must be an integer or 'auto' or null, got 0.5"),
        (
            "--loss.name hinge",
            "'softmax' or 'sampled_softmax' or 'bce' or 'gbce' or 'auto', got hinge",
        ),
        ("--model.repeats maybe", "model.repeats must be true or false or 'auto', got maybe"),
    ],
)
def test_a_value_of_no_type_is_refused_in_a_sentence(words, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", *words.split()])
    last = capsys.readouterr().err.splitlines()[-1]
    assert message in last


def test_a_switch_alone_means_true(received):
    assert cli.main(["train", "--model.repeats", "--data.exclude_history"]) == 0
    (config,) = received
    assert config.model.repeats is True and config.data.exclude_history is True


def test_evaluate_takes_what_is_auto_from_the_run(trained, capsys):
    assert cli.main(["evaluate", "--model", str(trained), "--data.exclude_history", "auto"]) == 0
    assert "history excluded" in capsys.readouterr().out
