"""`ohlora`: every stage and every user action as one command."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ohlora.config import Config, ConfigError, dump_config, find_root, load_config, state_dir
from ohlora.corpus_cli import corpus_app
from ohlora.errors import UserError
from ohlora.express_cli import express
from ohlora.face_test_cli import face_test
from ohlora.gan_cli import gan_app
from ohlora.label_cli import import_teacher, label
from ohlora.persona_cli import persona_app
from ohlora.render_cli import EXAMPLES as RENDER_EXAMPLES
from ohlora.render_cli import render
from ohlora.reply_cli import reply
from ohlora.voice_cli import voice_app
from ohlora.voice_select_cli import voice_select

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

app = typer.Typer(
    name="ohlora",
    help="Build, improve and serve a virtual human.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)
registry_app = typer.Typer(help="Registered models: versions, champions, rollback.", no_args_is_help=True)
bento_app = typer.Typer(help="The packaged product.", no_args_is_help=True)
app.add_typer(corpus_app, name="corpus")
app.add_typer(gan_app, name="gan")
gan_app.command("test", epilog="Example: ohlora gan test --latents 50 --out face-test")(face_test)
app.add_typer(voice_app, name="voice")
voice_app.command("select", epilog="Example: ohlora voice select --only rank-16 --only rank-32")(voice_select)
app.add_typer(persona_app, name="persona")
app.add_typer(registry_app, name="registry")
app.add_typer(bento_app, name="bento")
app.command(epilog="Example: ohlora label photos --out scores.csv --masks masks")(label)
app.command("import-teacher", epilog="Example: ohlora import-teacher model.pt teacher")(import_teacher)
app.command(epilog=RENDER_EXAMPLES)(render)
app.command(epilog="Example: ohlora reply --prompts prompts.csv --samples 4 --out replies.csv")(reply)
app.command(epilog="Example: ohlora express --replies replies.csv --out expressions.csv")(express)

Profile = Annotated[str | None, typer.Option("--profile", "-p", help="Profile, e.g. smoke or gpu.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="Change a setting: --set voice.epochs=2 (repeatable).")
]
KINDS = ("labeler", "face", "voice", "memory")


@contextmanager
def explained() -> Iterator[None]:
    """Turn the errors that a person can act on into one clear line and exit code 1."""
    try:
        yield
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; nothing is lost, the same command goes on where it stopped", code=130)


def fail(message: str, code: int = 1) -> None:
    """Print an error and leave."""
    errors.print(f"[bold red]error:[/] {_escape(message)}")
    raise typer.Exit(code)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


def settings(profile: str | None = None, overrides: list[str] | None = None) -> tuple[Config, Path]:
    """The effective configuration and the root of the work tree."""
    root = find_root()
    return load_config(root, profile, overrides or []), root


@app.command(epilog="Example: ohlora stage voice")
def stage(
    name: Annotated[str, typer.Argument(help="Name of a stage in dvc.yaml, e.g. face.")],
    profile: Profile = None,
    overrides: Overrides = None,
) -> None:
    """Run one stage here and now, whether or not its inputs changed (`dvc repro` calls this)."""
    from ohlora.pipeline import STAGES, execute, workspace

    with explained():
        if name not in STAGES:
            raise ConfigError(f"unknown stage {name!r}; there are: {', '.join(STAGES)}")
        config, root = settings(profile, overrides)
        report = execute(name, workspace(config, root), config)
        for note in report.notes:
            console.print(_escape(note))


@app.command(epilog="Example: ohlora run --profile smoke")
def run(
    profile: Profile = None,
    overrides: Overrides = None,
    force: Annotated[
        list[str] | None, typer.Option("--force", "-f", help="Stage to run although nothing changed.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", help="Only this stage and what it needs.")
    ] = None,
) -> None:
    """Run the pipeline without any server; what is unchanged is skipped."""
    from ohlora.pipeline import STAGES, run_pipeline

    with explained():
        for name in [*(force or []), *(target or [])]:
            if name not in STAGES:
                raise ConfigError(f"unknown stage {name!r}; there are: {', '.join(STAGES)}")
        config, root = settings(profile, overrides)
        started = time.monotonic()
        run_pipeline(config, root, targets=target or None, force=tuple(force or ()))
        console.print(f"done in {time.monotonic() - started:.0f} s")


@app.command("config", epilog="Example: ohlora config --profile gpu --set voice.epochs=3")
def show_config(profile: Profile = None, overrides: Overrides = None) -> None:
    """Print the effective settings."""
    with explained():
        typer.echo(dump_config(settings(profile, overrides)[0]), nl=False)


@app.command(epilog="Example: ohlora chat --show-face face.png")
def chat(
    session: Annotated[str, typer.Option(help="Whose memories: letters, digits, - and _.")] = "terminal",
    show_face: Annotated[Path | None, typer.Option(help="Write her face after each turn here.")] = None,
    overrides: Overrides = None,
) -> None:
    """Talk with her in the terminal (Ctrl+D leaves)."""
    from PIL import Image

    from ohlora.chat import Companion, MessageError
    from ohlora.package import current_product

    with explained():
        config, root = settings(None, overrides)
        database = config.serving.database or f"sqlite:///{state_dir(config, root).resolve() / 'chat.db'}"
        companion = Companion.load(current_product(config, root), database, config.runtime.device)
        console.print(f"오로라: {_escape(companion.greeting)}")
        while True:
            try:
                text = input("나: ")
            except EOFError:
                console.print()
                return
            try:
                turn = companion.turn(session, text)
            except MessageError as error:
                errors.print(_escape(str(error)))
                continue
            console.print(f"오로라: {_escape(turn.text)}  [dim]({turn.expression_name})[/]")
            for memory in turn.memories_written:
                console.print(f"  [dim]기억했어: {_escape(memory)}[/]")
            if show_face:
                Image.fromarray(turn.image).save(show_face)


def _kind(name: str) -> str:
    if name not in KINDS:
        raise ConfigError(f"unknown model {name!r}; there are: {', '.join(KINDS)}")
    return name


@registry_app.command("list", epilog="Example: ohlora registry list")
def registry_list() -> None:
    """All versions with their aliases and verdicts."""
    from ohlora.registry import Registry

    with explained():
        config, root = settings()
        registry = Registry(config, root)
        table = Table("model", "version", "aliases", "verdict", "profile", "created")
        for kind in KINDS:
            for version in registry.versions(kind):
                table.add_row(
                    kind,
                    str(version.version),
                    ", ".join(version.aliases),
                    version.tags.get("verdict", "-"),
                    version.tags.get("profile", "-"),
                    time.strftime("%Y-%m-%d %H:%M", time.localtime(version.created)),
                )
        console.print(table)


@registry_app.command("show", epilog="Example: ohlora registry show voice champion")
def registry_show(
    model: Annotated[str, typer.Argument(help=", ".join(KINDS))],
    version: Annotated[str, typer.Argument(help="A version number or an alias.")] = "champion",
) -> None:
    """One version: lineage, verdict, scores and the hashes of its files."""
    from ohlora.artifacts import read_manifest
    from ohlora.registry import Registry

    with explained():
        config, root = settings()
        registry = Registry(config, root)
        found = registry.version(_kind(model), version)
        manifest = read_manifest(registry.fetch(model, version))
        body: dict[str, Any] = {
            "model": model,
            "version": found.version,
            "aliases": found.aliases,
            "tags": found.tags,
            "files": manifest.files,
            "base": manifest.base,
            "settings": manifest.settings,
            "provenance": manifest.provenance,
        }
        typer.echo(json.dumps(body, indent=2, ensure_ascii=False))


@registry_app.command("promote", epilog="Example: ohlora registry promote voice 3")
def registry_promote(
    model: Annotated[str, typer.Argument(help=", ".join(KINDS))],
    version: Annotated[str, typer.Argument(help="The version that shall become champion.")],
) -> None:
    """Send a version through the gate; it becomes champion only if it passes."""
    from ohlora.evaluation.gate import Gate

    with explained():
        config, root = settings()
        verdict = Gate(config, root).promote(_kind(model), version)
        console.print(_escape(str(verdict)))
        if not verdict.passed:
            raise typer.Exit(1)


@registry_app.command("rollback", epilog="Example: ohlora registry rollback voice")
def registry_rollback(model: Annotated[str, typer.Argument(help=", ".join(KINDS))]) -> None:
    """Make the previous champion the champion again (then: ohlora bento build)."""
    from ohlora.evaluation.gate import Gate

    with explained():
        config, root = settings()
        console.print(_escape(str(Gate(config, root).rollback(_kind(model)))))


@bento_app.command("build", epilog="Example: ohlora bento build")
def bento_build() -> None:
    """Pack the champions into a bento that needs no registry, DVC or network."""
    from ohlora.package import assemble_current, build_bento

    with explained():
        config, root = settings()
        product = assemble_current(config, root)
        bento = build_bento(product, config, root)
        console.print(f"{bento['tag']} ({bento['size_mb']} MB): serve it with: ohlora bento serve")


@bento_app.command("serve", epilog="Example: ohlora bento serve --set serving.port=3001")
def bento_serve(
    tag: Annotated[str | None, typer.Argument(help="A bento's tag or folder; default the newest.")] = None,
    overrides: Overrides = None,
) -> None:
    """Serve a bento in the foreground (Ctrl+C stops it)."""
    from ohlora.services import ServiceError, chat_service, newest_bento, port_is_free

    with explained():
        config, root = settings(None, overrides)
        tag = tag or newest_bento(state_dir(config, root))
        if tag is None:
            raise ServiceError("there is no bento yet; make one with: ohlora bento build")
        if Path(tag).is_dir():
            tag = str(Path(tag).resolve())
        if not port_is_free(config.serving.port):
            raise ServiceError(
                f"port {config.serving.port} is taken; choose another: --set serving.port=3001"
            )
        service = chat_service(config, root, tag)
        check_binding(config)
        console.print(f"{tag} at {service.url}")
        os.chdir(service.cwd or root)
        os.execvpe(service.command[0], service.command, dict(service.environment or {}))


def check_binding(config: Config) -> None:
    """Refuse to listen beyond loopback without a token."""
    if config.serving.host not in ("127.0.0.1", "::1", "localhost") and not config.serving.token:
        raise ConfigError(
            f"serving.host {config.serving.host} is reachable by others: set serving.token, or use 127.0.0.1"
        )


@app.command(epilog="Example: ohlora up")
def up(overrides: Overrides = None) -> None:
    """Run the pipeline, build the bento, start Prefect, MLflow and the chat page."""
    from ohlora.launch import bring_up

    with explained():
        config, root = settings(None, overrides)
        check_binding(config)
        bring_up(config, root, console)


@app.command(epilog="Example: ohlora down")
def down() -> None:
    """Stop everything that `ohlora up` started."""
    from ohlora.launch import bring_down

    with explained():
        config, root = settings()
        for name in bring_down(config, root):
            console.print(f"stopped {name}")
        console.print("all is down; `make up` starts again where this left off")


@app.command(epilog="Example: ohlora status")
def status() -> None:
    """What runs, and where."""
    from ohlora.services import describe

    with explained():
        config, root = settings()
        rows = describe(state_dir(config, root))
        if not rows:
            console.print("nothing was started; start with: make up")
            return
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*row.values())
        console.print(table)
        if any(row["state"] != "running" for row in rows):
            raise typer.Exit(1)


@app.command(epilog="Example: ohlora doctor")
def doctor(overrides: Overrides = None) -> None:
    """Check this machine and say what is missing."""
    from ohlora.doctor import examine

    with explained():
        config, root = settings(None, overrides)
        table = Table("check", "result", "what to do")
        problems = 0
        for finding in examine(config, root):
            problems += finding.level == "error"
            color = {"ok": "green", "note": "yellow", "error": "red"}[finding.level]
            table.add_row(finding.check, f"[{color}]{_escape(finding.result)}[/]", _escape(finding.advice))
        console.print(table)
        if problems:
            raise typer.Exit(1)


def main() -> None:
    """Entry point that keeps Korean readable on a terminal with another encoding."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    app()


if __name__ == "__main__":
    main()
