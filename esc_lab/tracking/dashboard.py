"""What W&B shows of a project's runs, question by question of the papers: a workspace to look around in, and a report.

A report is a page to share, whose panels stand beside the list of the runs that they are of, each a link. Needs
wandb-workspaces (`pip install 'esc-lab[dashboard]'`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from esc_lab.errors import UserError
from esc_lab.metrics.records import METRICS
from esc_lab.tracking.project import explain_failures, open_api

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Report
    from wandb_workspaces.workspaces import Workspace

# Charts that runs log: W&B's kind, and its fields by the columns of their tables.
_LINES = ("wandb/lineseries/v0", {"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"})
_BARS, _HISTOGRAM = "wandb/bar/v0", ("wandb/histogram/v0", {"value": "margin"})
CHARTS: dict[str, tuple[str, dict[str, str]]] = {
    "strategy/confusion": (
        "wandb/confusion_matrix/v1",
        {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
    ),
    "strategy/preference_by_strategy": (_BARS, {"label": "strategy", "value": "preference"}),
    "strategy/f1_by_strategy": (_BARS, {"label": "strategy", "value": "f1"}),
    "sra/log_sra_by_depth": _LINES,
    "sra/by_strategy": (_BARS, {"label": "strategy", "value": "log_sra"}),
    "sra/by_adherence": (_BARS, {"label": "reply", "value": "log_sra"}),
    "adherence/by_depth": _LINES,
    "preference/log_probs": _HISTOGRAM,
    "preference/rewards": _HISTOGRAM,
    "talks/intensity": _LINES,
}
FIRST = ("strategy/Q", "strategy/B")  # shown large
_STEPS = {"train": "trainer/global_step", "val": "trainer/global_step", "progress": "progress/iteration"}


@dataclass(frozen=True)
class Question:
    """A question of the papers, and the panels that answer it.

    Attributes:
        bars: metrics with a bar for each model and method.
        scatter: (x, y), both of runs' summaries, a point a run.
        charts: of `CHARTS`, those that each run logs.
        curves: metrics over the steps of a training, an evaluation, a search or talks.
        pictures: figures of comparisons.
    """

    title: str
    text: str
    bars: tuple[str, ...] = ()
    scatter: tuple[tuple[str, str], ...] = ()
    charts: tuple[str, ...] = ()
    curves: tuple[str, ...] = ()
    pictures: tuple[str, ...] = field(default=())


QUESTIONS = (
    Question(
        "Are strategies chosen better, and with less bias?",
        "Proficiency Q should rise and preference bias B fall. A model that always says the same has a large B.",
        bars=("strategy/Q", "strategy/B", "strategy/Q_W", "generated/Q", "text/perplexity", "text/rouge_l"),
        scatter=(("strategy/B", "strategy/Q"),),
        charts=("strategy/preference_by_strategy", "strategy/f1_by_strategy", "strategy/confusion"),
        pictures=("figures/q_against_b",),
    ),
    Question(
        "What does an objective learn from pairs?",
        "Margins: by how much the preferred reply of a pair is above the rejected one, while it is trained and on "
        "pairs that were held out.",
        bars=("preference/accuracy", "preference/accuracy_per_token", "preference/margin"),
        scatter=(("preference/margin", "strategy/Q"),),
        charts=("preference/log_probs", "preference/rewards"),
        curves=("train/loss", "val/loss", "train/margin", "val/margin", "train/accuracy", "val/accuracy"),
    ),
    Question(
        "Does attention to the strategy go with following it?",
        "Strategy-Relevant Attention (SRA) against the share of replies that follow their strategy, a point a run; "
        "within a run, replies that follow against those that do not; and both over the depth of the dialogue.",
        bars=("adherence/accuracy", "sra/log_sra"),
        scatter=(("sra/log_sra", "adherence/accuracy"), ("sra/sham_net", "adherence/accuracy")),
        charts=("sra/by_adherence", "sra/log_sra_by_depth", "adherence/by_depth", "sra/by_strategy"),
        pictures=("figures/sra_heads",),
    ),
    Question(
        "What does a search find, and at what cost?",
        "Trees that are done, pairs under the rule by then and the mean Q of judged decisions, over iterations.",
        bars=("search/pairs", "search/cost"),
        scatter=(("search/calls", "search/pairs"),),
        curves=("progress/finished_trees", "progress/pairs", "progress/mean_q", "progress/calls", "progress/cost"),
    ),
    Question(
        "Do whole talks help?",
        "Simulated seekers: whether the intensity of their emotion falls, and after how many turns.",
        bars=("converse/relief", "converse/success", "converse/turns"),
        charts=("talks/intensity",),
        curves=("progress/finished_talks", "progress/turns", "progress/intensity_end", "progress/relief"),
    ),
    Question(
        "How far are evaluations?",
        "Metrics of the decisions that are done; the last point is the result.",
        curves=("progress/decisions", "progress/strategy/Q", "progress/strategy/B", "progress/adherence"),
    ),
)


def _import_workspaces() -> tuple[Any, Any, Any]:
    """The modules of workspaces, filters and reports.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
        from wandb_workspaces.reports.v2 import interface as wr
    except ImportError as error:
        fix = "pip install 'esc-lab[dashboard]'"
        raise UserError("wandb-workspaces is not installed", where="stage=dashboard", fix=fix) from error
    return ws, expr, wr


