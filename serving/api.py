"""The HTTP API and the page, as a FastAPI app that the service mounts at `/`.

Every error is `{"error": {"code", "message"}}`; `code` is for programs, `message` is Korean, for the person.
Without a token only this machine may call: client address and Host header must be loopback's (the second
keeps a rebound DNS name out). With one, every `/api` call carries `Authorization: Bearer TOKEN`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import io
import ipaddress
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ohlora.attributes import Expression
from serving.engine import Busy, Engine, NotReady
from serving.journal import describe, logger

if TYPE_CHECKING:
    from ohlora.chat import Companion, Turn

PAGE = Path(__file__).resolve().parent / "page"
MAX_BODY = 64 * 1024  # bytes
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Session = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class ChatRequest(BaseModel):
    """Body of `POST /api/chat`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    session: Session
    message: str
    seed: int | None = Field(None, ge=0, lt=2**63, description="the same seed gives the same reply")


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(code)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, headers=self.headers)


class SecurityHeaders:
    """ASGI middleware: the page runs nothing but its own scripts, answers of the API are not kept."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cache-Control"] = "no-store" if scope["path"].startswith("/api/") else "no-cache"
            await send(message)

        await self.app(scope, receive, send_with_headers)


def webp(image: np.ndarray) -> bytes:
    """Encode `uint8 [h, w, 3]` as WebP."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=97, method=4)  # below, blocks show on smooth skin
    return buffer.getvalue()


def data_url(picture: bytes) -> str:
    """A WebP as a `data:` URL."""
    return "data:image/webp;base64," + base64.b64encode(picture).decode("ascii")


async def read_body(request: Request) -> bytes:
    """The body, of at most `MAX_BODY` bytes, whatever its Content-Length says.

    Raises:
        ApiError: 413 when it is longer.
    """
    too_large = ApiError(413, "body_too_large", "보낸 내용이 너무 커요. 64 KB까지 보낼 수 있어요.")
    if int(request.headers.get("content-length") or 0) > MAX_BODY:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise too_large
    return bytes(body)


