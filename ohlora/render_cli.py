"""`ohlora render`: one portrait, a grid, a sweep of one attribute, or the way between two expressions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ohlora.attributes import CONDITION_NAMES, Expression
from ohlora.config import Config, ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ohlora.gan import AnyFace

EXAMPLES = "\n\n".join(
    f"Example: ohlora render {arguments}"
    for arguments in (
        "--eyes 0.9 --mouth 0.4 --pose 15 --out face.png",
        "--grid --out grid.png",
        "--grid --seed 1 --seed 2 --seed 3 --out people.png",
        "--sweep mouth --steps 9 --out strip.png",
        "--sweep hair_color --steps 40 --back --out hair.gif",
        "--from joy --to sad --frames 40 --fps 25 --out joy-sad.mp4",
        "--from 0.7,0.1,-5 --to surprise --no-blink --out frames/",
    )
)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
BATCH = 8
MODES = {"image": "one picture", "grid": "--grid", "sweep": "--sweep", "motion": "--from and --to"}
# Which options each mode understands, besides --out and --model
UNDERSTOOD = {
    "image": {"--eyes", "--mouth", "--pose", "--seed"},
    "grid": {"--pose", "--seed", "--tile"},
    "sweep": {"--eyes", "--mouth", "--pose", "--seed", "--tile", "--steps", "--fps", "--back"},
    "motion": {"--seed", "--frames", "--fps", "--blink/--no-blink", "--blink-seed", "--back"},
}
GRID_EYES, GRID_MOUTH = (0.0, 0.4, 0.8), (0.0, 0.4, 0.8)
STRIP_STEPS, ANIMATION_STEPS = 7, 48
Panel = "What to draw"


def render(
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write: .png, .jpg or .webp for a picture; .gif, .webp, .mp4 or a folder for what"
            " moves. Default face.png or face.gif.",
        ),
    ] = None,
    eyes: Annotated[
        float | None, typer.Option(min=0, max=1, help="Eye openness.", show_default="0.75")
    ] = None,
    mouth: Annotated[
        float | None, typer.Option(min=0, max=1, help="Mouth openness.", show_default="0")
    ] = None,
    pose: Annotated[
        float | None,
        typer.Option(min=-35, max=35, help="Yaw in degrees, + to the image's right.", show_default="0"),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, help="A sampled person; without it Oh-LoRA herself. Repeatable with --grid."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a face model; default the champion.")] = None,
    grid: Annotated[
        bool,
        typer.Option(
            "--grid", help="Eyes and mouth by pose, or by person with several --seed.", rich_help_panel=Panel
        ),
    ] = False,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="ATTRIBUTE",
            help=f"One attribute through its range: {', '.join(CONDITION_NAMES)}.",
            rich_help_panel=Panel,
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="EXPRESSION",
            help="First expression: a name of the card (joy, sad, …), or eyes,mouth,pose.",
            rich_help_panel=Panel,
        ),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option("--to", metavar="EXPRESSION", help="Last expression.", rich_help_panel=Panel),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(min=32, max=256, help="Pixels per portrait of a grid or strip.", show_default="128"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=2, max=1000, help="Portraits of a sweep.", show_default="7, or 48 if it moves"),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=2, max=1000, help="From --from to --to.", show_default="40")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=1, max=60, help="Frames per second.", show_default="25")
    ] = None,
    blink: Annotated[
        bool | None,
        typer.Option("--blink/--no-blink", help="Blink between --from and --to.", show_default="blink"),
    ] = None,
    blink_seed: Annotated[int | None, typer.Option(min=0, help="When she blinks.", show_default="0")] = None,
    back: Annotated[
        bool, typer.Option("--back", help="And back again, so that an endless animation has no jump.")
    ] = False,
) -> None:
    """Draw a face: one picture, a grid, a sweep, or the frames between two expressions.

    The same arguments give the same file. Values out of range are refused: eyes and mouth 0 to 1, pose -35
    to 35.
    """
    from ohlora.cli import console, explained, settings
    from ohlora.gan import load_face
    from ohlora.registry import Registry

    with explained():
        given: dict[str, Any] = {
            "--eyes": eyes,
            "--mouth": mouth,
            "--pose": pose,
            "--seed": seed or None,
            "--tile": tile,
            "--steps": steps,
            "--frames": frames,
            "--fps": fps,
            "--blink/--no-blink": blink,
            "--blink-seed": blink_seed,
            "--back": back or None,
        }
        given = {option: value for option, value in given.items() if value is not None}
        mode = _mode(grid, sweep, start, end)
        target = out or Path("face.gif" if mode == "motion" else "face.png")
        moves = _moves(mode, target, given)
        _check_options(mode, sweep, moves, given)
        base = _expression(given.get("--eyes"), given.get("--mouth"), given.get("--pose"))
        config, root = settings()
        ends = [_named(name, root, config) for name in (start, end) if name is not None]

        face = load_face(model or Registry(config, root).fetch("face", "champion"), config.runtime.device)
        rate = given.get("--fps", 25.0)
        size = given.get("--tile", 128)
        latent = face.sample_latent(seed[0]) if seed else None
        if mode == "grid":
            _grid(face, seed or [], base.pose, size, target)
        elif mode == "motion":
            path = _path(ends[0], ends[1], given.get("--frames", 40), rate, given)
            _animate(face, latent, [face.conditions(moment, latent) for moment in path], target, rate)
        elif sweep is not None:
            from ohlora.gan import motion

            count = given.get("--steps", ANIMATION_STEPS if moves else STRIP_STEPS)
            rows = motion.sweep(sweep, count, face.conditions(base, latent), face.people.conditions)
            if moves:
                _animate(face, latent, [*rows, *(rows[1:-1].flip(0) if back else ())], target, rate)
            else:
                _strip(face, latent, rows, sweep, size, target)
        else:
            _save(_draw(face, latent, [face.conditions(base, latent)])[0], target)
        console.print(f"wrote {target}")


def _mode(grid: bool, sweep: str | None, start: str | None, end: str | None) -> str:
    asked = [
        mode
        for mode, present in (("grid", grid), ("sweep", sweep), ("motion", start or end))
        if present not in (None, False)
    ]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(MODES[mode] for mode in asked)} exclude each other; choose one")
    if "motion" in asked and (start is None or end is None):
        missing = "--from" if start is None else "--to"
        raise ConfigError(f"{missing} is missing; a movement needs both, e.g. --from joy --to sad")
    if sweep is not None and sweep not in CONDITION_NAMES:
        raise ConfigError(f"--sweep {sweep!r}: unknown attribute; there are: {', '.join(CONDITION_NAMES)}")
    return asked[0] if asked else "image"


def _moves(mode: str, out: Path, given: dict[str, Any]) -> bool:
    """Whether the result is an animation or a folder of frames, after checking that `out` fits the mode."""
    from ohlora.gan.motion import ANIMATIONS, FRAME_PATTERN, GIF_MAX_FPS

    suffix = out.suffix.lower()
    if not suffix or out.is_dir():
        if mode in ("image", "grid"):
            raise ConfigError(
                f"--out {out} is a folder; name a file for {MODES[mode]}, e.g. {out / 'face.png'}"
            )
        if suffix:
            raise ConfigError(f"--out {out} is a folder whose name ends like a file's; name another one")
        if out.is_file():
            raise ConfigError(
                f"--out {out} is a file; name a folder, or a file that ends in .gif, .webp or .mp4"
            )
        if out.is_dir() and not all(FRAME_PATTERN.fullmatch(path.name) for path in out.iterdir()):
            raise ConfigError(f"--out {out} holds other things than frames; name a new or empty folder")
        return True
    allowed = {"image": PICTURES, "grid": PICTURES, "sweep": (*PICTURES, *ANIMATIONS), "motion": ANIMATIONS}
    if suffix not in allowed[mode]:
        known = ", ".join(dict.fromkeys(allowed[mode]))
        folder = " or a folder" if mode in ("sweep", "motion") else ""
        raise ConfigError(f"--out {out}: {MODES[mode]} cannot be written as {suffix}; use {known}{folder}")
    if suffix == ".gif" and given.get("--fps", 0) > GIF_MAX_FPS:
        raise ConfigError(f"--fps {given['--fps']:g}: a GIF has at most {GIF_MAX_FPS}; use .webp or .mp4")
    return suffix in ANIMATIONS and mode in ("sweep", "motion")


def _check_options(mode: str, sweep: str | None, moves: bool, given: dict[str, Any]) -> None:
    """Refuse what would be silently ignored."""
    for option in given:
        if option not in UNDERSTOOD[mode]:
            homes = [MODES[other] for other, options in UNDERSTOOD.items() if option in options]
            raise ConfigError(
                f"{option} does not go with {MODES[mode]}; leave it out (it belongs to {', '.join(homes)})"
            )
    if f"--{sweep}" in given:
        raise ConfigError(f"--{sweep} is what --sweep {sweep} changes; leave one of them out")
    people = len(given.get("--seed", []))
    if people > 1 and mode != "grid":
        raise ConfigError(f"{MODES[mode]} draws one person; give one --seed, or add --grid")
    if mode == "grid" and people < 2 and "--pose" in given:
        raise ConfigError("--pose is what the columns of --grid change; leave it out, or give several --seed")
    if mode == "sweep":
        for option in ("--fps", "--back") if not moves else ("--tile",):
            if option in given:
                use = "name a .gif, .webp, .mp4 or folder" if not moves else "name a .png or .jpg"
                raise ConfigError(f"{option} does not fit this --out; leave it out, or {use}")
    if "--blink-seed" in given and given.get("--blink/--no-blink") is False:
        raise ConfigError("--blink-seed has no effect with --no-blink; leave one of them out")


def _expression(eyes: float | None, mouth: float | None, pose: float | None) -> Expression:
    """Defaults for what is not given; a message that names the range for what is out of it."""
    values = {"eyes": eyes, "mouth": mouth, "pose": pose}
    limits = {"eyes": (0, 1), "mouth": (0, 1), "pose": (-35, 35)}
    chosen = {name: value for name, value in values.items() if value is not None}
    for name, value in chosen.items():
        low, high = limits[name]
        if not low <= value <= high:
            raise ConfigError(f"{name} {value:g} is out of range; it goes from {low} to {high}")
    return Expression(**chosen)


def _named(name: str, root: Path, config: Config) -> Expression:
    """An expression by its name in the card, or as `eyes,mouth,pose`."""
    from ohlora.persona import CardError, load_card

    if "," in name:
        try:
            eyes, mouth, pose = (float(part) for part in name.split(","))
        except ValueError:
            raise ConfigError(f"{name!r} is no expression; write eyes,mouth,pose, e.g. 0.7,0.1,-5") from None
        return _expression(eyes, mouth, pose)
    try:
        card = load_card(root / config.persona.card)
    except CardError as error:
        raise ConfigError(str(error)) from error
    if name not in card.expressions:
        known = ", ".join(card.expressions)
        raise ConfigError(f"unknown expression {name!r}; there are: {known}; or write eyes,mouth,pose")
    return card.expressions[name].expression


def _path(
    start: Expression, end: Expression, frames: int, fps: float, given: dict[str, Any]
) -> list[Expression]:
    from ohlora.gan.motion import transition

    seed, blinking = given.get("--blink-seed", 0), given.get("--blink/--no-blink", True)
    path = transition(start, end, frames, fps, seed, blinking)
    if "--back" in given:
        path += transition(end, start, frames, fps, seed + 1, blinking)[1:-1]
    return path


def _draw(face: AnyFace, latent: Tensor | None, conditions: list[Tensor]) -> NDArray[np.uint8]:
    import numpy as np
    import torch
    from tqdm.auto import tqdm

    rows = torch.stack(conditions)
    z = (face.persona_latent if latent is None else latent).expand(len(rows), -1)
    starts = range(0, len(rows), BATCH)
    parts = []
    with tqdm(
        total=len(rows), desc="drawing", unit="frame", disable=None if len(starts) > 1 else True
    ) as bar:
        for first in starts:
            parts.append(face.images(z[first : first + BATCH], rows[first : first + BATCH], batch_size=BATCH))
            bar.update(len(parts[-1]))
    return np.concatenate(parts)


def _animate(face: AnyFace, latent: Tensor | None, conditions: list[Tensor], out: Path, fps: float) -> None:
    from ohlora.gan.motion import encode

    encode(_draw(face, latent, conditions), out, fps)


def _strip(face: AnyFace, latent: Tensor | None, rows: Tensor, name: str, size: int, out: Path) -> None:
    from ohlora.gan.pictures import grid

    values = rows[:, CONDITION_NAMES.index(name)].tolist()
    labels = [f"{value:.2f}" if max(map(abs, values)) <= 1 else f"{value:.0f}" for value in values]
    _write(grid([_draw(face, latent, list(rows))], size, [name], labels), out)


def _grid(face: AnyFace, people: list[int], pose: float, size: int, out: Path) -> None:
    """Rows of eyes and mouth; columns of people if there are several, else of pose."""
    import numpy as np

    from ohlora.gan.pictures import POSE_SWEEP, grid

    moments = [(eyes, mouth) for mouth in GRID_MOUTH for eyes in GRID_EYES]
    labels = [f"eyes {eyes:g}, mouth {mouth:g}" for eyes, mouth in moments]
    if len(people) > 1:
        expressions = [Expression(eyes=eyes, mouth=mouth, pose=pose) for eyes, mouth in moments]
        columns = [
            _draw(face, latent, [face.conditions(expression, latent) for expression in expressions])
            for latent in map(face.sample_latent, people)
        ]
        rows = list(np.stack(columns, axis=1))
        _write(grid(rows, size, labels, [f"seed {number}" for number in people]), out)
        return
    latent = face.sample_latent(people[0]) if people else None
    cells = [Expression(eyes=eyes, mouth=mouth, pose=yaw) for eyes, mouth in moments for yaw in POSE_SWEEP]
    images = _draw(face, latent, [face.conditions(cell, latent) for cell in cells])
    rows = list(images.reshape(len(moments), len(POSE_SWEEP), *images.shape[1:]))
    _write(grid(rows, size, labels, [f"pose {yaw:g}" for yaw in POSE_SWEEP]), out)


def _save(pixels: NDArray[np.uint8], out: Path) -> None:
    from PIL import Image

    _write(Image.fromarray(pixels), out)


def _write(picture: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
