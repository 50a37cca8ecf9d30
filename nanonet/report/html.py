"""report.html: the results of a run in one file that fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as escape_html
from typing import Any, NamedTuple

from nanonet.errors import escape_controls
from nanonet.inference.scores import wilson
from nanonet.report import figures
from nanonet.report.confidence import confidence_lines, confidence_table
from nanonet.report.speed import speed_lines, speed_table

WIDE = 0.02  # an interval of an accuracy that is shown [fraction]
CSS = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #66727f; --line: #dfe4ea; --back: #fff; --bar: #3b82f640 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dde3ea; --soft: #93a0ad; --line: #323b45; --back: #14181d; --bar: #3b82f66b } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 62rem; margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem }
p { margin: .4rem 0; max-width: 46rem } .soft { color: var(--soft) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
.wide { width: 100% } .scroll { overflow-x: auto }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th { color: var(--soft); font-weight: 500 }
th:first-child, td:first-child, td.left { text-align: left } tr.best td { font-weight: 600 }
td.bar { background: linear-gradient(90deg, var(--bar) var(--part), transparent var(--part)); min-width: 8rem }
details { margin-top: 2.4rem } summary { cursor: pointer; color: var(--soft) }
code { font-size: .92em } svg { display: block }
"""


class ReportRow(NamedTuple):
    """A row of the headline table. tested: test rows; trained: trainable parameters; smaller: the teacher's parameters
    over its own. None is what does not apply."""

    name: str
    tested: int
    accuracy: float | None
    macro_f1: float | None
    parameters: int | None
    trained: int | None
    smaller: float | None
    best: bool = False


def report_rows(report: dict[str, Any]) -> list[ReportRow]:
    """The headline table of a report: linear probe, teacher, students, ensemble."""
    teacher, probe, ensemble, students = (report[key] for key in ("teacher", "linear_probe", "ensemble", "students"))
    size, table, tested = teacher["parameters"], [], report["data"]["test"]
    if probe:
        name, rows = "frozen embeddings + logistic regression", probe.get("test", tested)
        name += f" ({rows:,} test rows)" if rows < tested else ""
        table.append(ReportRow(name, rows, probe["accuracy"], probe["macro_f1"], size, None, 1.0))
    name = f"teacher ({teacher['targets'].replace('_', ' ')})"
    table.append(ReportRow(name, tested, teacher["accuracy"], teacher["macro_f1"], size, None, size and 1.0))
    for k, student in enumerate(students):
        layers = ", ".join(map(str, student["layers"]))
        kind = "CNN" if report["config"].get("student", "cnn") == "cnn" else report["config"]["student"]
        name = f"student {k} (layers {layers})" if layers else f"student {k} ({kind})"
        count, trained = student["parameters"]["total"], student["parameters"]["trainable"]
        scores = student["accuracy"], student["macro_f1"]
        table.append(ReportRow(name, tested, *scores, count, trained, size and size / count, k == report["best"]))
    if len(students) > 1:
        count, trained = (sum(student["parameters"][part] for student in students) for part in ("total", "trainable"))
        name, scores = f"ensemble of {len(students)} students", (ensemble["accuracy"], ensemble["macro_f1"])
        table.append(ReportRow(name, tested, *scores, count, trained, size and size / count))
    return table


