"""The commands that write a model for devices, and the one that runs it on a recording as a stream."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from distilled_student.common.early_checks import (
    BEST,
    JOINT,
    check_between,
    check_file,
    check_folder,
    check_model,
    check_no_data,
    check_output_file,
    check_packed_output,
    check_positive,
    check_probability,
    check_rate,
    check_run,
    checkpoint_name,
    has_weights,
    is_installed,
)
from distilled_student.common.errors import UserError
from distilled_student.common.shipped_models import model_path
from distilled_student.device.stream_commands import keywords_of_file

KEYWORD_LINE = "{:7.2f} s  {}  {:.2f}"
MIN_WINDOW, MAX_WINDOW = 0.02, 240  # seconds of a stream's window: a frame; a keyword takes one, a sentence some
MAX_PROGRAM = 3600  # seconds that a .pte file can reserve memory for


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands to the command line; ``panel`` is their heading in its help."""
    for command in (export, pack, stream):
        app.command(rich_help_panel=panel)(command)


def check_window(window: float | None) -> None:
    """Raise UserError for a length that no window of a stream has; None is an option that was not given."""
    check_between("--window", window, MIN_WINDOW, MAX_WINDOW, "seconds")


def check_loss(max_loss: float) -> None:
    """Raise UserError for a number of percentage points that cannot be lost."""
    check_between("--max-loss", max_loss, 0, 100, "percentage points")


def check_alarms(alarms: Path | None, rate: float) -> None:
    """Raise UserError for options of the threshold of a stream that cannot be used."""
    check_rate("--rate", rate)
    if alarms is not None:
        from distilled_student.device.alarms import audio_of

        audio_of(alarms, "--alarms")


def set_stream_threshold(file: Path, alarms: Path | None, rate: float) -> None:
    """Put the threshold for ``rate`` false alarms per hour of ``alarms`` into a stream's file; None: it stays."""
    if alarms is not None:
        from distilled_student.device.alarms import choose_threshold

        print(choose_threshold(file, alarms, rate))


Alarms = Annotated[
    Path | None,
    typer.Option(help="File or folder of running speech without keywords: it gives the threshold of the stream."),
]
Rate = Annotated[float, typer.Option(help="With --alarms: false alarms per hour that the threshold allows.")]


def export(
    source: Annotated[Path, typer.Argument(help="edge, tiny, the folder of a joint training run, or a student.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .onnx, or .pte for ExecuTorch.")],
    int8: Annotated[bool, typer.Option("--int8", help="Quantise weights and matrix products to int8 (.onnx).")] = False,
    max_loss: Annotated[
        float, typer.Option(help="Largest loss by int8, in percentage points of accuracy and EER.")
    ] = 0.3,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Export one step of a stream: chunk and state in and out (.onnx).")
    ] = False,
    window: Annotated[
        float | None, typer.Option(help="Seconds of audio that a score of a stream covers; default: 1.")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Longest utterance that a .pte file accepts, in seconds; default: 10.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Checkpoint in the folder of the run: its name or its path.")] = BEST,
    alarms: Alarms = None,
    rate: Rate = 0.5,
) -> None:
    """Export a model to one file: waveforms in; hidden states, keyword scores and speaker embedding out."""
    is_program = output.suffix == ".pte"
    if not is_program and output.suffix != ".onnx":
        raise UserError(f"--output {output}: expected a name that ends with .onnx or .pte")
    if is_program and (int8 or streaming):
        raise UserError("--int8, --streaming: need a name that ends with .onnx")
    if alarms is not None and not streaming:
        raise UserError(f"--alarms {alarms}: needs --streaming: it chooses the threshold of a stream")
    check_loss(max_loss)
    check_window(window)
    check_between("--max-seconds", max_seconds, 1, MAX_PROGRAM, "seconds")
    if window is not None and not streaming:
        raise UserError(f"--window {window:g}: needs --streaming: it is that of a stream")
    if max_seconds is not None and not is_program:
        raise UserError(f"--max-seconds {max_seconds:g}: needs a name that ends with .pte")
    checkpoint = checkpoint_name(source, checkpoint)
    is_copy = int8 and (model_path(source) / JOINT).is_file()
    if not is_copy:
        check_model(source, checkpoint)
    check_output_file("--output", output)
    check_alarms(alarms, rate)
    if is_copy:
        if window is not None:
            raise UserError(f"--window {window:g}: the window is part of the stream in {source}: leave it out")
        from distilled_student.export.copy_packed import copy_packed

        copy_packed(model_path(source), output, streaming)
        return set_stream_threshold(output, alarms, rate)
    from distilled_student.multitask.device_model import open_joint

    model = open_joint(source, checkpoint)
    if is_program:
        from distilled_student.export.executorch import MAX_SECONDS, export_executorch

        export_executorch(model, output, MAX_SECONDS if max_seconds is None else max_seconds, checkpoint)
    elif streaming:
        from distilled_student.export.stream import export_stream
        from distilled_student.streaming import WINDOW_SECONDS

        export_stream(model, output, WINDOW_SECONDS if window is None else window, checkpoint, int8, max_loss)
        set_stream_threshold(output, alarms, rate)
    else:
        from distilled_student.export.utterance import export_onnx

        export_onnx(model, output, int8, max_loss, checkpoint)


