"""The table: medians with their spread, ratios to ext4, and whether the bars are reached."""

import json
import os
import platform
import re
import statistics
from pathlib import Path

BEGIN = "<!-- scripts/bench: begin -->"
END = "<!-- scripts/bench: end -->"
NATIVE, OURS = "ext4", "quorumfs"


def number(value):
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def spread(values):
    """Median, quartiles, least and most."""
    if not values:
        return "-"
    median = number(statistics.median(values))
    if len(values) == 1:
        return median
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median} ({number(low)}-{number(high)}; {number(min(values))}-{number(max(values))})"


def ratios(metric, outcome, label):
    """How many times as good as ext4 it was, round by round: the disk drifts, so only a round is comparable."""
    pairs = zip(*(outcome.readings[site].values.get(metric.name, []) if site in outcome.readings else []
                  for site in (NATIVE, label)))  # fmt: skip
    return [native / ours if metric.less_is_better else ours / native for native, ours in pairs if native and ours]


def verdict(metric, outcome):
    """Of a bar: reached or not, by the median."""
    ours = outcome.readings[OURS].values.get(metric.name, [])
    if metric.bar is None:
        return "", ""
    if metric.bar.at_most is not None:
        text, value = f"at most {metric.bar.at_most:g}", statistics.median(ours) if ours else None
        reached = value is not None and value <= metric.bar.at_most
    else:
        found = ratios(metric, outcome, OURS)
        text, value = f"at least {metric.bar.at_least_ratio:g}", statistics.median(found) if found else None
        reached = value is not None and value >= metric.bar.at_least_ratio
    return text, "not measured" if value is None else "reached" if reached else "**missed**"


def section(outcomes, about):
    """Markdown: one table a comparison."""
    lines = [BEGIN, "", *about, ""]
    for outcome in outcomes:
        lines += table(outcome)
    return "\n".join([*lines, END])


def table(outcome):
    labels = list(outcome.readings)
    others = [label for label in labels if label != NATIVE]
    compared = others if NATIVE in labels else []
    heads = ["", "unit", *labels, *(f"{label} to ext4" for label in compared), "bar", ""]
    comparison = outcome.comparison
    lines = [f"### {comparison.name}", "", f"{comparison.summary[:1].upper()}{comparison.summary[1:]}.", ""]
    lines += ["| " + " | ".join(heads) + " |", "|---|---" + "|---:" * (len(labels) + len(compared)) + "|---|---|"]
    for metric in comparison.metrics:
        cells = [metric.name, metric.unit]
        cells += [spread(outcome.readings[label].values.get(metric.name, [])) for label in labels]
        cells += [spread(ratios(metric, outcome, label)) for label in compared]
        lines.append("| " + " | ".join([*cells, *verdict(metric, outcome)]) + " |")
    lines.append("")
    for metric in comparison.metrics:
        notes = [f"{label}: {outcome.readings[label].notes[metric.name]}" for label in labels
                 if metric.name in outcome.readings[label].notes]  # fmt: skip
        less = ", less is better" if metric.less_is_better else ""
        last = f" Last round: {'; '.join(notes)}." if notes else ""
        lines.append(f"- `{metric.name}`: {metric.summary}{less}.{last}")
    lines += [f"- **{label} failed**: {said}." for label, said in outcome.failures.items()]
    return [*lines, ""]


def about(version, when, file_system, rounds, quick, load):
    """What was measured, where and how."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return [
        f"`scripts/bench{' --quick' if quick else ''} --rounds {rounds}` of {when}, {version}, on Linux"
        f" {platform.release().split('-')[0]} with {os.cpu_count()} cores and {memory_gib:.0f} GiB; load before it"
        f" began: {load:.1f}."
        " Three nodes on this machine and its one disk."
        + ("" if file_system == NATIVE else f" What the tables call {NATIVE} is {file_system} here."),
        "Median (quartiles; least-most) of the rounds, in each of which every file system had its turn; a ratio is that"
        " of one round, and above 1 where it is better than ext4. All bytes that were read back were compared.",
    ]


def write_markdown(path, text):
    """Puts the section in place of the one that the file has, else at its end."""
    before = path.read_text() if path.exists() else ""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if pattern.search(before):
        after = pattern.sub(lambda _: text, before, count=1)
    else:
        after = (before.rstrip() + "\n\n" if before.strip() else "") + text + "\n"
    path.write_text(after)


def write_json(path, outcomes, about_lines):
    results = {
        outcome.comparison.name: {
            "sites": {label: {"values": readings.values, "notes": readings.notes}
                      for label, readings in outcome.readings.items()},
            "failures": outcome.failures,
        }
        for outcome in outcomes
    }  # fmt: skip
    Path(path).write_text(json.dumps({"about": about_lines, "results": results}, indent=1) + "\n")
