"""The command line: parse, call, print. A command is one row of COMMANDS and one function."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from safetensors import SafetensorError

from nanonet.config.commands import (
    BenchConfig,
    CheckConfig,
    EvaluateConfig,
    EvidenceConfig,
    ExportConfig,
    GenerateConfig,
    InfoConfig,
    PredictConfig,
)
from nanonet.config.parse import parse
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError, escape_controls

AGAIN_S = 5.0  # longer than what has to be deleted takes


class Terminated(BaseException):
    """A SIGTERM: like Ctrl-C, no handler of errors may swallow it."""


@dataclass(frozen=True)
class Command:
    """config: the dataclass of its flags; run: what is called with it, which may return an exit code; positional: a
    field that needs no flag."""

    config: type
    run: Callable[[Any], int | None]
    summary: str
    positional: str = ""


# Each command imports its package when it runs: --help and a wrong flag answer at once.


def _train(config: TrainConfig) -> None:
    from nanonet.report.html import headline
    from nanonet.training.pipeline import train

    result = train(config)
    if result:  # {} in every process but the first
        print(headline(result))
        print(f"\n{config.output}/best is the best student; {config.output}/report.html shows the run")


def _evaluate(config: EvaluateConfig) -> None:
    from nanonet.inference.evaluate import evaluate

    print(json.dumps(evaluate(config)))


def _predict(config: PredictConfig) -> None:
    from nanonet.inference.predict import predict

    predict(config)


def _export(config: ExportConfig) -> None:
    from nanonet.inference.export import export

    print(json.dumps(export(config)))


def _generate(config: GenerateConfig) -> None:
    from nanonet.generation.pipeline import generate

    print(json.dumps(generate(config)))


def _evidence(config: EvidenceConfig) -> None:
    from nanonet.benchmarks.evidence import evidence

    evidence(config)


def _info(config: InfoConfig) -> None:
    from nanonet.cli.info import facts, lines

    found = facts()
    print(json.dumps(found, indent=2) if config.json else "\n".join(lines(found)))


def _bench(config: BenchConfig) -> None:
    from nanonet.cli.bench import bench

    bench(config)


def _check(config: CheckConfig) -> int:
    from nanonet.cli.check import check

    return check(config)


COMMANDS = {
    "train": Command(TrainConfig, _train, "Train a teacher's students on a few labels and much unlabelled text."),
    "evaluate": Command(EvaluateConfig, _evaluate, "Score a model on labelled texts; prints one JSON object."),
    "predict": Command(PredictConfig, _predict, "Label texts; one JSON object a line, in the input's order.", "file"),
    "export": Command(ExportConfig, _export, "Write a model for other programs: a folder, or one ONNX file; checked."),
    "generate": Command(GenerateConfig, _generate, "Write more texts like the few labelled ones, for --unlabelled."),
    "bench": Command(BenchConfig, _bench, "Time the distillation loss against what is used today, and check it."),
    "evidence": Command(EvidenceConfig, _evidence, "Train over several draws of the labels; prints their table."),
    "check": Command(CheckConfig, _check, "Prove the kernels of this installation against float64, on GPUs too."),
    "info": Command(InfoConfig, _info, "Show versions, devices, and which kernels serve each operation."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 1 after a check that failed, 2 after bad input (one line on standard error),
    130 after Ctrl-C, 143 after a SIGTERM, which also leaves no temporary files."""
    with _sigterm_raises():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that the terminal's encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    config: Any = None
    try:
        name = words[0] if words else "--help"
        if name in ("-h", "--help", "help"):
            print(_usage())
            return 0
        if name in ("-V", "--version"):
            from nanonet import __version__

            print(__version__)
            return 0
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, 1) or [""]
            guess = f", did you mean {near[0]}?" if near[0] else ""
            raise InputError(f"{name}: no such command{guess}; give one of {', '.join(COMMANDS)}")
        command = COMMANDS[name]
        try:
            config = parse(command.config, words[1:], f"nanonet {name}", command.summary, command.positional)
        except SystemExit:  # the help is printed
            return 0
        code = command.run(config)
        if sys.stdout:
            sys.stdout.flush()
        return code or 0
    except InputError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("nanonet: interrupted" + _how_to_resume(config), file=sys.stderr)
        return 130
    except Terminated:
        print("nanonet: terminated" + _how_to_resume(config), file=sys.stderr)
        return 143
    except BrokenPipeError:
        # the reader of the pipe has exited; the interpreter flushes standard output at exit, so it must be open
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, SafetensorError) as error:  # the second: weights that could not be written
        what, place = getattr(error, "strerror", None) or str(error), getattr(error, "filename", None)
        where = f"{place}: " if place else ""
        return _fail(f"{where}{what}; give another path, or make room there")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _fail("out of memory; give fewer or shorter texts, smaller batches, or a machine with more of it")


def _fail(what: str) -> int:
    """Print the one line of an error; the exit code. All errors are printed here, control characters escaped."""
    print(f"nanonet: error: {escape_controls(what)}", file=sys.stderr)
    return 2


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch could not allocate; torch's allocator on the CPU raises a plain RuntimeError."""
    said = str(error)
    return isinstance(error, MemoryError) or "can't allocate memory" in said or "out of memory" in said


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Within, SIGTERM raises Terminated, and again AGAIN_S later: an import may swallow it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _terminate) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _terminate(*_: object) -> NoReturn:
    signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
    raise Terminated


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: nanonet COMMAND [flags]",
            "",
            "From a few labels and much unlabelled text to a small text classifier.",
            "",
            *rows,
            "",
            "nanonet COMMAND --help shows its flags; nanonet --version the version.",
        ]
    )


def _how_to_resume(config: Any) -> str:
    if not isinstance(config, TrainConfig):
        return ""
    if config.save_every:
        return f"; to resume {config.output}, give the same command with --resume and without --overwrite"
    return "; nothing was saved: give --save-every 50 to be able to --resume"
