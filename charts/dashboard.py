"""Writes the Grafana dashboard of the chart: `python charts/dashboard.py` (make dashboard). A test compares its output with the file.

Two rows, as two people look at it: one job (is it learning, how fast, what has it lost), and all of them with the operator itself. Counters
are read over Grafana's own interval; a non-finite loss is drawn from its counter, because NaN draws nothing.
"""

import json
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueGraphMode, LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableHide, VariableRefresh, VariableSort

FILE = Path(__file__).parent / "lepton-operator" / "files" / "dashboard.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
JOB = 'namespace=~"$namespace", job_name=~"$job_name"'
RATE = "[$__rate_interval]"

Query = tuple[str, str]  # PromQL, legend
PER_JOB = "{{namespace}}/{{job_name}}"


def graph(title: str, description: str, unit: str, queries: list[Query], span: int = 8) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True)
    panel = timeseries.Panel().title(title).description(description).unit(unit).span(span).height(8).datasource(SOURCE).legend(legend)
    for index, (expression, name) in enumerate(queries):
        panel.with_target(prometheus.Dataquery().expr(expression).legend_format(name).ref_id(chr(ord("A") + index)))
    return panel.fill_opacity(8).line_width(1).span_nulls(True)


def number(title: str, description: str, unit: str, expression: str, decimals: int = 0) -> stat.Panel:
    query = prometheus.Dataquery().expr(expression).instant().ref_id("A")
    panel = stat.Panel().title(title).description(description).unit(unit).decimals(decimals).span(4).height(4)
    return panel.datasource(SOURCE).graph_mode(BigValueGraphMode.NONE).with_target(query)


def variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    chooser = dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(query).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    return chooser.sort(VariableSort.ALPHABETICAL_ASC).multi(True).include_all(True).all_value(".*")


def job_panels() -> list[timeseries.Panel | stat.Panel]:
    lost = f"sum(increase(lepton_job_lost_seconds_total{{{JOB}}}[$__range]))"
    kept = f"sum(increase(lepton_job_productive_seconds_total{{{JOB}}}[$__range]))"
    recoveries = f"sum(increase(lepton_job_recoveries_total{{{JOB}}}[$__range]))"
    return [
        number("Jobs", "Jobs that exist.", "short", f"count(lepton_job_info{{{JOB}}}) or vector(0)"),
        number("Training workers", "Members of a group now.", "short", f'sum(lepton_job_workers{{{JOB}, state="active"}}) or vector(0)'),
        number("Steps", "Optimiser steps per second, all jobs chosen.", "ops", f"sum(rate(lepton_job_steps_total{{{JOB}}}{RATE}))", 2),
        number("Restarts", "In the time shown.", "short", f"sum(increase(lepton_job_restarts_total{{{JOB}}}[$__range])) or vector(0)"),
        number(
            "Mean recovery",
            "From a failure to the next step, in the time shown.",
            "s",
            f"sum(increase(lepton_job_recovery_seconds_total{{{JOB}}}[$__range])) / ({recoveries} > 0)",
            2,
        ),
        number("Goodput", "The productive part of the time shown.", "percentunit", f"{kept} / ({kept} + {lost} > 0)", 3),
        graph("Loss", "The loss that rank 0 reported last.", "none", [(f"lepton_job_loss{{{JOB}}}", PER_JOB)], 12),
        graph(
            "Throughput",
            "Samples per second of the whole group.",
            "samples/s",
            [(f"sum by (namespace, job_name) (rate(lepton_job_samples_total{{{JOB}}}{RATE}))", PER_JOB)],
            12,
        ),
        graph(
            "Tokens",
            "Tokens per second of the whole group, where the script reports them.",
            "tokens/s",
            [(f"sum by (namespace, job_name) (rate(lepton_job_tokens_total{{{JOB}}}{RATE}))", PER_JOB)],
        ),
        graph(
            "Step time",
            "Median and slowest twentieth of the step times over all workers: a gap between them is a straggler or a stall.",
            "s",
            [
                (f"histogram_quantile(0.5, sum by (le) (rate(lepton_train_step_seconds_bucket{{{JOB}}}{RATE})))", "median"),
                (f"histogram_quantile(0.95, sum by (le) (rate(lepton_train_step_seconds_bucket{{{JOB}}}{RATE})))", "95 %"),
            ],
        ),
        graph(
            "Non-finite losses",
            "Losses that were NaN or infinite. A loss that stays so draws nothing in the panel above.",
            "short",
            [(f"sum by (namespace, job_name) (increase(lepton_train_nonfinite_loss_total{{{JOB}}}{RATE}))", PER_JOB)],
        ),
        graph(
            "Workers",
            "Workers by state.",
            "short",
            [(f"sum by (state) (lepton_job_workers{{{JOB}}})", "{{state}}"), (f"sum(lepton_train_process_up{{{JOB}}})", "processes")],
        ),
        graph(
            "Restarts",
            "By what was lost: a process, a pod, a node.",
            "short",
            [(f"sum by (kind) (increase(lepton_job_restarts_total{{{JOB}}}{RATE}))", "{{kind}}")],
        ),
        graph(
            "Recovery time",
            "Mean time from a failure to the next step.",
            "s",
            [
                (
                    f"sum by (namespace, job_name) (rate(lepton_job_recovery_seconds_total{{{JOB}}}{RATE}))"
                    f" / (sum by (namespace, job_name) (rate(lepton_job_recoveries_total{{{JOB}}}{RATE})) > 0)",
                    PER_JOB,
                )
            ],
        ),
        graph(
            "Where the time goes",
            "Seconds per second: productive, and lost by cause.",
            "percentunit",
            [
                (f"sum(rate(lepton_job_productive_seconds_total{{{JOB}}}{RATE}))", "productive"),
                (f"sum by (cause) (rate(lepton_job_lost_seconds_total{{{JOB}}}{RATE}))", "{{cause}}"),
            ],
            12,
        ),
        graph("Generation", "Each step is a change of the group.", "short", [(f"lepton_job_generation{{{JOB}}}", PER_JOB)], 12),
    ]