def reliabilities(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Name and reliability of the teacher and each student, where they were tested."""
    # reports of older versions have none
    return [(name, part["reliability"]) for name, part in _models(report) if part and part.get("reliability")]


def speeds(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Name and speed of the teacher and each student, where they were measured."""
    return [(name, part) for name, part in _models(report.get("speed")) if part]


def _models(report: dict[str, Any] | None) -> list[tuple[str, dict[str, Any] | None]]:
    if report is None:
        return []
    return [("teacher", report["teacher"]), *((f"student {k}", part) for k, part in enumerate(report["students"]))]


def headline(report: dict[str, Any]) -> str:
    """The headline table and the remarks for a terminal."""
    table = report_rows(report)
    shown = [_with_interval(row.accuracy, row.tested) for row in table]
    width, wide = max(len(row.name) for row in table) + 2, max(8, *map(len, shown))
    lines = [f"{'':<{width}}  {'accuracy':>{wide}}  macro-F1  parameters  trained  smaller"]
    for row, accuracy in zip(table, shown, strict=True):
        name = ("* " if row.best else "  ") + row.name
        numbers = f"{accuracy:>{wide}}  {_percent(row.macro_f1):>8}  {_millions(row.parameters):>10}"
        lines.append(f"{name:<{width}}  {numbers}  {_millions(row.trained):>7}  {_times(row.smaller, 'x'):>7}")
    lines += speed_lines(speeds(report))
    lines += confidence_lines(reliabilities(report))
    return "\n".join([*lines, *(f"\n{escape_controls(remark)}" for remark in remarks(report))])


def remarks(report: dict[str, Any]) -> list[str]:
    """What has to be known of the numbers: how they were measured where there is no test, and what spoils a test."""
    data, teacher, best = report["data"], report["teacher"], report["students"][report["best"]]
    found = []
    if not data["test"]:
        accuracy, count = teacher["cross_validation"].get(teacher["targets"]), teacher.get("cross_validated_labels", 0)
        if accuracy is not None and count:
            how = "" if teacher["targets"] in ("head", "files") else "cross-validated "
            found.append(
                f"No test rows. The teacher's {how}accuracy is {_with_interval(accuracy, count)}%"
                f" on {count} labels; tested on rows of their own, it may be higher or lower."
            )
        if best.get("validation_agreement") is not None:
            rows = f"{data['validation']} validation rows" if data["validation"] else "the training rows"
            found.append(f"The best student gives {_percent(best['validation_agreement'])}% of {rows} its label.")
    elif _interval(best["accuracy"], data["test"]):
        found.append(f"{data['test']} test rows: in brackets the 95% interval of the accuracy.")
    pieces = report.get("vocabulary")
    if pieces and pieces["after"] < pieces["before"]:
        found.append(
            f"The students know {pieces['after']} word pieces of {pieces['before']}; --vocabulary all keeps every one."
        )
    elif pieces and pieces["why"]:
        found.append(f"The students know all {pieces['before']} word pieces: {pieces['why']}.")
    if data.get("test_in_train"):
        found.append(
            f"{data['test_in_train']} of the test texts are training texts too; --deduplicate drops them there."
        )
    return found


def render_html(report: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> str:
    """The page. report: what report.json holds; metrics: the lines of metrics.jsonl."""
    data, best = report["data"], report["students"][report["best"]]
    test = f"{data['test']} test rows" if data["test"] else "no test rows, so no accuracies"
    drawn, config = data.get("labels_per_class"), report["config"]
    origin = config.get("student_model") or config["teacher"]
    labels = f"{data['labelled']} labels ({f'{drawn} of each class, drawn' if drawn else 'every one'})"
    title = f"nanonet: {data['name']}"
    validation = f"{data['validation']} validation rows, unlabelled rows that were not trained on"
    chosen_on = validation if data["validation"] else "the training rows, which were too few for validation rows"
    sizes = [(row.name, row.accuracy, row.parameters) for row in report_rows(report) if row.parameters]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=soft>{len(data['classes'])} classes, {labels}, {data['unlabelled']} rows without,"
        f" {test}; tuning {escape(best['tuning'])}, seed {report['config']['seed']}.</p>",
        _headline_table(report),
        *(f"<p>{escape(remark)}</p>" for remark in remarks(report)),
        f"<p class=soft>The best student, in bold, has the smallest divergence from the soft labels of {chosen_on}:"
        f" no test label was used. Sizes are relative to the teacher; the students' embeddings are"
        f" those of {escape(origin)}, {'frozen' if best['layers'] else 'cut down and trained'}.</p>",
        _section("Training loss of each student", figures.draw_losses(metrics)),
        _section("Accuracy against size", figures.draw_sizes(sizes)),
    ]
    parts.append(_section("Size and speed", speed_table(speeds(report))))
    found = reliabilities(report)
    parts.append(_section("Confidence", confidence_table(found) + figures.draw_reliability(found)))
    if report["confusion"]:
        matrix = report["confusion"], data["classes"]
        parts += [_section("Confusions of the best student", figures.draw_confusion(*matrix)), _confused(*matrix)]
    parts += [
        _section("How the soft labels were chosen", _rules(report["teacher"])),
        _section("Time of each stage", _seconds(report["seconds"])),
        _details("Settings", report["config"]),
        _details("Versions", report["versions"]),
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>"
    )
    return head + "<body>\n" + "\n".join(part for part in parts if part) + "\n</body></html>\n"


def escape(text: str) -> str:
    """`text` as text of the page, control characters escaped."""
    return escape_html(escape_controls(text))


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>\n<div class=scroll>{body}</div>" if body else ""


def _headline_table(report: dict[str, Any]) -> str:
    lines = []
    for row in report_rows(report):
        part = f"{100 * (row.accuracy or 0):.1f}%"
        accuracy = _with_interval(row.accuracy, row.tested)
        lines.append(
            f"<tr{' class=best' if row.best else ''}><td>{escape(row.name)}</td>"
            f'<td class=bar style="--part:{part}">{accuracy}</td><td>{_percent(row.macro_f1)}</td>'
            f"<td>{_millions(row.parameters)}</td><td>{_millions(row.trained)}</td>"
            f"<td>{_times(row.smaller, '×')}</td></tr>"
        )
    columns = ("", "accuracy [%]", "macro-F1 [%]", "parameters", "trained", "smaller")
    head = f"<tr>{''.join(f'<th>{column}</th>' for column in columns)}</tr>"
    return f"<div class=scroll><table class=wide style='margin-top:1.4rem'>{head}{''.join(lines)}</table></div>"


def _confused(counts: Sequence[Sequence[int]], classes: Sequence[str], most: int = 8) -> str:
    """The most frequent confusions as a table, readable where the matrix has many classes."""
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n]
    lines = [
        f"<tr><td>{escape(classes[i])}</td><td class=left>{escape(classes[j])}</td>"
        f"<td>{n} of {sum(counts[i])}</td></tr>"
        for n, i, j in sorted(pairs, key=lambda pair: -pair[0])[:most]
    ]
    head = "<tr><th>true</th><th style='text-align:left'>predicted</th><th>rows</th></tr>"
    return f"<div class=scroll><table>{head}{''.join(lines)}</table></div>" if lines else ""


