"""A W&B workspace that lays a comparison out: scores, bars by model and method, charts of strategies, sweeps.

Needs wandb-workspaces (`pip install 'esc-lab[dashboard]'`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from esc_lab.errors import UserError
from esc_lab.metrics.metric import Metric
from esc_lab.tracking.project import explain_failures, open_api

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

# Charts that runs log: W&B's kind, and its fields by the columns of their tables.
CHARTS = {
    "strategy/confusion": (
        "wandb/confusion_matrix/v1",
        {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
    ),
    "strategy/preference_by_strategy": ("wandb/bar/v0", {"label": "strategy", "value": "preference"}),
    "sra/log_sra_by_depth": ("wandb/lineseries/v0", {"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"}),
}
PICTURES = ("figures/q_against_b", "figures/sra_heads")
CURVES = ("train/loss", "val/loss", "train/accuracy", "progress/finished_trees")


def build_workspace(
    entity: str,
    project: str,
    name: str,
    *,
    parameters: Sequence[str],
    scores: Sequence[Metric],
    group: str | None = None,
) -> Workspace:
    """The workspace as W&B's own object; nothing is sent.

    Args:
        parameters: keys of the configuration that the parallel coordinates show.
        scores: each has a bar for each model and method; the first two are shown large.
        group: only runs of this group.

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
    titles = {score.name: f"{score.heading} {score.arrow}".strip() for score in scores}
    columns = [_setting(key) for key in parameters] + [
        wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(score.name), inverted=score.higher_is_better is False)
        for score in scores[:2]
    ]
    bars = [
        wr.BarPlot(title=title, metrics=[name], groupby=wr.Config("model_method"), groupby_aggfunc="mean",
                   groupby_rangefunc="stderr")
        for name, title in titles.items()
    ]  # fmt: skip
    sections: dict[str, list[Any]] = {
        "Comparison": [
            *(wr.ScalarChart(title=titles[score.name], metric=score.name) for score in scores[:2]),
            wr.ScatterPlot(title="Q against B", x=wr.SummaryMetric("strategy/B"), y=wr.SummaryMetric("strategy/Q")),
            *bars,
            wr.RunComparer(diff_only="split"),
        ],
        "Sweeps": [wr.ParallelCoordinatesPlot(title="What Q and B depend on", columns=columns)],
        "Strategies and attention": [_chart(key) for key in CHARTS] + [wr.MediaBrowser(media_keys=[*PICTURES])],
        "Training and search": [wr.LinePlot(title=key, y=[key]) for key in CURVES],
    }
    filters = [expr.Metric("Group") == group] if group else []
    pinned = [f"summary:{score.name}" for score in scores[:2]]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[ws.Section(name=title, panels=panels, is_open=True) for title, panels in sections.items()],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(filters=filters, pinned_columns=pinned),
    )


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


def describe_workspace(workspace: Workspace) -> dict[str, Any]:
    """What W&B would be sent, in JSON types."""
    description: dict[str, Any] = workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return description


def save_workspace(workspace: Workspace) -> str:
    """Save the workspace as a view of its project; its address.

    Raises:
        UserError: nobody is logged in, or there is no such project.
    """
    where = f"logger.project={workspace.project}"
    api = open_api(where)
    with explain_failures(where):
        len(api.runs(f"{workspace.entity}/{workspace.project}", per_page=1))  # asks for the project
        workspace.save()  # type: ignore[no-untyped-call]
    return str(workspace.url)
