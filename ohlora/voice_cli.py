"""`ohlora voice test`: the whole test of a voice, with a report to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ohlora.artifacts import MANIFEST, read_manifest
from ohlora.config import Config, ConfigError
from ohlora.errors import UserError

if TYPE_CHECKING:
    from ohlora.registry import Registry

voice_app = typer.Typer(help="The voice: what she says and how she is tested.", no_args_is_help=True)


class VoiceTestError(UserError, RuntimeError):
    """The test cannot run; the message says what is missing."""


@voice_app.command("test", epilog="Example: ohlora voice test artifacts/voice --out voice-test")
def voice_test(
    model: Annotated[Path | None, typer.Argument(help="Folder of a voice; default the champion.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write the report into.")] = Path("voice-test"),
    quick: Annotated[bool, typer.Option(help="As little as the gate asks.")] = False,
    base: Annotated[bool, typer.Option(help="Test the untuned base beside it; as slow again.")] = False,
    champion: Annotated[bool, typer.Option(help="Test the champion beside it.")] = True,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Change a setting (repeatable).")
    ] = None,
) -> None:
    """Facts, refusals, memory, form, expression and speed of a voice, with 95 % intervals."""
    from ohlora.cli import console, explained, settings

    with explained():
        if out.is_file():
            raise ConfigError(f"--out {out} is a file; name a folder")
        config, root = settings(None, overrides)
        console.print(_test(config, root, model, out, quick, base, champion), markup=False)


def _test(
    config: Config, root: Path, model: Path | None, out: Path, quick: bool, base: bool, champion: bool
) -> str:
    import torch
    from tqdm.auto import tqdm

    from ohlora.evaluation.voice import examine
    from ohlora.evaluation.voice_report import MARKDOWN, write
    from ohlora.evaluation.voice_test import Plan
    from ohlora.llm.engine import Voice
    from ohlora.llm.weights import load_network, load_tokenizer, pick_device
    from ohlora.pipeline import STAGES
    from ohlora.registry import Registry

    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    inputs = {"dialogues": root / "artifacts/dialogues", "probes": root / config.voice_test.probes}
    if not inputs["dialogues"].is_dir():
        raise VoiceTestError(
            f"there are no dialogues in {inputs['dialogues']}; make them with: ohlora run --target dialogues"
        )
    if config.examples.shown:
        inputs["examples"] = root / STAGES["examples"].output
        if not inputs["examples"].is_dir():
            raise VoiceTestError("there are no examples; make them with: ohlora run --target examples")
    registry = Registry(config, root)
    voices: dict[str, tuple[Path, Path | None]] = {}  # name -> base, adapter
    if model is not None:
        voices[str(model)] = (_base(root, registry, model), model)
    reigning = registry.find("voice", "champion") if model is None or champion else None
    if reigning is not None:
        folder = registry.fetch("voice", reigning)
        if model is None or read_manifest(model).digest != read_manifest(folder).digest:
            voices[f"champion v{reigning.version}"] = (_base(root, registry, folder), folder)
    if not voices:
        raise VoiceTestError(
            "there is no champion yet; name a folder, e.g. ohlora voice test artifacts/voice"
        )
    if base:
        voices["untuned base"] = (next(iter(voices.values()))[0], None)

    def progress(items: Sequence[Any], description: str) -> Iterator[Any]:
        yield from tqdm(items, desc=description, mininterval=2.0, dynamic_ncols=True)

    plan, results, device = Plan.of(config.voice_test, quick), [], config.runtime.device
    for name, (under, adapter) in voices.items():
        if adapter is None:
            network: Any = load_network(under, torch.float32)
            voice = Voice(network.to(pick_device(device)), load_tokenizer(under), config.generation.engine)
        else:
            voice = Voice.load_pair(under, adapter, device, engine=config.generation.engine)
        results.append(examine(name, voice, inputs, config, plan, progress=progress))
        del voice
    write(results, out)
    page = (out / MARKDOWN).read_text(encoding="utf-8")
    return f"{page.split('## Facts by')[0].rstrip()}\n\nwrote {out / MARKDOWN} with tables and a plot"


def _base(root: Path, registry: Registry, adapter: Path) -> Path:
    """The base of an adapter: the tree's, or one that the registry keeps.

    Raises:
        VoiceTestError: it is at neither place.
    """
    here = root / "artifacts/base_llm"
    wanted = read_manifest(adapter).base.get("sha256", "")
    if (here / MANIFEST).is_file() and read_manifest(here).digest == wanted:
        return here
    kept = registry.base(wanted) if wanted else None
    if kept is None:
        raise VoiceTestError(
            f"{adapter} needs the base model {wanted[:12]}…, which is not here; "
            "make it with: ohlora run --target base_llm"
        )
    return kept
