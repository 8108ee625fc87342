"""The command `hyenarec`: every setting is an option, and can be given in a YAML file.

Only this module needs jsonargparse, which makes the options from the dataclasses.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser

from hyenarec.config import (
    MODEL_CONFIGS,
    BenchConfig,
    Device,
    EvaluateOptions,
    ModelConfig,
    RecommendOptions,
    SequentialConfig,
    TrainConfig,
    model_config_named,
)
from hyenarec.config.auto import Auto, settled, with_fixed, with_values
from hyenarec.config.evaluation import SavedModelOptions
from hyenarec.config.names import NEW_NAMES, with_new_names
from hyenarec.config.saved import saved_defaults

if TYPE_CHECKING:
    from hyenarec.data import Histories
    from hyenarec.evaluation.recommend import SavedModel

C = TypeVar("C", bound=SavedModelOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the process's exit status.

    0 means success; 2 a wrong argument, file or setting, explained in one sentence; 1 a failed computation or
    self-test; 130 and 143 a run ended by Ctrl-C or SIGTERM.

    Args:
        arguments: what follows `hyenarec` on the command line; by default those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or os.environ.get("HYENAREC_DEBUG", "0") not in ("", "0")
    words = [with_new_name(word) for word in words if word != "--debug"]
    try:
        model = model_name(words)
        parser = make_parser(model, {})
        options = parser.parse_args(words)
        if options.command in ("evaluate", "recommend"):
            # Only now is the run's folder known, from an option or a file: its settings become the defaults.
            parser = make_parser(model, saved_defaults(options[options.command].model))
            options = parser.parse_args(words)
        return COMMANDS[options.command](parser.instantiate(options)[options.command])
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            raise
        print(f"hyenarec: {error}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2
    except KeyboardInterrupt:
        return 130
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def train_config(words: Sequence[str]) -> TrainConfig:
    """The settings that `hyenarec train` has with these words as options."""
    words = ["train", *(with_new_name(word) for word in words)]
    parser = make_parser(model_name(words), {})
    return TrainConfig(**_fields(parser.instantiate(parser.parse_args(words)).train))


def make_parser(model: str, defaults: dict[str, Any]) -> ArgumentParser:
    """The parser of all commands.

    Args:
        model: name of the model whose settings `train` takes.
        defaults: what `evaluate` and `recommend` take from a saved run.
    """
    parser = ArgumentParser(
        prog="hyenarec",
        description="Sequential recommendation for long histories.",
        epilog="--debug, or HYENAREC_DEBUG=1, shows where an error came from.",
    )
    commands = parser.add_subcommands(dest="command")
    names = ", ".join(MODEL_CONFIGS)
    epilog = f"--model.name chooses the model and with it the other --model options: {names}."
    train = _options_of("train", TrainConfig, skip={"model"}, epilog=epilog)
    train.add_class_arguments(model_config_named(model), "model")
    _allow_bare_switches(train)
    commands.add_subcommand("train", train, help="train a model and report its score")
    for name, options, help_text in (
        ("evaluate", EvaluateOptions, "rank held-out items with a saved model"),
        ("recommend", RecommendOptions, "print the best next items"),
    ):
        subparser = _options_of(name, options)
        subparser.set_defaults(defaults)
        commands.add_subcommand(name, subparser, help=help_text)
    bench = ArgumentParser(description="Measures speed and memory on this machine.")
    commands.add_subcommand("bench", bench, help="measure training steps of every model")
    measured = bench.add_subcommands(dest="what")
    measured.add_subcommand("train", _options_of("bench train", BenchConfig), help="time a training step")
    commands.add_subcommand("doctor", ArgumentParser(), help="show how the package was built, and test it")
    return parser


def with_new_name(word: str) -> str:
    """The present name of an option that was renamed, or of an abbreviation that only the old name has."""
    option, equals, value = word.partition("=")
    for old, new in NEW_NAMES.items():
        if f"--{old}".startswith(option) and not f"--{new}".startswith(option):
            return f"--{new}{equals}{value}"
    return word


def model_name(words: Sequence[str]) -> str:
    """The model that the words or a file ask for; its settings are then the options.

    Errors in the words or the file are left to the parser that reads them next.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--model.name", dest="name", nargs="?")
    finder.add_argument("--config", nargs="?")
    found, _ = finder.parse_known_args(words)
    if found.name is None and found.config is not None and Path(found.config).is_file():
        with contextlib.suppress(yaml.YAMLError, TypeError, KeyError, UnicodeDecodeError):
            found.name = yaml.safe_load(Path(found.config).read_text())["model"]["name"]
    return ModelConfig.name if found.name is None else found.name