def reported(names: str) -> str:
    """The series that a script reported under one of `names` (a regular expression), of the worker with rank 0."""
    return f'max by (namespace, job_name, name) (lepton_train_metric{{{JOB}, name=~"{names}"}})'


def trainer_panels() -> list[timeseries.Panel]:
    """What the built-in trainer reports; a script that gives these names to report(metrics=...) is shown here, too."""
    each = "{{job_name}} {{name}}"
    figures = [
        (
            "Held-out data",
            "Figures of merit of the last evaluation.",
            "none",
            "accuracy|f1|rmse|mae|r2|bits_per_byte|bits_per_token|test_loss",
        ),
        ("Learning rate", "Of the last interval.", "none", "learning_rate"),
        ("Gradient norm", "Before clipping.", "none", "gradient_norm"),
        ("MFU", "Model FLOPs utilisation, on GPUs that are known.", "percentunit", "mfu"),
        ("Waiting for data", "Part of the time in which a step waited for its batch.", "percentunit", "data_wait_ratio"),
        ("Memory", "Peak of the GPU's allocator, else of the process.", "bytes", "memory_bytes"),
    ]
    panels = [graph(title, about, unit, [(reported(names), each if "|" in names else PER_JOB)]) for title, about, unit, names in figures]
    about = "Seconds that training stood still for them, in all; those that could not be saved, and those found damaged."
    counted = reported("checkpoint_blocked_seconds|checkpoints_failed|checkpoints_damaged")
    return [*panels, graph("Checkpoints", about, "none", [(counted, each)], 24)]


def operator_panels() -> list[timeseries.Panel]:
    return [
        graph(
            "Jobs ended",
            "Finished jobs by result, and deleted ones.",
            "short",
            [
                (f"sum by (result) (increase(lepton_operator_jobs_finished_total{RATE}))", "{{result}}"),
                (f"sum(increase(lepton_operator_jobs_deleted_total{RATE}))", "deleted"),
            ],
        ),
        graph(
            "Reconcile time",
            "From a key's turn to its end.",
            "s",
            [
                (f"histogram_quantile(0.5, sum by (le) (rate(lepton_operator_reconcile_duration_seconds_bucket{RATE})))", "median"),
                (f"histogram_quantile(0.99, sum by (le) (rate(lepton_operator_reconcile_duration_seconds_bucket{RATE})))", "99 %"),
            ],
        ),
        graph(
            "API requests",
            "Requests to the Kubernetes API by verb, and those that failed.",
            "reqps",
            [
                (f"sum by (verb) (rate(lepton_operator_api_requests_total{RATE}))", "{{verb}}"),
                (f'sum by (code) (rate(lepton_operator_api_requests_total{{code!~"2.."}}{RATE}))', "{{code}}"),
            ],
        ),
        graph("Agents", "Agents connected to the coordinator.", "short", [("sum(lepton_operator_agents)", "agents")], 12),
        graph("Leader", "1 on the replica that leads.", "short", [("lepton_operator_leader", "{{pod}}{{instance}}")], 12),
    ]


def build() -> str:
    board = dashboard.Dashboard("Lepton training").uid("lepton-training").tags(["lepton", "training", "pytorch"])
    board.readonly().refresh("10s").time("now-1h", "now").timezone("browser")
    board.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus").hide(VariableHide.DONT_HIDE))
    board.with_variable(variable("namespace", "Namespace", "label_values(lepton_job_info, namespace)"))
    board.with_variable(variable("job_name", "Job", 'label_values(lepton_job_info{namespace=~"$namespace"}, job_name)'))
    for title, panels in (("Jobs", job_panels()), ("Trainer", trainer_panels()), ("Operator", operator_panels())):
        board.with_row(dashboard.Row(title))
        for panel in panels:
            board.with_panel(panel)
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def queries(namespace: str = ".*", job_name: str = ".*") -> list[Query]:
    """(panel's title, PromQL) of every panel, Grafana's variables replaced by values that a Prometheus takes."""
    values = {"$namespace": namespace, "$job_name": job_name, "$__rate_interval": "1m", "$__range": "1h"}
    found = []
    for panel in json.loads(build())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in values.items():
                expression = expression.replace(name, value)
            found.append((panel["title"], expression))
    return found


if __name__ == "__main__":
    FILE.write_text(build(), encoding="utf-8")
    print(f"wrote {FILE}")