def pack(
    run: Annotated[Path, typer.Argument(help="Folder of a joint training run that was evaluated.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the packed model.")],
    window: Annotated[float, typer.Option(help="Seconds of audio that a score of a stream covers.")] = 1.0,
    max_loss: Annotated[
        float, typer.Option(help="Largest loss by int8, in percentage points of accuracy and EER.")
    ] = 0.3,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder with a folder of recordings for each person, or with WORD/SPEAKER_nohash_*.wav: decisions "
            "about speakers are calibrated on these people instead of the run's development speakers. Give it once for "
            "each kind of speech, such as commands and sentences; each weighs the same.",
        ),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Checkpoint file in the folder of the run.")] = BEST,
    alarms: Alarms = None,
    rate: Rate = 0.5,
) -> None:
    """Pack a joint run to use or share it: weights, thresholds, int8 graphs for utterances and streams, model card."""
    check_loss(max_loss)
    check_window(window)
    check_run(run, checkpoint)
    folders = calibrate or []
    for folder in folders:
        check_folder("--calibrate", folder)
    check_no_data("--output", output, [("RUN", str(run)), *(("--calibrate", str(folder)) for folder in folders)])
    check_packed_output("--output", output)
    check_alarms(alarms, rate)
    from distilled_student.export.pack import pack as write
    from distilled_student.onnx import STREAM

    write(run, output, checkpoint, window, max_loss, folders)
    set_stream_threshold(output / STREAM, alarms, rate)


def packed_graph(model: Path, window: float | None) -> Path | None:
    """The int8 stream of a packed model, which `listen` uses too; None: use PyTorch.

    A ``window`` of another length needs PyTorch and float weights; where they are not installed, the graph is given.
    """
    from distilled_student.onnx import STREAM

    folder = model_path(model)
    file = folder / STREAM
    can_use_torch = has_weights(folder) and is_installed("torch")
    is_packed = (folder / JOINT).is_file() and file.is_file()
    return file if is_packed and (window is None or not can_use_torch) else None


def stream(
    model: Annotated[
        Path,
        typer.Argument(
            help="edge, tiny, a packed folder, the folder of a joint run whose student is causal, or an .onnx file."
        ),
    ],
    recording: Annotated[Path, typer.Argument(help="Audio file, read chunk by chunk like a microphone.")],
    chunk_ms: Annotated[int, typer.Option(help="Length of a chunk in milliseconds.")] = 100,
    window: Annotated[
        float | None, typer.Option(help="Seconds of audio that a score covers; default: 1, or that of the .onnx file.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Smallest probability of a keyword; default: that of exported streams, measured now."),
    ] = None,
) -> None:
    """Spot keywords in an audio file chunk by chunk and print each with its time."""
    check_positive("--chunk-ms", chunk_ms)
    check_window(window)
    check_probability("--threshold", threshold)
    is_exported = model.suffix == ".onnx" and not model.is_dir()
    graph = model if is_exported else packed_graph(model, window)
    if graph is not None and window is not None:
        raise UserError(f"--window {window:g}: the window is part of {graph}: leave it out")
    if graph is None:
        check_model(model)
    check_file("", recording)
    if graph is not None:
        _print_keywords(recording, keywords_of_file(graph, recording, chunk_ms, threshold))
        return
    import torch

    from distilled_student.common import audio
    from distilled_student.multitask.device_model import open_joint
    from distilled_student.streaming import WINDOW_SECONDS, Stream, listen

    torch.set_num_threads(1)  # a chunk is too small for several threads
    opened = Stream(open_joint(model), WINDOW_SECONDS if window is None else window)
    _print_keywords(recording, listen(opened, audio.load(recording), chunk_ms, threshold))


def _print_keywords(recording: Path, hits: Iterable[tuple[Any, ...]]) -> None:
    """A line for each hit, which begins with seconds, label and score; that there is none is said on standard error."""
    has_hits = False
    for hit in hits:
        has_hits = True
        print(KEYWORD_LINE.format(*hit))
    if not has_hits:
        typer.echo(f"{recording}: no keyword", err=True)
