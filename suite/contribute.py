# SPDX-License-Identifier: Apache-2.0
"""`suite publish` and `suite import`: results as files that a pull request can carry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suite import plugins
from suite.errors import UsageError
from suite.progress import Reporter
from suite.record import RunRecord
from suite.store import RUN, Run, Store


def publish(run: str, runs: Path, results: Path, again: bool, stale: bool, reporter: Reporter) -> None:
    """Check a run and merge it into the published results.

    Args:
        run: an id, a unique start of one, or a run folder.
        runs: folder in which ids are looked up.
        results: folder of published results.
        again: replace a published record of other weights.
        stale: publish results of older versions too, marked.
        reporter: says what was published and what was left out.

    Raises:
        UsageError: no such run, or something is wrong with it.
    """
    from suite.backbone import Backbone

    path = Path(run)
    folder = Run(path.resolve()) if (path / RUN).is_file() else Store(runs).find(run)
    record, problems = Store(folder.path.parent).read(folder)
    if problems or record is None:
        raise UsageError(problems[0] if problems else f"run {folder.id!r} has not finished pre-training")
    weights = Backbone.load(folder.weights).sha256() if folder.weights.is_file() else None
    _publish(record, weights, results, folder, again, stale, reporter)


def _publish(
    record: RunRecord, weights: str | None, results: Path, folder: Run | None, again: bool, stale: bool, reporter: Reporter
) -> None:
    from suite import validate
    from suite.results import Results
    from suite.results import publish as merge

    known = validate.Known(plugins.load_all("recipes"), plugins.load_all("evaluators"))
    good, unproven = validate.publishable(record, known, weights, stale)
    done = merge(good, Results(results), folder, again)
    reporter.say(f"published: {done.path}")
    for word, keys in (("new", done.added), ("replaced", done.replaced), ("kept", done.kept)):
        if keys:
            reporter.say(f"  {word}: {', '.join(keys)}")
    for line in (*done.left_out, *unproven, *([] if weights else ["no weights file at hand: its hash was not checked"])):
        reporter.say(f"  {line}")


def import_(
    files: Sequence[Path], published: Path, results: Path, name: str, model: str, again: bool, stale: bool, reporter: Reporter
) -> None:
    """Take in what others measured: figures become rows of published figures, whole records are published.

    Args:
        files: MTEB-style JSON, MMSelfSup `metafile.yml`, timm results CSV, or records of ours.
        published: folder of the published figures.
        results: folder of published results, for records of ours.
        name: what the file of figures is called after; empty: the kind of source.
        model: the model behind an MTEB result that does not name it.
        again: as for `publish`.
        stale: as for `publish`.
        reporter: says what was taken in and what was left out.

    Raises:
        UsageError: a file that is none of these, or wrong; nothing of it is taken in.
    """
    from reports._published import COLUMNS
    from suite import figures, importers

    found = [importers.read(path, importers.Context(list(plugins.find("recipes")), _declared, model)) for path in files]
    for one in found:
        for line in one.left_out:
            reporter.say(f"left out: {line}")
        if one.record is not None:
            _publish(one.record, None, results, None, again, stale, reporter)
    for kind in dict.fromkeys(one.kind for one in found if one.rows):
        rows = [row for one in found if one.kind == kind for row in one.rows]
        path = published / figures.csv_name(name or kind)
        new, old = figures.write(path, rows, COLUMNS)
        reporter.say(f"{path}: {new} new or changed figure(s), {old} in all")


def _declared(evaluator: str) -> list[str]:
    """Names of an evaluator's metrics; none when it is not installed."""
    if evaluator not in plugins.find("evaluators"):
        return []
    return [metric.name for metric in plugins.load("evaluators", evaluator).metrics]
