"""`ohlora reply`: a list of prompts through the path that serves people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ohlora.config import Config, ConfigError

if TYPE_CHECKING:
    from ohlora.chat import Companion
    from ohlora.chat.prompt_list import Answer, PromptRow


def reply(
    prompts: Annotated[
        Path, typer.Option(help="CSV with a column prompt (and memories), or text with one a line.")
    ],
    out: Annotated[Path, typer.Option(help="CSV to write; a part of it that is there is kept.")],
    samples: Annotated[int, typer.Option(min=1, max=10000, help="Replies to each prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampled replies.")] = 0,
    model: Annotated[Path | None, typer.Option(help="Product folder; default the one that serves.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Change a setting (repeatable).")
    ] = None,
) -> None:
    """Answer every prompt as a chat would, and write what she said, showed and how long it took.

    Each reply starts a chat of its own. An interrupted run goes on where it stopped.
    """
    from ohlora.cli import console, explained, settings

    with explained():
        from ohlora.chat.prompt_list import answer_all, read_prompts

        if out.is_dir():
            raise ConfigError(f"--out {out} is a folder; name a file, e.g. {out / 'replies.csv'}")
        rows = read_prompts(prompts)
        config, root = settings(None, overrides)
        companion = _companion(config, root, model)
        problems = answer_all(
            rows, samples, out, lambda row, number: served(companion, row, number), seed, _bar
        )
        total = len(rows) * samples
        console.print(f"{total - len(problems)} of {total} replies: {out}", markup=False)
        for problem in problems:
            console.print(f"not answered: {problem}", markup=False)
        if len(problems) == total:
            raise typer.Exit(1)


def served(companion: Companion, row: PromptRow, seed: int) -> Answer:
    """One turn of a chat that knows nothing but the memories of the row.

    Raises:
        UnanswerableError: the message or a memory cannot be taken.
        PromptListError: no turn at all fits the settings.
    """
    from ohlora.chat import MessageError
    from ohlora.chat.prompt_list import Answer, PromptListError, UnanswerableError
    from ohlora.llm.turn_mask import ConstraintError
    from ohlora.memory.store import MemoryFormatError

    session = f"reply-{seed}"
    try:
        for memory in row.memories:
            companion.store.write(session, memory)
        turn = companion.turn(session, row.prompt, seed)
    except (MessageError, MemoryFormatError) as error:
        raise UnanswerableError(str(error)) from error
    except ConstraintError as error:
        raise PromptListError(str(error)) from error
    finally:
        companion.store.forget_session(session)
    shown, done = turn.expression, turn.finished
    return Answer(
        reply=turn.text,
        memories=tuple(turn.memories_written),
        eyes=shown.eyes,
        mouth=shown.mouth,
        pose=shown.pose,
        tokens=done.tokens,
        seconds=sum(turn.seconds.values()),
        time_to_first_token=turn.seconds["recall"] + done.time_to_first_token,
        finish_reason=done.reason,
    )


def _companion(config: Config, root: Path, model: Path | None) -> Companion:
    from ohlora.chat import Companion
    from ohlora.package import current_product

    return Companion.load(model or current_product(config, root), "", config.runtime.device)


def _bar(items: Iterable[Any], total: int) -> Iterable[Any]:
    from tqdm.auto import tqdm

    return tqdm(items, desc="replies", total=total, disable=None)
