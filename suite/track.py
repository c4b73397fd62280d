# SPDX-License-Identifier: Apache-2.0
"""The JSONL log, and experiment trackers beside it: TensorBoard, Weights & Biases, MLflow. Each is imported when asked for."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from suite.errors import JobError, SuiteError, UsageError, unknown
from suite.store import write_bytes

Log = Callable[[dict[str, Any]], None]
PROJECT = "ssl-suite"
"""Project (W&B) or experiment (MLflow) that the runs appear under; their own environment variables go before it."""


def jsonl(path: Path) -> Callable[[dict[str, Any]], None]:
    """A logger that appends one JSON line per call; rows of steps that a resume repeats are dropped first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = True

    def log(row: dict[str, Any]) -> None:
        nonlocal first
        if first and path.is_file():
            kept = [line for line in path.read_text().splitlines() if _step(line) < row["step"]]
            write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
        first = False
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")

    return log


def _step(line: str) -> float:
    """Step of a log line; a line cut short by a kill counts as one to drop."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


class Tracker(Protocol):
    """Takes the rows of the JSONL log: `step`, `epoch`, losses, `lr`, `images_per_second`."""

    def __call__(self, row: dict[str, Any], /) -> None:
        """One row."""
        ...

    def close(self, failed: bool = False) -> None:
        """Everything was logged; `failed`: because an error or a signal ended the training."""
        ...


class TensorBoard:
    """Event files in the run's own folder."""

    def __init__(self, module: Any, run_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._kind, self._folder, self._config = module.SummaryWriter, folder / "tensorboard", config
        self._writer: Any = None

    def __call__(self, row: dict[str, Any], /) -> None:
        """The first row says where a resumed run goes on: what was logged from there on is replaced."""
        if self._writer is None:
            self._writer = self._kind(str(self._folder), purge_step=row["step"])
            self._writer.add_text("config", f"```\n{json.dumps(self._config, indent=1)}\n```", row["step"])
        for name, value in _values(row).items():
            self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self, failed: bool = False) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class WandB:
    """A Weights & Biases run with the run's id, which a resumed training continues."""

    def __init__(self, module: Any, run_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._run = module.init(
            project=None if "WANDB_PROJECT" in os.environ else PROJECT, id=run_id, name=run_id, resume="allow",
            dir=str(folder), config=dict(config),
        )  # fmt: skip

    def __call__(self, row: dict[str, Any], /) -> None:
        """One row; rows that a resume repeats are ignored by W&B."""
        self._run.log(_values(row), step=row["step"])

    def close(self, failed: bool = False) -> None:
        """Upload the rest."""
        self._run.finish(exit_code=int(failed))


class MLflow:
    """An MLflow run; its id is kept in the run's folder, so that a resumed training continues it."""

    def __init__(self, module: Any, run_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._mlflow, note = module, folder / "mlflow.json"
        if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & set(os.environ):
            module.set_experiment(PROJECT)
        if note.is_file():
            module.start_run(run_id=json.loads(note.read_text())["run_id"])
            return
        run = module.start_run(run_name=run_id)
        module.log_params(_flat(config))
        write_bytes(note, json.dumps({"run_id": run.info.run_id}).encode())

    def __call__(self, row: dict[str, Any], /) -> None:
        """One row."""
        self._mlflow.log_metrics(_values(row), step=row["step"])

    def close(self, failed: bool = False) -> None:
        """End the run."""
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


KINDS: dict[str, tuple[str, Callable[..., Tracker]]] = {
    "tensorboard": ("torch.utils.tensorboard", TensorBoard),
    "wandb": ("wandb", WandB),
    "mlflow": ("mlflow", MLflow),
}
"""Name to the module it needs and the class that talks to it."""


def check(names: Sequence[str]) -> None:
    """See that every tracker that was asked for is known and installed.

    Raises:
        UsageError: an unknown name, or a package that is missing or cannot be imported.
    """
    for name in names:
        _module(name)


def trackers(names: Sequence[str], run_id: str, folder: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Trackers that take the rows of the log.

    Args:
        names: of `KINDS`; a name given twice counts once.
        run_id: the run's id, its name in every tracker.
        folder: the run's folder, for what a tracker writes on this machine.
        config: the run's settings.

    Raises:
        UsageError: an unknown name or a missing package.
        JobError: a tracker does not start (no login, no server).
    """
    found: list[Tracker] = []
    for name in dict.fromkeys(names):
        module = _module(name)
        try:
            found.append(KINDS[name][1](module, run_id, folder, config))
        except Exception as error:  # each package has its own kinds
            for started in found:
                _quietly(started.close, True)
            raise JobError(f"--track {name} does not start: {_one_line(error)}") from error
    return found


@contextlib.contextmanager
def tracking(
    log: Log, names: Sequence[str], run_id: str, folder: Path, config: Mapping[str, Any], warn: Callable[[str], None]
) -> Iterator[Log]:
    """One log function that serves `log` and the trackers; closes them at the end.

    A tracker that fails on the way (a lost connection) is dropped with a warning: training goes on.
    """
    live = dict(zip(dict.fromkeys(names), trackers(names, run_id, folder, config), strict=True))

    def both(row: dict[str, Any]) -> None:
        log(row)
        for name, tracker in list(live.items()):
            if problem := _quietly(tracker, row):
                warn(f"warning: --track {name} stopped: {problem}")
                del live[name]
                _quietly(tracker.close, True)

    failed = True
    try:
        yield both
        failed = False
    finally:
        for name, tracker in live.items():
            if problem := _quietly(tracker.close, failed):
                warn(f"warning: --track {name}: {problem}")


def _module(name: str) -> Any:
    if name not in KINDS:
        raise unknown("tracker", name, KINDS)
    try:
        return importlib.import_module(KINDS[name][0])
    except ImportError as error:
        raise UsageError(
            f"--track {name} needs a package that is not installed ({_one_line(error)}): pip install 'ssl-suite[track]'"
        ) from error
    except Exception as error:  # an installed package that breaks, e.g. on another package's version
        raise UsageError(f"--track {name}: the package does not load: {_one_line(error)}") from error


def _quietly(call: Callable[..., None], *arguments: Any) -> str:
    """Call, and return why it failed, or an empty string; our own errors pass."""
    try:
        call(*arguments)
    except SuiteError:
        raise
    except Exception as error:
        return _one_line(error)
    return ""


def _values(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name != "step"}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and JSON values, each short enough for every MLflow server."""
    out: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = json.dumps(value)[:500]
    return out


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