def parse_chat(body: bytes) -> ChatRequest:
    """Parse the body of a turn.

    Raises:
        ApiError: 400 with a code that says what is wrong.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, "bad_encoding", "글자가 깨져 있어요. UTF-8로 보내 주세요.") from error
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "bad_json", "요청이 올바른 JSON이 아니에요.") from error
    try:
        chat = ChatRequest.model_validate(values)
        chat.message.encode("utf-8")  # half a surrogate pair passes JSON, not the store
    except ValidationError as error:
        raise explain(error) from error
    except UnicodeEncodeError as error:
        raise ApiError(400, "bad_encoding", "글자가 깨져 있어요. UTF-8로 보내 주세요.") from error
    return chat


def explain(error: ValidationError | RequestValidationError) -> ApiError:
    """The first problem of a request as a 400."""
    problem = error.errors()[0]
    name = next((str(part) for part in reversed(problem["loc"]) if part not in ("query", "body")), "")
    if problem["type"] == "missing":
        return ApiError(400, "missing_field", f"'{name}' 항목이 없어요.")
    if problem["type"] == "extra_forbidden":
        return ApiError(400, "unknown_field", "모르는 항목이 들어 있어요.")
    if name == "session":
        return ApiError(400, "bad_session", "대화 번호는 영문, 숫자, '_', '-'로 64자까지예요.")
    if not name:
        return ApiError(400, "bad_json", "요청이 JSON 객체가 아니에요.")
    return ApiError(400, "bad_field", f"'{name}' 항목의 값이 올바르지 않아요.")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def guard(token: str) -> Callable[[Request], None]:
    """The dependency that lets a call in.

    Args:
        token: bearer token; empty lets only this machine in.
    """

    def with_token(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
            raise ApiError(401, "unauthorized", "접속 토큰이 필요해요.", {"WWW-Authenticate": "Bearer"})

    def from_here(request: Request) -> None:
        named = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        if not is_loopback(named) or (request.client and not is_loopback(request.client.host)):
            message = "이 서버는 토큰 없이는 같은 컴퓨터에서만 쓸 수 있어요."
            raise ApiError(403, "token_not_configured", message)

    return with_token if token else from_here


def create_app(engine: Callable[[], Engine], token: str = "") -> FastAPI:
    """The app.

    Args:
        engine: gives the engine once the service lives.
        token: see `guard`.
    """
    app = FastAPI(title="Oh-LoRA", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(SecurityHeaders)

    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def refuse_invalid(_: Request, error: RequestValidationError) -> Response:
        return explain(error).response()

    @app.exception_handler(HTTPException)
    async def refuse_unrouted(_: Request, error: HTTPException) -> Response:
        codes = {404: ("not_found", "그런 주소는 없어요."), 405: ("bad_method", "그렇게 부를 수 없어요.")}
        code, message = codes.get(error.status_code, ("bad_request", "요청이 올바르지 않아요."))
        return ApiError(error.status_code, code, message, dict(error.headers or {})).response()

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.include_router(_routes(engine), prefix="/api", dependencies=[Depends(guard(token))])
    return app


async def _answer(job: Awaitable[Any]) -> Any:
    """Await a job of the engine and turn its failures into errors of the API."""
    try:
        return await job
    except NotReady as error:
        raise ApiError(503, "not_ready", "오로라가 아직 준비 중이에요.", {"Retry-After": "3"}) from error
    except Busy as error:
        message = "지금 이야기하는 사람이 많아요. 잠시 뒤에 다시 말을 걸어 주세요."
        raise ApiError(429, "busy", message, {"Retry-After": str(error.retry_after)}) from error
    except Exception as error:
        from ohlora.chat import MessageError  # with torch behind it: only where the models are loaded

        if isinstance(error, MessageError):
            raise ApiError(400, error.code, str(error)) from error
        logger.error("a job failed: %s", describe(error))
        raise ApiError(500, "internal", "오로라가 잠깐 멍해졌어요. 다시 말을 걸어 주세요.") from error


class Faces:
    """Pictures of her, drawn once each: a page that blinks all day asks for the same handful."""

    def __init__(self, engine: Callable[[], Engine], keep: int = 256) -> None:
        self._engine = engine
        self._keep = keep
        self._drawn: dict[Expression, bytes] = {}

    async def picture(self, expression: Expression) -> bytes:
        """WebP of an expression, rounded to what the eye can tell apart."""
        wanted = Expression(
            eyes=round(expression.eyes, 2), mouth=round(expression.mouth, 2), pose=round(expression.pose, 1)
        )
        if wanted not in self._drawn:
            picture = await _answer(self._engine().run(lambda companion: webp(companion.face(wanted))))
            while len(self._drawn) >= self._keep:
                self._drawn.pop(next(iter(self._drawn)))
            self._drawn[wanted] = picture
        return self._drawn[wanted]


def _expression(companion: Companion, name: str, expression: Expression) -> dict[str, Any]:
    label = companion.card.expressions[name].label
    return {"name": name, "label": label, **expression.model_dump()}


async def _said(request: Request) -> ChatRequest:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # Also what makes a browser ask first before another site's page may post here.
        raise ApiError(415, "bad_content_type", "Content-Type은 application/json이어야 해요.")
    return parse_chat(await read_body(request))


def _told(companion: Companion, turn: Turn) -> dict[str, Any]:
    return {
        "text": turn.text,
        "expression": _expression(companion, turn.expression_name, turn.expression),
        "memories_used": turn.memories_used,
        "memories_written": turn.memories_written,
        "image": data_url(webp(turn.image)),
        "seconds": {name: round(value, 3) for name, value in turn.seconds.items()},
    }


def _talk(companion: Companion, said: ChatRequest) -> tuple[Turn, dict[str, Any]]:
    turn = companion.turn(said.session, said.message, said.seed)
    return turn, _told(companion, turn)


def _log(turn: Turn) -> None:
    logger.info("turn: %s", ", ".join(f"{name} {value:.2f} s" for name, value in turn.seconds.items()))


def _sse(name: str, data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _stream(
    companion: Companion, said: ChatRequest, tell: Callable[[str], None], gone: threading.Event
) -> None:
    """Answer in the model thread and tell each event; stops between two tokens once nobody listens."""
    from ohlora.chat import Turn
    from ohlora.llm import ExpressionChosen, MemoryWritten, Speech

    with contextlib.closing(companion.stream_turn(said.session, said.message, said.seed)) as events:
        for event in events:
            if gone.is_set():
                return
            match event:
                case Speech(text):
                    tell(_sse("speech", {"text": text}))
                case MemoryWritten(text):
                    tell(_sse("memory", {"text": text}))
                case ExpressionChosen(name, expression):
                    tell(_sse("expression", _expression(companion, name, expression)))
                case Turn():
                    tell(_sse("turn", _told(companion, event)))
                    _log(event)


async def _events(engine: Engine, said: ChatRequest) -> AsyncGenerator[str, None]:
    """The server-sent events of one turn.

    Raises:
        ApiError: the turn is refused or fails before its first event; a later failure is an event `error`.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[str] = asyncio.Queue()
    gone = threading.Event()

    def tell(event: str) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, event)

    job = asyncio.ensure_future(_answer(engine.run(lambda c: _stream(c, said, tell, gone))))
    started = False
    try:
        while True:
            waiting = asyncio.ensure_future(queue.get())
            await asyncio.wait({waiting, job}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done() and queue.empty():
                waiting.cancel()
                break
            started = True
            yield await waiting
        try:
            await job
        except ApiError as error:
            if not started:
                raise
            yield _sse("error", error.body())
    finally:
        gone.set()
        job.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody is left to tell


def _routes(engine: Callable[[], Engine]) -> APIRouter:
    api = APIRouter()
    faces = Faces(engine)

    @api.get("/greeting")
    async def greeting() -> JSONResponse:
        def introduce(companion: Companion) -> dict[str, Any]:
            card = companion.card
            return {
                "name": card.name,
                "profile": f"{card.age(date.today())}살 · {card.mbti} · {card.occupation}",
                "text": companion.greeting,
                "expression": _expression(companion, card.idle_expression, companion.idle_expression),
                "max_message_chars": companion.max_message_chars,
            }

        answer = await _answer(engine().run(introduce))
        shown = {key: answer["expression"][key] for key in Expression.model_fields}
        return JSONResponse({**answer, "image": data_url(await faces.picture(Expression(**shown)))})

    @api.post("/chat")
    async def chat(request: Request) -> JSONResponse:
        said = await _said(request)
        turn, answer = await _answer(engine().run(lambda companion: _talk(companion, said)))
        _log(turn)
        return JSONResponse(answer)

    @api.post("/chat/stream")
    async def chat_stream(request: Request) -> StreamingResponse:
        events = _events(engine(), await _said(request))
        first = await anext(events)  # what is refused is refused with a status, not within a stream

        async def all_events() -> AsyncIterator[str]:
            try:
                yield first
                async for event in events:
                    yield event
            finally:  # also when the client has gone
                await events.aclose()

        headers = {"X-Accel-Buffering": "no"}  # a proxy in between shall not collect the pieces
        return StreamingResponse(all_events(), media_type="text/event-stream", headers=headers)

    @api.get("/face")
    async def face(
        eyes: Annotated[float, Query(ge=0, le=1, allow_inf_nan=False)] = 0.75,
        mouth: Annotated[float, Query(ge=0, le=1, allow_inf_nan=False)] = 0.0,
        pose: Annotated[float, Query(ge=-35, le=35, allow_inf_nan=False)] = 0.0,
    ) -> Response:
        picture = await faces.picture(Expression(eyes=eyes, mouth=mouth, pose=pose))
        return Response(picture, media_type="image/webp")

    @api.get("/memories")
    async def memories(session: Session) -> JSONResponse:
        kept = await _answer(engine().run(lambda companion: companion.memories(session)))
        return JSONResponse({"memories": kept})

    return api
