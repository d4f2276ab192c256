"""Parts of the pipeline as flows of their own: each makes one model, from its first stage on."""

from __future__ import annotations

from prefect import flow

from flows.options import RunOptions
from flows.tasks import work_tree


@flow(name="labeling", persist_result=False)
def labeling(options: RunOptions = RunOptions()) -> None:
    """Portraits -> face parsing -> labels."""
    with work_tree(options) as run:
        corpus = run("corpus")
        parser = run("parser", after=[corpus])
        filters = run("filters", after=[corpus])
        properties = run("properties", after=[corpus])
        run("labels", after=[corpus, parser, filters, properties])


@flow(name="face", persist_result=False)
def face(options: RunOptions = RunOptions()) -> None:
    """Portraits -> labels -> the generator, and the judge that it never sees."""
    with work_tree(options) as run:
        corpus = run("corpus")
        parser = run("parser", after=[corpus])
        filters = run("filters", after=[corpus])
        properties = run("properties", after=[corpus])
        labels = run("labels", after=[corpus, parser, filters, properties])
        face = run("face", after=[corpus, labels, properties])
        judge = run("judge", after=[corpus])
        variants = run("variants", after=[corpus, labels, properties, filters])
        run("face_test", after=[corpus, parser, filters, judge, face, variants])


@flow(name="voice", persist_result=False)
def voice(options: RunOptions = RunOptions()) -> None:
    """Base language model and dialogues -> the adapter she talks with."""
    with work_tree(options) as run:
        base_llm = run("base_llm")
        base_encoder = run("base_encoder")
        retriever = run("retriever", after=[base_encoder])
        examples = run("examples", after=[base_encoder, retriever])
        dialogues = run("dialogues", after=[examples])
        voice = run("voice", after=[base_llm, dialogues])
        run("preference", after=[base_llm, dialogues, voice])


@flow(name="memory", persist_result=False)
def memory(options: RunOptions = RunOptions()) -> None:
    """Base encoder and pairs -> the adapter she remembers with."""
    with work_tree(options) as run:
        base_encoder = run("base_encoder")
        run("memory", after=[base_encoder])


@flow(name="package", persist_result=False)
def package(options: RunOptions = RunOptions()) -> None:
    """Models as they are -> the gate -> the bento. Everything must have been made before."""
    with work_tree(options) as run:
        run("package")
