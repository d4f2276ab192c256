"""`ohlora gan`: what a person does with generators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

gan_app = typer.Typer(help="Generators: take a StyleGAN checkpoint in.", no_args_is_help=True)


@gan_app.command(
    "import", epilog="Example: ohlora gan import stylegan_celeba_partial256.pth --out models/celeba"
)
def import_generator(
    checkpoint: Annotated[Path, typer.Argument(help="A StyleGAN checkpoint of GenForce, .pth.")],
    out: Annotated[Path, typer.Option(help="Folder to write; name it in variants.start.")],
    part: Annotated[
        str, typer.Option(help="generator_smooth (the averaged one), generator or discriminator.")
    ] = "generator_smooth",
    discriminator: Annotated[
        bool, typer.Option(help="Store the discriminator beside a generator, for fine-tuning.")
    ] = True,
) -> None:
    """Convert a StyleGAN checkpoint to a model folder; nothing in it is executed."""
    from ohlora.artifacts import MANIFEST
    from ohlora.cli import console, explained
    from ohlora.config import ConfigError
    from ohlora.gan.importing import Part, import_checkpoint

    with explained():
        if part not in get_args(Part):
            raise ConfigError(f"--part {part!r} is not allowed; there are: {', '.join(get_args(Part))}")
        if out.is_file():
            raise ConfigError(f"--out {out} is a file; name a folder")
        if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).exists():
            raise ConfigError(f"--out {out} holds other things; name a new or empty folder")
        manifest = import_checkpoint(checkpoint, out, part, discriminator)  # type: ignore[arg-type]
        shape = manifest.settings["network"]
        console.print(
            f"wrote {out}: {', '.join(manifest.files)} of {shape['resolution']} pixels, "
            f"digest {manifest.digest[:12]}"
        )
