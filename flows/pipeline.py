"""The whole pipeline, from portraits and dialogues to a bento: python -m flows.pipeline --profile smoke"""

from __future__ import annotations

import argparse
import sys

from prefect import flow

from flows.options import RunOptions
from flows.tasks import work_tree
from ohlora.errors import UserError


@flow(name="pipeline", persist_result=False)
def pipeline(options: RunOptions = RunOptions()) -> None:
    """Make every model that is out of date, judge it, and pack the champions."""
    with work_tree(options) as run:
        corpus = run("corpus")
        parser = run("parser", after=[corpus])
        filters = run("filters", after=[corpus])
        properties = run("properties", after=[corpus])
        labels = run("labels", after=[corpus, parser, filters, properties])
        judge = run("judge", after=[corpus])
        face = run("face", after=[corpus, labels, properties])
        variants = run("variants", after=[corpus, labels, properties, filters])
        face_test = run("face_test", after=[corpus, parser, filters, judge, face, variants])

        base_encoder = run("base_encoder")
        retriever = run("retriever", after=[base_encoder])
        examples = run("examples", after=[base_encoder, retriever])

        base_llm = run("base_llm")
        dialogues = run("dialogues", after=[examples])
        voice = run("voice", after=[base_llm, dialogues])
        preference = run("preference", after=[base_llm, dialogues, voice])

        memory = run("memory", after=[base_encoder])

        run("package", after=[parser, judge, face_test, preference, memory])


def main(arguments: list[str] | None = None) -> int:
    """Run the flow in this process; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=__doc__)
    parser.add_argument("--profile", default="default", help="profile, e.g. smoke or gpu")
    parser.add_argument("--force", action="append", default=[], metavar="STAGE", help="(repeatable)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-promote", dest="promote", action="store_false", help="judge only")
    chosen = parser.parse_args(arguments)
    try:
        options = RunOptions(**vars(chosen))
        pipeline(options)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