def build_workspace(
    entity: str,
    project: str,
    name: str,
    *,
    parameters: Sequence[str],
    group: str | None = None,
) -> Workspace:
    """The workspace as W&B's own object; nothing is sent.

    Args:
        parameters: keys of the configuration that the parallel coordinates show, beside Q and B.
        group: only runs of this group.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    ws, expr, wr = _import_workspaces()
    columns = [_setting(key) for key in parameters] + [
        wr.ParallelCoordinatesPlotColumn(
            metric=wr.SummaryMetric(name), inverted=METRICS[name].higher_is_better is False
        )
        for name in FIRST
    ]
    sections: dict[str, list[Any]] = {
        "At a glance": [
            *(wr.ScalarChart(title=_title(name), metric=name) for name in FIRST),
            wr.RunComparer(diff_only="split"),
        ],
        **{question.title: _panels(question) for question in QUESTIONS},
        "What do Q and B depend on?": [wr.ParallelCoordinatesPlot(title="Settings, Q and B", columns=columns)],
    }
    pinned = [f"summary:{name}" for name in FIRST]
    return ws.Workspace(  # type: ignore[no-any-return]
        entity=entity,
        project=project,
        name=name,
        sections=[ws.Section(name=title, panels=panels, is_open=True) for title, panels in sections.items()],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(filters=_filters(expr, group), pinned_columns=pinned),
    )


def build_report(
    entity: str,
    project: str,
    name: str,
    *,
    group: str | None = None,
    links: Sequence[tuple[str, str]] = (),
) -> Report:
    """A report as W&B's own object, with a grid of panels and the list of its runs for each question.

    Args:
        links: name and address of each run, for the list at its beginning.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    _, expr, wr = _import_workspaces()
    blocks: list[Any] = [wr.TableOfContents()]
    if links:
        items = [wr.Link(text=text, url=address) for text, address in links]
        blocks += [wr.H1(text="The runs"), wr.UnorderedList(items=items)]
    for question in QUESTIONS:
        # Of the report's own project: one that is named would be looked up, over the network.
        runs = wr.Runset(name=group or "runs", filters=_filters(expr, group))
        panels = wr.PanelGrid(runsets=[runs], panels=_panels(question))
        blocks += [wr.H1(text=question.title), wr.P(text=question.text), panels]
    return wr.Report(entity=entity, project=project, title=name, blocks=blocks, width="fluid")  # type: ignore[no-any-return]


def _filters(expr: Any, group: str | None) -> list[Any]:
    return [expr.Metric("Group") == group] if group else []


def _title(name: str) -> str:
    """The heading of a metric with the direction in which it is better; of a count its name."""
    metric = METRICS.get(name)
    return f"{metric.heading} {metric.arrow}".strip() if metric else name


def _panels(question: Question) -> list[Any]:
    from wandb_workspaces.reports.v2 import interface as wr

    panels: list[Any] = [
        wr.ScatterPlot(title=f"{_title(y)} against {_title(x)}", x=wr.SummaryMetric(x), y=wr.SummaryMetric(y))
        for x, y in question.scatter
    ]
    panels += [
        wr.BarPlot(title=_title(name), metrics=[name], groupby=wr.Config("model_method"),
                   groupby_aggfunc="mean", groupby_rangefunc="stderr")
        for name in question.bars
    ]  # fmt: skip
    panels += [_chart(key) for key in question.charts]
    panels += [wr.LinePlot(title=key, x=_STEPS[key.split("/")[0]], y=[key]) for key in question.curves]
    if question.pictures:
        panels.append(wr.MediaBrowser(media_keys=[*question.pictures]))
    return panels


def _setting(key: str) -> Any:
    """An axis of a setting by its dotted name, which wandb-workspaces would take for a path in nested settings."""
    from wandb_workspaces.reports.v2 import interface as wr

    class Setting(wr.ParallelCoordinatesPlotColumn):
        def _to_model(self) -> Any:
            model = super()._to_model()  # type: ignore[no-untyped-call]
            model.accessor = f"config:{key}.value"
            return model

    return Setting(metric=wr.Config(key))


def _chart(key: str) -> Any:
    """A chart that the runs logged, from its table in their summaries."""
    from wandb_workspaces.reports.v2 import interface as wr

    name, fields = CHARTS[key]
    query = {"summaryTable": {"tableKey": f"{key}_table"}}
    return wr.CustomChart(query=query, chart_name=name, chart_fields=fields, chart_strings={"title": key})


def describe(view: Workspace | Report) -> dict[str, Any]:
    """What W&B would be sent, in JSON types."""
    description: dict[str, Any] = view._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return description


def find_links(entity: str, project: str, group: str | None) -> list[tuple[str, str]]:
    """Name and address of the runs that a report is of.

    Raises:
        UserError: nobody is logged in, or there is no such project.
    """
    where = f"logger.project={project}"
    api = open_api(where)
    with explain_failures(where):
        runs = api.runs(f"{entity}/{project}", filters={"group": group} if group else {}, per_page=100)
        return [(f"{run.name} ({run.job_type})", run.url) for run in runs]


def save(view: Workspace | Report) -> str:
    """Save a workspace or a report in its project; its address.

    Raises:
        UserError: nobody is logged in, or there is no such project.
    """
    where = f"logger.project={view.project}"
    api = open_api(where)
    with explain_failures(where):
        len(api.runs(f"{view.entity}/{view.project}", per_page=1))  # asks for the project
        view.save()  # type: ignore[no-untyped-call]
    return str(view.url)
