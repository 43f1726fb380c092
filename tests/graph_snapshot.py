"""The steps of the streaming job as Dataflow sees them. `python -m tests.graph_snapshot` writes them anew.

An update of a running job matches steps by these names and needs the same coders between them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import SetupOptions
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from apache_beam.runners.pipeline_context import PipelineContext

SNAPSHOT = Path(__file__).parent / "samples" / "user_signin_graph.txt"
DRY_RUN = [
    "--runner=DataflowRunner",
    "--project=my-project",
    "--temp_location=gs://my-bucket/temp",
    "--staging_location=gs://my-bucket/staging",
    "--dry_run=true",
]


class Submission:
    """What a dry run made: the graph as it would go to Dataflow."""

    def __init__(self, proto: Any, beam_plugins: list[str]) -> None:
        self.proto = proto
        self.beam_plugins = beam_plugins  # what each worker imports when it starts

    def names(self) -> list[str]:
        transforms = self.proto.components.transforms.values()
        return sorted(t.unique_name for t in transforms if not t.unique_name.startswith("ref_"))

    def lines(self) -> list[str]:
        """A line for each step: its name, and the coder of each of its outputs."""
        components = self.proto.components
        coders = PipelineContext(components).coders
        lines = []
        for transform in components.transforms.values():
            outputs = []
            for tag, collection in sorted(transform.outputs.items()):
                coder = coders.get_by_id(components.pcollections[collection].coder_id)
                outputs.append(f"{tag.replace('None', 'main')}: {coder}")
            if not transform.unique_name.startswith("ref_"):
                lines.append(f"{transform.unique_name} | {', '.join(outputs)}")
        return sorted(lines)


def dry_run(run: Any, *arguments: str) -> Submission:
    """Runs a pipeline's `run` up to where it would be submitted; nothing leaves this machine."""
    made: list[Submission] = []

    class RememberingRunner(DataflowRunner):
        def run_pipeline(self, pipeline: Any, options: Any, **named: Any) -> Any:
            try:
                return super().run_pipeline(pipeline, options, **named)
            finally:
                made.append(Submission(self.proto_pipeline, options.view_as(SetupOptions).beam_plugins))

    given, beam.pipeline.create_runner = beam.pipeline.create_runner, lambda _: RememberingRunner()
    try:
        assert run([*DRY_RUN, *arguments]) == 0
    finally:
        beam.pipeline.create_runner = given
    (submission,) = made
    return submission


if __name__ == "__main__":
    from pipeline.user_signin import run

    SNAPSHOT.write_text("\n".join(dry_run(run).lines()) + "\n")