def _rules(teacher: dict[str, Any]) -> str:
    if not teacher["cross_validation"]:
        return f"<p>{escape(teacher['targets'])}: no label to measure them on</p>"
    how = "" if teacher["targets"] in ("head", "files") else "cross-validated "
    lines = "".join(
        f"<tr{' class=best' if rule == teacher['targets'] else ''}><td>{escape(rule.replace('_', ' '))}</td>"
        f"<td>{_percent(accuracy)}</td></tr>"
        for rule, accuracy in sorted(teacher["cross_validation"].items(), key=lambda item: -(item[1] or 0))
    )
    return f"<table><tr><th>rule</th><th>{how}accuracy on the labels [%]</th></tr>{lines}</table>"


def _seconds(seconds: dict[str, float]) -> str:
    longest = max(seconds.values(), default=0.0) or 1.0
    lines = "".join(
        f'<tr><td>{escape(stage)}</td><td class=bar style="--part:{100 * s / longest:.1f}%">{s:.1f} s</td></tr>'
        for stage, s in seconds.items()
    )
    total = f"<tr><td>total</td><td>{sum(seconds.values()):.1f} s</td></tr>"
    return f"<table>{lines}{total}</table>" if seconds else ""


def _details(title: str, values: dict[str, Any]) -> str:
    lines = "".join(
        f"<tr><td>{escape(str(key))}</td><td class=left><code>{escape(_shown(value))}</code></td></tr>"
        for key, value in values.items()
    )
    return f"<details><summary>{title}</summary><div class=scroll><table>{lines}</table></div></details>"


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _interval(accuracy: float | None, rows: int) -> str:
    """The 95% interval of an accuracy [%]; "" where it is narrower than WIDE."""
    if accuracy is None or not rows:
        return ""
    low, high = wilson(accuracy, rows)
    return f" [{100 * low:.1f}, {100 * high:.1f}]" if high - low > WIDE else ""


def _with_interval(accuracy: float | None, rows: int) -> str:
    return _percent(accuracy) + _interval(accuracy, rows)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _times(value: float | None, sign: str) -> str:
    return "–" if value is None else f"{value:.2f}{sign}"


def _millions(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.2f}M"
