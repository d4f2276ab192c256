"""`ohlora corpus`: Oh-LoRA in any expression, contact sheets, photos and samples as portraits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm.auto import tqdm

from ohlora.config import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ohlora.corpus.generated import Sampler
    from ohlora.corpus.parameters import PortraitParameters
    from ohlora.gan import AnyFace

corpus_app = typer.Typer(
    help="Portraits: draw Oh-LoRA, look at a corpus, take photos or samples in.", no_args_is_help=True
)
Tile = Annotated[int, typer.Option(min=32, max=512, help="Pixels per side of a portrait in a sheet.")]


@corpus_app.command(epilog="Example: ohlora corpus persona --eyes 0.2 --mouth 0.6 --pose 15 --out her.png")
def persona(
    out: Annotated[Path, typer.Option(help="PNG, JPEG or WebP file to write.")] = Path("persona.png"),
    eyes: Annotated[float, typer.Option(min=0, max=1, help="Eye openness.")] = 0.8,
    mouth: Annotated[float, typer.Option(min=0, max=1, help="Mouth openness.")] = 0.0,
    pose: Annotated[
        float, typer.Option(min=-40, max=40, help="Yaw in degrees, + to the image's right.")
    ] = 0.0,
    roll: Annotated[
        float, typer.Option(min=-15, max=15, help="Tilt in degrees, + to the image's right.")
    ] = 0,
    pitch: Annotated[float, typer.Option(min=-15, max=15, help="Nod in degrees, + looks up.")] = 0.0,
    smile: Annotated[float, typer.Option(min=0, max=1, help="Smile.")] = 0.4,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Draw a row of portraits in which this attribute changes (repeatable)."),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, max=25, help="Portraits in a row.")] = 7,
    resolution: Annotated[int, typer.Option(min=16, max=2048, help="Pixels per side of a portrait.")] = 256,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Paths per pixel; default corpus.samples_per_pixel.")
    ] = None,
    look: Annotated[
        Path | None, typer.Option(help="Another look file; default corpus.look of the settings.")
    ] = None,
) -> None:
    """Render Oh-LoRA herself, from her look file, in any combination of attributes."""
    from PIL import Image

    from ohlora.cli import console, explained, settings
    from ohlora.corpus.counterfactuals import swept
    from ohlora.corpus.parameters import PortraitParameters, persona_parameters
    from ohlora.corpus.renderer import render_portrait
    from ohlora.corpus.summary import tiled

    with explained():
        config, root = settings()
        _check_picture(out)
        try:
            hers = persona_parameters(look or root / config.corpus.look)
            moment = {"eyes": eyes, "mouth": mouth, "yaw": pose, "roll": roll, "pitch": pitch, "smile": smile}
            base = PortraitParameters.model_validate({"look": hers.look, **moment})
            rows = [swept(base, name, steps) for name in sweep or []] or [[base]]
        except ValueError as error:
            raise ConfigError(str(error)) from error
        wanted: list[PortraitParameters] = [parameters for row in rows for parameters in row]
        paths = samples or config.corpus.samples_per_pixel
        bar = tqdm(wanted, desc="rendering", disable=len(wanted) == 1)
        images = [render_portrait(parameters, resolution, paths)[0] for parameters in bar]
        out.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(images[0]) if not sweep else tiled(images, steps, resolution)
        picture.save(out)
        console.print(f"wrote {out}")


@corpus_app.command(epilog="Example: ohlora corpus sheet --seed 7 --out sheet.png")
def sheet(
    out: Annotated[Path, typer.Option(help="PNG, JPEG or WebP file to write.")] = Path("sheet.png"),
    folder: Annotated[
        Path | None, typer.Option(help="Folder of portraits, e.g. artifacts/corpus; without it new people.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=400, help="Portraits.")] = 36,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw, or of the first new person.")] = 20,
    tile: Tile = 160,
    resolution: Annotated[int, typer.Option(min=16, max=1024, help="Pixels per side of a render.")] = 256,
    processes: Annotated[int, typer.Option(min=0, help="Worker processes; 0 takes all cores.")] = 0,
) -> None:
    """A contact sheet of unpicked portraits: of a folder, or of people who are rendered for it."""
    import os

    import pyarrow as pa

    from ohlora.cli import console, explained, settings
    from ohlora.config import state_dir
    from ohlora.corpus.portraits import CorpusError, read_table
    from ohlora.corpus.rendering import Settings, person_jobs, render_cached
    from ohlora.corpus.stage import RENDER_CACHE
    from ohlora.corpus.summary import contact_sheet

    with explained():
        config, root = settings()
        _check_picture(out)
        if folder is not None:
            table = read_table(folder)
            if not table.num_rows:
                raise CorpusError(f"{folder} holds no portraits")
        else:
            size = Settings(resolution, config.corpus.samples_per_pixel, config.corpus.test_fraction)
            jobs = [person_jobs(seed + k, k + 1, "sheet", moments=1)[0] for k in range(count)]
            workers = processes or len(os.sched_getaffinity(0))
            results = render_cached(jobs, size, state_dir(config, root) / RENDER_CACHE, workers)
            drawn = {number: rows for rows, number in tqdm(results, desc="rendering", total=count)}
            table = pa.concat_tables([drawn[number] for number in sorted(drawn)])
        contact_sheet(table, out, count, tile, seed)
        console.print(f"wrote {out}")


@corpus_app.command(epilog="Example: ohlora corpus photos ~/pictures/people --out data/photos")
def photos(
    folder: Annotated[Path, typer.Argument(help="Photos; subfolders are searched as well.")],
    out: Annotated[Path, typer.Option(help="Folder of portraits to write, with report.csv in it.")],
    largest: Annotated[
        bool, typer.Option("--largest", help="Take the largest of several faces instead of none.")
    ] = False,
    resolution: Annotated[
        int | None, typer.Option(min=32, max=1024, help="Pixels per side; default corpus.resolution.")
    ] = None,
) -> None:
    """Make portraits of a folder of photos: find the face, turn it upright, frame it like our renders."""
    from collections import Counter

    from ohlora.cli import console, explained, settings
    from ohlora.corpus.faces import MtcnnDetector
    from ohlora.corpus.image_files import image_paths
    from ohlora.corpus.photos import collect, framing_of, write_photos
    from ohlora.corpus.portraits import read_table
    from ohlora.corpus.summary import contact_sheet

    with explained():
        config, root = settings()
        _check_folder(out, folder)
        paths = list(image_paths(folder))
        detector = MtcnnDetector()
        framing = framing_of(read_table(root / config.corpus.sample), detector)
        size = resolution or config.corpus.resolution
        bar = tqdm(paths, desc="photos")
        table, outcomes = collect(folder, bar, detector, framing, size, config.corpus.test_fraction, largest)
        for status, number in sorted(Counter(outcome.status for outcome in outcomes).items()):
            console.print(f"{number:6d} {status}")
        write_photos(out, table, outcomes, {"resolution": size, "largest": largest})
        contact_sheet(table, out / "sheet.png")
        console.print(f"wrote {table.num_rows} portraits and report.csv to {out}")


@corpus_app.command(
    "sample-generator", epilog="Example: ohlora corpus sample-generator --count 100 --out data/sampled"
)
def sample_generator(
    out: Annotated[Path, typer.Option(help="Folder of portraits to write.")],
    model: Annotated[Path | None, typer.Option(help="Folder of a face model; default the champion.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Portraits.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="First seed; each portrait has the next one.")] = 0,
    resolution: Annotated[
        int | None, typer.Option(min=32, max=1024, help="Pixels per side; default corpus.resolution.")
    ] = None,
) -> None:
    """Make portraits by sampling people from a generator, each with a random expression."""
    from ohlora.cli import console, explained, settings
    from ohlora.corpus.generated import sample_portraits
    from ohlora.corpus.portraits import write
    from ohlora.corpus.summary import contact_sheet
    from ohlora.gan import load_face
    from ohlora.registry import Registry

    with explained():
        config, root = settings()
        _check_folder(out, model)
        weights = model or Registry(config, root).fetch("face", "champion")
        face = load_face(weights, config.runtime.device)
        digest = face.manifest.digest
        size = resolution or config.corpus.resolution
        bar = tqdm(range(seed, seed + count), desc="sampling")
        table = sample_portraits(face_sampler(face), bar, digest, size, config.corpus.test_fraction)
        source = {"generator": digest, "first_seed": seed, "count": count, "resolution": size}
        write(out, table, source)
        contact_sheet(table, out / "sheet.png")
        console.print(f"wrote {count} portraits to {out}")


def face_sampler(face: AnyFace) -> Sampler:
    """Pictures of a face model: the person of a seed, with an expression of the same seed."""
    import numpy as np

    from ohlora.attributes import Expression

    def sample(seed: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng([seed, 1])
        pose = float(rng.triangular(-30, 0, 30))
        mouth = max(0.0, float(rng.uniform(-0.4, 1)))
        return face.render(Expression(eyes=float(rng.uniform(0, 1)), mouth=mouth, pose=pose), seed=seed)

    return sample


def _check_picture(path: Path) -> None:
    from PIL import Image

    if path.suffix.lower() not in Image.registered_extensions():
        raise ConfigError(f"--out {path}: unknown picture format; use .png, .jpg or .webp")


def _check_folder(out: Path, source: Path | None) -> None:
    """Never write over something that is not a folder of portraits."""
    from ohlora.corpus.portraits import MANIFEST

    if out.is_file():
        raise ConfigError(f"--out {out} is a file; name a folder")
    if source is not None and out.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"--out {out} lies in the folder that is read; name another one")
    if (
        out.is_dir()
        and any(out.iterdir())
        and not ((out / MANIFEST).exists() or (out / "report.csv").exists())
    ):
        raise ConfigError(f"--out {out} holds other things; name a new or empty folder")