class SettingsParser(ArgumentParser):
    """A parser that accepts the old names of settings in files; `main` replaces those of options."""

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """The settings in a file's content."""
        with contextlib.suppress(yaml.YAMLError):
            values = yaml.safe_load(content)
            if isinstance(values, dict) and values.keys() & NEW_NAMES.keys():
                _require_one_name(values)
                content = yaml.safe_dump(with_new_names(values))
        return super().parse_string(content, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends with a usage error; one about a value of several types is a sentence."""
        super().error(_in_a_sentence(message), ex)


def _in_a_sentence(message: str) -> str:
    """Jsonargparse's eight lines about a value that no type of a union takes; others as they are."""
    pattern = r'Parser key "(.+?)":.*Subtypes: \[(.*?)\]\n.*Given value: (.*)'
    found = re.search(pattern, message, re.DOTALL)
    if found is None:
        return message
    key, types, value = found.groups()
    kinds = {"int": "an integer", "float": "a number", "bool": "true or false", "NoneType": "null"}
    words = [
        kinds.get(name, name) or repr(word) for name, word in re.findall(r"<class '(\w+)'>|'(\w+)'", types)
    ]
    return f"{key} must be {' or '.join(words)}, got {value}"


def _require_one_name(values: dict[str, Any]) -> None:
    for old, new in NEW_NAMES.items():
        if old in values and new in values:
            raise ValueError(
                f"{new} must be given once, got {values[new]!r} and, by its old name {old}, {values[old]!r}"
            )


def _options_of(
    name: str, config: type, skip: Set[str] = frozenset(), epilog: str | None = None
) -> ArgumentParser:
    description = (config.__doc__ or "").partition("\n")[0]
    parser = SettingsParser(description=description, usage=f"hyenarec {name} [options]", epilog=epilog)
    parser.add_argument("--config", action="config", help="YAML (or JSON) file of these settings")
    parser.add_class_arguments(config, skip=set(skip))
    _allow_bare_switches(parser)
    return parser


def _allow_bare_switches(parser: ArgumentParser) -> None:
    """Lets `--resume` alone mean `--resume true`."""
    for action in parser._actions:
        if getattr(action, "_typehint", None) in (bool, bool | Auto):
            action.nargs, action.const = "?", True


def _train(options: Any) -> int:
    from hyenarec.train import train

    train(TrainConfig(**_fields(options)))
    return 0


def _evaluate(options: Any) -> int:
    from hyenarec.data import load_histories, split_histories
    from hyenarec.evaluation.evaluate import evaluate
    from hyenarec.evaluation.recommend import load
    from hyenarec.evaluation.report import (
        beside_reference_baselines,
        evaluate_reference_baselines,
        text_table,
    )

    chosen = _as_in_the_run(EvaluateOptions(**_fields(options)))
    saved = load(chosen.model, _device(chosen.device))
    histories = load_histories(chosen.data, chosen.seed)
    _require_timestamps(saved, histories, chosen)
    split = split_histories(histories, chosen.data, saved.model.uses_time)
    if split.train.vocabulary != saved.vocabulary:
        raise ValueError(
            f"data must have the catalogue that the model was trained on, {len(saved.vocabulary)} items, got "
            f"a different one of {split.train.num_items}"
        )
    targets = split.test if chosen.targets == "test" else split.validation
    max_len, exclude_history = saved.model.max_len, settled(chosen.data.exclude_history)
    name, ks = f"{split.name} {chosen.targets}", (chosen.k,)
    result = evaluate(
        saved.model,
        targets,
        max_len=max_len,
        exclude_history=exclude_history,
        ks=ks,
        batch_size=chosen.batch_size,
        split=name,
    )
    baselines = evaluate_reference_baselines(
        split.train, targets, max_len=max_len, exclude_history=exclude_history, split=name, ks=ks
    )
    results = beside_reference_baselines(saved.model.config, result, baselines)
    print(text_table(results), split.leaks, sep="\n")
    return 0


def _recommend(options: Any) -> int:
    from hyenarec.evaluation.recommend import load

    chosen = _as_in_the_run(RecommendOptions(**_fields(options)))
    if (chosen.user is None) == (chosen.history is None):
        raise ValueError(f"either user or history must be given, got {chosen.user!r} and {chosen.history!r}")
    if chosen.user is not None and chosen.timestamps is not None:
        raise ValueError(f"timestamps must be given with history only, got {chosen.timestamps!r} with user")
    saved = load(chosen.model, _device(chosen.device))
    timestamps: list[int] | None = None
    if chosen.history is not None:
        history: list[Any] = chosen.history.split()
        if not saved.vocabulary.holds_strings:
            history = [_integer("history", word, "as the ids of the data are, ") for word in history]
        if chosen.timestamps is not None:
            timestamps = [_integer("timestamps", word) for word in chosen.timestamps.split()]
        if history and not saved.vocabulary.encode(history).any():  # probably of another catalogue
            raise ValueError(
                "history must hold at least one item that the model knows, or none at all, "
                f"got {chosen.history!r}"
            )
    else:
        history, timestamps = _history_of(chosen, saved)
    best = saved.recommend(
        history,
        k=chosen.k,
        exclude_history=settled(chosen.data.exclude_history),
        timestamps=timestamps,
        at=chosen.at,
    )
    for item, score in best:
        print(f"{item}\t{score:.4f}")
    return 0


def _as_in_the_run(chosen: C) -> C:
    """The options, with the saved run's values for those that are `auto`, or fixed ones without a run."""
    return with_fixed(with_values(chosen, saved_defaults(chosen.model)))


def _history_of(chosen: RecommendOptions, saved: SavedModel) -> tuple[list[Any], list[int] | None]:
    """One user's events in the data, as external item ids, with timestamps if the model uses them."""
    from hyenarec.data import load_histories

    histories = load_histories(chosen.data, chosen.seed)
    _require_timestamps(saved, histories, chosen)
    whole = histories.user_ids.dtype.kind == "i"
    user = _integer("user", chosen.user or "", "as the ids of the data are, ") if whole else chosen.user
    found = np.flatnonzero(histories.user_ids == user)
    if len(found) == 0:
        raise ValueError(f"user must be one of the data's {histories.num_users} users, got {chosen.user!r}")
    history = histories.select(found[:1])
    timestamps = history.timestamps if saved.model.uses_time else None
    ids = history.vocabulary.decode(history.items).tolist()
    return ids, None if timestamps is None else timestamps.tolist()


def _require_timestamps(saved: SavedModel, histories: Histories, chosen: SavedModelOptions) -> None:
    """Raises ValueError if the model uses time and the data's timestamps don't fit its unit."""
    from hyenarec.data.time_checks import require_timestamps

    config = saved.model.config
    if isinstance(config, SequentialConfig) and config.time_unit is not None:
        require_timestamps(histories.timestamps, config.time_unit, chosen.data.path)


def _bench(options: Any) -> int:
    from hyenarec.bench import bench_train

    bench_train(BenchConfig(**_fields(options.train)))
    return 0


def _doctor(options: Any) -> int:
    from hyenarec import doctor

    return doctor.main()


COMMANDS: dict[str, Callable[[Any], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "recommend": _recommend,
    "bench": _bench,
    "doctor": _doctor,
}


def _fields(options: Any) -> dict[str, Any]:
    """The parsed settings without the name of the settings file."""
    return {name: value for name, value in vars(options).items() if name != "config"}


def _device(name: Device) -> torch.device:
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu")


def _integer(name: str, word: str, why: str = "") -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"{name} must be whole numbers, {why}got {word!r}") from None
