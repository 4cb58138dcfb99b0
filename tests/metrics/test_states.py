"""What all metrics promise of their states: they add up, reset, pickle, and survive low precision."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from esc_lab.metrics import PreferenceBias, StrategyProficiency, StrategyRelevantAttention
from esc_lab.metrics.attention import SpanSRA

CLASSES = ["Question", "Information", "Others"]
DECISIONS = [(torch.tensor([0, 0, 1, -1]), torch.tensor([0, 1, 2, 1])), (torch.tensor([2, 1]), torch.tensor([0, 0]))]
ATTENTION = [{"paper/name": SpanSRA(x, 0.02, 3 * x, np.full((2, 3), x, dtype=np.float32))} for x in (0.01, 0.03, 0.5)]
CASES = {
    "proficiency": (lambda: StrategyProficiency(CLASSES), DECISIONS),
    "bias": (lambda: PreferenceBias(CLASSES), DECISIONS),
    "attention": (
        lambda: StrategyRelevantAttention(CLASSES, heads=(2, 3)),
        [
            (ATTENTION[:2], CLASSES[:2], [1, 3]),
            (ATTENTION[2:], CLASSES[:1], [5]),
        ],
    ),
}
each_metric = pytest.mark.parametrize(("make", "batches"), CASES.values(), ids=CASES.keys())


def values(metric):
    result = metric.compute()
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in result.values())
    return {name: value.item() for name, value in result.items()}


def fed(make, batches):
    metric = make()
    for batch in batches:
        metric.update(*batch)
    return metric


@each_metric
def test_two_processes_add_up(make, batches):
    merged = fed(make, batches[:1])
    merged.merge_state(fed(make, batches[1:]))
    assert values(merged) == pytest.approx(values(fed(make, batches)), abs=1e-12)


@each_metric
def test_reset_forgets_everything(make, batches):
    metric = fed(make, batches)
    metric.reset()
    metric.update(*batches[1])
    assert values(metric) == values(fed(make, batches[1:]))


@each_metric
def test_pickled_metric_goes_on_counting(make, batches):
    metric = pickle.loads(pickle.dumps(fed(make, batches[:1])))
    metric.update(*batches[1])
    assert values(metric) == values(fed(make, batches))


@each_metric
def test_calling_gives_the_batch_and_accumulates(make, batches):
    metric = make()
    metric(*batches[0])
    batch = {name: value.item() for name, value in metric(*batches[1]).items()}
    assert batch == values(fed(make, batches[1:]))
    assert values(metric) == pytest.approx(values(fed(make, batches)), abs=1e-12)


@each_metric
def test_computing_from_nothing_is_refused(make, batches):
    metric = make()
    with (
        pytest.warns(UserWarning, match="was called before the ``update`` method"),
        pytest.raises(ValueError, match=rf"{type(metric).__name__} has no .* to compute from: call update\(\) first"),
    ):
        metric.compute()


@each_metric
def test_low_precision_around_it_costs_nothing(make, batches):
    expected = values(fed(make, batches))
    metric = make().to(torch.bfloat16)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        for batch in batches:
            metric.update(*batch)
        assert values(metric) == expected
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(before)


def test_an_unknown_span_is_refused():
    spans = "paper or reference or first_token, name, quoted, quoted_strategy, instruction"
    with pytest.raises(ValueError, match=f"no SRA 'paper/names': {spans}"):
        StrategyRelevantAttention(CLASSES, span="names")
    with pytest.raises(ValueError, match="replies without 'paper/quoted', only paper/name"):
        StrategyRelevantAttention(CLASSES, span="quoted").update(ATTENTION[:1], CLASSES[:1], [1])


def test_strategy_metrics_share_their_counts_in_a_collection():
    collection = MetricCollection([StrategyProficiency(CLASSES), PreferenceBias(CLASSES)])
    for preds, target in DECISIONS:
        collection.update(preds, target)
    assert len(collection.compute_groups) == 1
    found = collection.compute()
    # Names that both have, such as `n`, make the collection put the metric's name before each.
    for case, name in (("bias", "PreferenceBias"), ("proficiency", "StrategyProficiency")):
        for key, value in fed(*CASES[case]).compute().items():
            assert found[f"{name}_{key}"] == value


WORKER = """
import sys
import torch
from tests.metrics.test_states import CASES, fed, values
store, rank = sys.argv[1], int(sys.argv[2])
torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
for make, batches in CASES.values():
    metric = make()
    if rank == 0:  # the other process has nothing to bring
        metric.update(*batches[0])
    print(values(metric))
    metric = fed(make, batches[rank:rank + 1])
    print(values(metric))
    if hasattr(metric, "confusion"):
        with metric.sync_context():
            print(metric.confusion.tolist())
torch.distributed.destroy_process_group()
"""


def test_real_processes_pool_their_counts(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", "-c", WORKER, str(tmp_path / "store")]
    workers = [
        subprocess.Popen([*command, str(rank)], cwd=root, stdout=subprocess.PIPE, text=True) for rank in range(2)
    ]
    outputs = [worker.communicate()[0].splitlines() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    expected = []
    for make, batches in CASES.values():
        metric = fed(make, batches)
        expected += [str(values(fed(make, batches[:1]))), str(values(metric))]
        if hasattr(metric, "confusion"):
            expected.append(str(metric.confusion.tolist()))
    assert outputs == [expected, expected]
