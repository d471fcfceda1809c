"""The fit of what kernels cost on a target, as a worker's attempt runs it."""

import numpy as np

from predictor.errors import PredictorError
from predictor.kits import canary_items
from predictor.models.kernel_prices import KernelPrices
from predictor.onnx_kernels import read_kernels
from search_core.errors import SearchInterrupted
from service.db.database import take_turns
from service.jobs import repository as jobs
from service.jobs.context import AttemptContext
from service.measurements.readings import current, weigh
from service.measurements.repository import kit_items, kits_of, measurements_of_subjects
from service.predictions.repository import keep_prices


def fit_kernel_prices(context: AttemptContext, target_id: str) -> None:
    """Fit prices of kernels to everything that the kits of a target have measured.

    Raises:
        SearchInterrupted: the worker wants the job back.
    """
    with context.database.reading() as session:
        tasks = {
            item.subject: item.task_id
            for kit in kits_of(session, target_id)
            for item in kit_items(session, kit.id)
        }
        canaries = [item.subject for item in canary_items()]
        rows = measurements_of_subjects(session, target_id, [*tasks, *canaries])
    rows = current(rows, tasks)
    sha256_of = {row.subject: row.model_sha256 for row in rows if row.subject in tasks}
    measured_ms = {s: ms for s, ms in weigh(rows).measured_ms.items() if s in sha256_of}
    graphs = []
    try:
        for subject in measured_ms:
            if context.handed_back:
                raise SearchInterrupted("handed back while reading kernels")
            graphs.append(read_kernels(context.artifacts.get(sha256_of[subject])))
        is_network = [subject.startswith("network:") for subject in measured_ms]
        prices = KernelPrices().fit(graphs, np.array(list(measured_ms.values())), is_network)
    except PredictorError as error:
        with context.transaction() as (session, job):
            jobs.finish(session, job, "failed", str(error))
        return
    with context.transaction() as (session, job):
        take_turns(session, f"kernel prices of {target_id}")
        keep_prices(session, target_id, prices.to_document())
        jobs.finish(session, job, "succeeded")
