"""Segments as Ray tasks: one each, as many at once as there are CPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ray

from zscmr_ray.errors import DataError, ZscmrError
from zscmr_ray.progress import Progress
from zscmr_ray.stages.index.record import SegmentRecord
from zscmr_ray.stages.index.segment import SegmentJob, build_segment


def build_on_ray(jobs: Sequence[SegmentJob]) -> Iterator[tuple[SegmentJob, SegmentRecord | ZscmrError]]:
    """Build every segment on the connected Ray and yield each as it ends; an error of ours comes back as a value.

    Raises DataError naming the segment whose task died.
    """
    waiting = {_task.remote(job): job for job in jobs}
    with Progress("index", total=sum(job.num_rows for job in jobs), unit="rows") as progress:
        while waiting:
            (ended,), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(ended)
            try:
                outcome = ray.get(ended)
            except ray.exceptions.RayError as error:
                raise DataError(
                    "a segment could not be built",
                    got=f"segment {job.number}: {str(error).splitlines()[-1]}",
                    remedy="run the same command again: finished segments stay; a smaller index.shard_rows needs less memory",
                ) from error
            progress.advance(job.num_rows, note=f"segment {job.number}")
            yield job, outcome


@ray.remote(num_cpus=1)
def _task(job: SegmentJob) -> SegmentRecord | ZscmrError:
    try:
        return build_segment(job, quiet=True)
    except ZscmrError as error:
        return error
