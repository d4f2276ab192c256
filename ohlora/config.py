"""What the user wants: `params.yaml` as frozen, typed models that reject unknown keys.

One file holds the defaults, a profile overlay (`profiles/NAME.yaml`) changes values of it, `--set key=value`
changes single ones. An unknown key or a bad value is an error that names the key, the file and what is
allowed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from ohlora.errors import UserError
from ohlora.persona_config import ExamplesConfig, PersonaConfig
from ohlora.section import Fraction, Positive, Rate, Section
from ohlora.variants_config import VariantsConfig

PARAMS = "params.yaml"
PROFILES = "profiles"

Condition = Literal["eyes", "mouth", "pose", "hair_color", "hair_length", "background_mean", "background_std"]


class ConfigError(UserError, ValueError):
    """The configuration does not parse; the message names key, file and allowed values."""


class RuntimeConfig(Section):
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU when there is one")
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 means all cores")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of training")


class TrackingConfig(Section):
    uri: str = Field("", description="MLflow tracking URI; empty means SQLite in the state folder")
    artifacts: str = Field("", description="artifact root; empty means a folder in the state folder")
    experiment: str = "ohlora"


class CorpusConfig(Section):
    sample: str = Field("data/portraits", description="folder of the committed portraits")
    limit: int = Field(0, ge=0, description="take only N of the sample portraits, spread evenly; 0 takes all")
    render: int = Field(0, ge=0, description="render N more portraits of new people")
    women_only: bool = Field(False, description="render no men: the face learns from women alone")
    render_persona: int = Field(0, ge=0, description="render N more portraits of Oh-LoRA")
    look: str = Field("data/persona/look.yaml", description="how Oh-LoRA looks")
    seed: int = Field(1, ge=0, description="first seed of the rendered portraits")
    defects: Fraction = Field(0.1, description="share of rendered portraits that get a quality defect")
    counterfactual_sets: int = Field(
        0, ge=0, description="how many of the rendered people get sets in which one attribute is swept"
    )
    swept: list[Condition] = Field(list(get_args(Condition)), description="attributes that the sets sweep")
    sweep_steps: int = Field(5, ge=2, description="portraits of a set")
    folders: list[str] = Field(
        [], description="more folders of portraits, e.g. of ohlora corpus photos or sample-generator"
    )
    samples_per_pixel: Positive = 4
    resolution: Literal[64, 128, 256] = 256
    test_fraction: Fraction = Field(0.3, description="share of identities held out from every training")
    rendered_test_fraction: Fraction = Field(
        0.3, description="the same of the people rendered beside the sample, which has its own held out"
    )


class LabelingConfig(Section):
    architecture: str = Field("Unet", description="a class of segmentation_models_pytorch")
    encoder: str = Field("tu-regnety_002", description="its encoder")
    encoder_weights: str | None = Field(None, description="pretrained weights from a hub, e.g. imagenet")
    encoder_depth: int = Field(5, ge=3, le=5, description="stages of the encoder")
    decoder_channels: list[int] = Field(
        [96, 64, 40, 24], description="of each decoder stage, coarse to fine; empty takes the library's own"
    )
    resolution: Literal[64, 128, 192, 256] = Field(256, description="of the network's input")
    logit_stride: Literal[1, 2, 4] = Field(
        2,
        description="input pixels per cell of the decoder's last grid, from where a sub-pixel head answers; "
        "above 1 only with Unet",
    )
    steps: Positive = 20
    batch_size: Positive = 8
    learning_rate: Rate = 3e-3
    ema: Fraction = Field(0.995, description="decay of the averaged weights, which are the model")
    start: str = Field("data/starters/labeler", description="parser to continue from; empty: from scratch")
    continued_speed: Rate = Field(0.2, description="learning rate of a continued parser, times learning_rate")
    settle_from: Fraction = Field(
        0.4, description="after this share of the steps most portraits are learnt as they are, not warped"
    )
    teacher: str = Field(
        "", description="FaceXFormer that parses portraits without masks: folder, checkpoint or hub:REPO/FILE"
    )
    teacher_share: Fraction = Field(0.25, description="share of each batch that the teacher parsed")
    runner: Literal["local", "dask"] = Field(
        "local", description="dask: flows score shards of portraits on Prefect's Dask task runner"
    )
    workers: Positive = Field(2, description="processes of the local Dask cluster")
    cluster: str = Field("", description="address of a Dask scheduler; empty starts a local cluster")
    seed: int = 0


class FiltersConfig(Section):
    """Gender and quality classifiers, and what they let through."""

    gender_at_least: Fraction = Field(0.7, description="least probability of a woman")
    quality_at_least: Fraction = Field(0.9, description="least probability of a clean picture")
    folds: int = Field(5, ge=2, le=10, description="networks per question, each without a part of the people")
    resolution: Literal[32, 64, 128] = Field(
        128, description="of the views, cut from pictures twice as large"
    )
    steps: Positive = Field(8, description="of each network")
    batch_size: int = Field(32, ge=4, description="half of each answer")
    learning_rate: Rate = 3e-3
    start: str = Field("data/starters/filters", description="filters to continue from; empty: from scratch")
    continued_speed: Rate = Field(0.3, description="learning rate of continued filters, times learning_rate")
    seed: int = 5


class PropertiesConfig(Section):
    """The network that reads the seven conditions off a picture."""

    resolution: Literal[32, 64, 128] = Field(128, description="of the whole view; areas have twice as much")
    steps: Positive = 40
    batch_size: int = Field(16, ge=2)
    learning_rate: Rate = 3e-3
    start: str = Field(
        "data/starters/properties", description="property network to continue from; empty: from scratch"
    )
    continued_speed: Rate = Field(0.05, description="learning rate of a continued one, times learning_rate")
    seed: int = 11


class JudgeConfig(Section):
    resolution: Literal[64, 128, 256] = 128
    steps: Positive = 20
    batch_size: Positive = 32
    learning_rate: Rate = 2e-3
    start: str = Field("data/starters/judge", description="judge to continue from; empty: from scratch")
    continued_speed: Rate = Field(0.1, description="learning rate of a continued judge, times learning_rate")
    seed: int = 77


class FaceConfig(Section):
    resolution: Literal[64, 128, 256] = 256
    z_dim: Positive = Field(64, description="length of a person's latent")
    w_dim: Positive = 256
    channel_base: Positive = Field(3072, description="channels at resolution r are channel_base/r, capped")
    channel_max: Positive = 256
    mapping_layers: Positive = 4
    labels: Literal["truth", "network", "formulas"] = Field(
        "truth", description="conditions that win; the other fills gaps"
    )
    persona_share: Fraction = Field(0.4, description="share of each batch that shows Oh-LoRA")
    steps: Positive = 40
    growth: tuple[Fraction, Fraction] = Field(
        (0.15, 0.65), description="shares of the steps after which the picture doubles"
    )
    continued_growth: Fraction = Field(
        0.0, description="share of a continued training that runs at half the resolution"
    )
    batch_size: Positive = 8
    learning_rate: Rate = 0.03
    clip: Annotated[float, Field(gt=0)] = Field(1.0, description="largest norm of the gradient")
    ema: Fraction = Field(0.995, description="decay of the averaged weights, which are the model")
    edges: float = Field(1.0, ge=0, description="weight of gradients against colours in the loss")
    start: str = Field("data/starters/face", description="face model to continue from; empty: from scratch")
    continued_speed: Rate = Field(0.2, description="learning rate of a continued model, times learning_rate")
    latent_spread: Annotated[float, Field(gt=0)] = Field(
        0.5, description="deviation of the first latents, which are principal components of people's looks"
    )
    latent_speed: Annotated[float, Field(gt=0)] = Field(
        0.3, description="learning rate of latents, times the rest's"
    )
    latent_noise: float = Field(
        0.15, ge=0, description="deviation of noise on the latents of others than Oh-LoRA"
    )
    latent_prior: float = Field(0.01, ge=0, description="weight of the squared latents in the loss")
    truncation: float = Field(1.0, ge=0, le=1, description="psi of sampled people: 0 average, 1 full variety")
    novelty: Fraction = Field(
        0.5, description="how far sampled people are from known ones: 0 not at all, 1 independent of them"
    )
    repainted: Fraction = Field(
        0.25, description="share of portraits shown before another background, and with other hair"
    )
    walls: float = Field(
        0.1, ge=0, description="weight of the mean and deviation of known people's backgrounds"
    )
    features: float = Field(0.3, ge=0, description="weight of the property network's features in the loss")
    pairs: int = Field(0, ge=0, description="sampled people a step, drawn twice each; 0 guides nobody")
    guided_from: Fraction = Field(0.0, description="share of the steps after which sampled people are guided")
    obedience: float = Field(
        0.0, ge=0, description="weight of what the property network reads off them; 0.1 painted marks for it"
    )
    same_person: float = Field(
        0.0, ge=0, description="weight of their identity across expressions; 0.2 painted marks for it"
    )
    same_place: float = Field(1.0, ge=0, description="weight of what changes outside the face with it")
    colours: float = Field(
        0.0, ge=0, description="weight of their hair's and background's brightness, measured under a mask"
    )
    adversarial: float = Field(0.0, ge=0, description="weight of the patch discriminator; 0 trains none")
    adversarial_from: Fraction = Field(0.5, description="share of the steps after which it joins in")
    seed: int = 0


class FaceTestConfig(Section):
    """The image-generation test of face models: how much is drawn."""

    latents: Positive = Field(200, description="sampled people of `ohlora gan test`")
    original_latents: Positive = Field(30, description="of the original's test, 50 pictures each")
    quick_latents: Positive = Field(24, description="sampled people of the gate and the stage face_test")
    quick_original_latents: int = Field(
        4, ge=0, description="of the original's test in the stage; 0 leaves it out"
    )
    pictures: int = Field(24, ge=3, description="of each person, under quasi-random attributes")
    moments: int = Field(8, ge=2, description="pictures of each person as herself, for her identity")
    inception: bool = Field(
        False, description="distances on Inception features too; torchvision fetches the weights from a hub"
    )
    seed: int = Field(0, ge=0, description="of people and attributes")


class ScratchLLMConfig(Section):
    """Sizes of base=scratch-neox, a GPT-NeoX with random weights: for tests, not for people."""

    hidden_size: Positive = 128
    layers: Positive = 4
    heads: Positive = 4
    context: Positive = Field(512, description="longest sequence in tokens")
    seed: int = Field(0, description="of the random weights")


class VoiceCandidate(Section):
    """A voice that `ohlora voice select` compares with others."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="how the table calls it")
    overrides: list[str] = Field([], description="settings that make it, e.g. voice.lora_rank=32")


class VoiceConfig(Section):
    base: Literal["gemma3-270m", "scratch-neox", "hub"] = "gemma3-270m"
    hub_name: str = Field("", description="of base=hub: a model name of a hub or a local folder")
    scratch: ScratchLLMConfig = ScratchLLMConfig()
    lora_rank: Positive = 16
    lora_alpha: Positive = 32
    lora_dropout: Fraction = 0.0
    target_modules: str | list[str] = "all-linear"
    start: str = Field(
        "data/starters/voice", description="adapter folder to continue from; empty starts from the base"
    )
    continued_speed: Fraction = Field(0.05, description="of the learning rate when it continues one")
    blend: Rate = Field(1.0, description="share that is kept of what training changed in one")
    learning_rate: Rate = 1e-3
    epochs: float = Field(0.022, gt=0, description="passes over the train rows; below 1 a part of them")
    batch_size: Positive = 8
    max_length: Positive = Field(320, description="most tokens of prompt and answer; what is cut is reported")
    tag_weight: float = Field(
        2.0, gt=0, description="weight of the tokens of memories and expression in the loss; a word's is 1"
    )
    evaluate_every: float = Field(0.25, gt=0, description="share of an epoch between held-out scores")
    evaluate_rows: Positive = Field(32, description="held-out rows that are scored during training")
    patience: int = Field(
        4, ge=0, description="scores without a better one before training ends; 0 never ends it early"
    )
    candidates: list[VoiceCandidate] = Field(
        [], description="what ohlora voice select compares; each runs with the settings and its overrides"
    )
    seed: int = 0


class PreferenceConfig(Section):
    """KTO after fine-tuning: away from replies that are wrong in a known way."""

    steps: int = Field(4, ge=0, description="0 passes the fine-tuned adapter on")
    batch_size: int = Field(8, ge=4, multiple_of=2, description="half written replies, half undesirable ones")
    learning_rate: Rate = 2e-5
    beta: float = Field(0.1, gt=0, description="how strongly it is held to the fine-tuned model")
    desirable_weight: float = Field(1.0, gt=0)
    undesirable_weight: float = Field(1.0, gt=0)
    samples: str = Field(
        "",
        description="CSV of her own replies (prompt, reply; history, grade), sorted by grade or by rules",
    )
    retention: float = Field(
        0.0, ge=0, description="weight of the divergence from the fine-tuned model on turns of other kinds"
    )
    evaluate_every: Positive = Field(20, description="steps between held-out scores")
    evaluate_rows: Positive = Field(16, description="held-out rows that are scored, each in both kinds")
    patience: int = Field(3, ge=0, description="scores without a better one before training ends; 0 is never")
    seed: int = 0


class GenerationConfig(Section):
    engine: Literal["auto", "transformers", "openvino"] = Field(
        "auto", description="what computes; auto is openvino (int8 weights) for Gemma 3 on a CPU"
    )
    max_new_tokens: Positive = Field(
        128, description="of a whole turn; speech ends early enough for the rest of it"
    )
    max_prompt_tokens: Positive = Field(
        256, description="the oldest turns, then the last memories are left out of a longer prompt"
    )
    temperature: float = Field(0.6, ge=0, le=2, description="0 is greedy")
    top_p: Fraction = 0.9
    min_p: Fraction = Field(0.0, description="leaves out tokens less likely than this share of the likeliest")
    repetition_penalty: float = Field(1.15, ge=1, le=2)
    no_repeat_ngram: int = Field(4, ge=0, description="no run of so many tokens comes twice; 0 allows it")
    history_turns: int = Field(3, ge=0, description="earlier turns in the prompt")
    boundaries: bool = Field(
        True,
        description="a message that crosses a boundary, or tells of danger, is answered by the card",
    )
    facts: bool = Field(
        True, description="so is a message that clearly asks for a fact of the card which has replies"
    )


class VoiceTestConfig(Section):
    """The test of voices: how much is asked. Counts of 0 ask all."""

    probes: str = Field("data/probes", description="folder of the messages that are asked")
    fact_samples: Positive = Field(2, description="replies to each question about her in `ohlora voice test`")
    variety_samples: int = Field(4, ge=2, description="replies to each everyday message, likewise")
    timed: Positive = Field(40, description="replies that are timed one after the other, likewise")
    quick_facts: int = Field(42, ge=0, description="questions about her that the gate asks")
    quick_refusals: int = Field(16, ge=0, description="messages to decline and harmless ones")
    quick_carry_over: int = Field(6, ge=0, description="questions that earlier turns answer")
    quick_recall: int = Field(10, ge=0, description="questions that memories answer")
    quick_memory_writing: int = Field(18, ge=0, description="messages with and without something to remember")
    quick_variety: int = Field(8, ge=0, description="everyday messages")
    quick_variety_samples: int = Field(2, ge=2, description="replies to each of them")
    quick_held_out: int = Field(48, ge=0, description="rows of the test split")
    seed: int = Field(0, ge=0, description="of the sampled replies")


class EncoderTraining(Section):
    """How an adapter of the sentence encoder is trained."""

    lora_rank: Positive = 16
    learning_rate: Rate = 1e-3
    epochs: Annotated[float, Field(gt=0)] = 0.4
    batch_size: Positive = Field(64, description="pairs of a step")
    max_length: Positive = Field(64, description="tokens of a text")
    loss: Literal["cosine", "cosent"] = Field(
        "cosine", description="cosine: the score itself; cosent: the order of the scores"
    )
    seed: int = 0


class RetrieverConfig(EncoderTraining):
    """The encoder that finds what was answered to messages like one."""

    grades: str = Field(
        "data/retriever/grades.jsonl", description="replies graded as answers to other messages"
    )
    start: str = Field(
        "data/starters/retriever", description="adapter to continue from; empty: from the base"
    )
    continued_speed: Fraction = Field(0.1, description="learning rate then, as a share")
    learning_rate: Rate = 8e-4
    epochs: Annotated[float, Field(gt=0)] = 0.02
    batch_size: Positive = Field(80, description="pairs of a step")
    loss: Literal["cosine", "cosent"] = Field(
        "cosent", description="cosine: the score itself; cosent: the order of the scores"
    )


class MemoryConfig(EncoderTraining):
    base: Literal["e5-small", "scratch-bert", "hub"] = "e5-small"
    hub_name: str = ""
    pairs: str = Field("data/memory/pairs.jsonl", description="training pairs")
    threshold: float | None = Field(
        None, ge=-1, le=1, description="least cosine of a recalled memory; null takes the calibrated one"
    )
    top_k: Positive = 2
    multi_valued: list[str] = Field(
        ["가족", "친구", "반려동물", "계획", "약속", "여행", "알레르기", "취미", "싫어하는 것", "습관"],
        description="memory keys that hold several values at once; any other key is updated",
    )
    own_words: list[str] = Field(
        ["나이", "기분", "상태", "고민"],
        description="keys whose value she may put in her own words; of others the person must have said it",
    )


class Floor(Section):
    """An absolute bound that a model must hold to serve."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None


class GateRule(Section):
    primary: str = Field(description="metric that decides between challenger and champion")
    higher_is_better: bool = True
    min_gain: float = Field(0.0, ge=0, description="by how much a challenger must beat the champion")
    floors: list[Floor] = Field([])


class GateConfig(Section):
    promote: bool = Field(True, description="false scores a challenger but moves no alias")
    starters: str = Field("data/starters", description="committed models, registered first; empty for none")
    labeler: GateRule
    face: GateRule
    voice: GateRule
    memory: GateRule


class ServingConfig(Section):
    host: str = "127.0.0.1"
    port: int = Field(3000, ge=0, le=65535, description="0 takes a free one")
    token: str = Field("", description="bearer token; without one the service binds to loopback only")
    max_message_chars: Positive = 1000
    database: str = Field(
        "", description="SQLAlchemy URL of the chat store; empty means SQLite beside the service"
    )


class PortsConfig(Section):
    prefect: int = Field(4200, ge=0, le=65535)
    mlflow: int = Field(5000, ge=0, le=65535)


class Config(Section):
    """The whole of `params.yaml`."""

    profile: str = "default"
    state: str = Field(".ohlora", description="folder of servers, registry and bentos, relative to the repo")
    jobs: int = Field(2, ge=1, description="stages of the pipeline that run at a time, sharing the cores")
    runtime: RuntimeConfig = RuntimeConfig()
    tracking: TrackingConfig = TrackingConfig()
    corpus: CorpusConfig = CorpusConfig()
    labeling: LabelingConfig = LabelingConfig()
    filters: FiltersConfig = FiltersConfig()
    properties: PropertiesConfig = PropertiesConfig()
    judge: JudgeConfig = JudgeConfig()
    face: FaceConfig = FaceConfig()
    variants: VariantsConfig = VariantsConfig()
    face_test: FaceTestConfig = FaceTestConfig()
    persona: PersonaConfig = PersonaConfig()
    retriever: RetrieverConfig = RetrieverConfig()
    examples: ExamplesConfig = ExamplesConfig()
    voice: VoiceConfig = VoiceConfig()
    preference: PreferenceConfig = PreferenceConfig()
    generation: GenerationConfig = GenerationConfig()
    voice_test: VoiceTestConfig = VoiceTestConfig()
    memory: MemoryConfig = MemoryConfig()
    gate: GateConfig
    serving: ServingConfig = ServingConfig()
    ports: PortsConfig = PortsConfig()


def profiles(root: Path) -> list[str]:
    """Names of the profiles of a work tree, `default` first."""
    return ["default", *sorted(p.stem for p in (root / PROFILES).glob("*.yaml"))]


def load_config(root: Path | str = ".", profile: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read `params.yaml` of a work tree, apply a profile overlay and `key=value` overrides.

    Args:
        root: work tree that holds `params.yaml` and `profiles/`.
        profile: name of an overlay; `None` or `default` takes `params.yaml` as it is.
        overrides: `voice.learning_rate=1e-4`; values are YAML.

    Raises:
        ConfigError: a file is missing or does not parse, a key is unknown, a value is not allowed.
    """
    root = Path(root)
    values = _read_yaml(root / PARAMS)
    source = dict.fromkeys(_leaves(values), PARAMS)
    if profile and profile != "default":
        path = root / PROFILES / f"{profile}.yaml"
        if profile not in profiles(root):
            raise ConfigError(f"unknown profile {profile!r}; there are: {', '.join(profiles(root))}")
        overlay = _read_yaml(path)
        values = _merge(values, overlay)
        source |= dict.fromkeys(_leaves(overlay), f"{PROFILES}/{profile}.yaml")
        values["profile"] = profile
    for item in overrides:
        key, sep, text = item.partition("=")
        if not sep or not key:
            raise ConfigError(f"--set {item!r} is not of the form key=value, e.g. voice.learning_rate=1e-4")
        change: Any = _parse_scalar(text)
        for part in reversed(key.split(".")):
            change = {part: change}
        values = _merge(values, change)
        source[key] = f"--set {item}"
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, source)) from error


def dump_config(config: Config) -> str:
    """The configuration as a `params.yaml`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def find_root(start: Path | None = None) -> Path:
    """The nearest folder at or above `start` that holds `params.yaml` and `dvc.yaml`.

    Raises:
        ConfigError: there is none.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / PARAMS).is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise ConfigError(f"no {PARAMS} with a dvc.yaml at or above {here}; change into an ohlora work tree")


def state_dir(config: Config, root: Path) -> Path:
    """Folder of servers, registry and bentos; absolute values of `state` are kept."""
    return Path(os.path.normpath(root / config.state))


def _parse_scalar(text: str) -> Any:
    if not text.strip():
        return ""  # `--set face.start=` empties a text; null is written out
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set value {text!r} is not YAML: {error}") from error
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path} is missing; restore it with: git checkout {path.name}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values")
    return values


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        keys += [name, *_leaves(value, name + ".")] if isinstance(value, dict) else [name]
    return keys


def _explain(error: ValidationError, source: dict[str, str]) -> str:
    lines = []
    for problem in error.errors():
        location = problem["loc"]
        key = ".".join(str(part) for part in location)
        prefixes = [".".join(str(p) for p in location[:n]) for n in range(len(location), 0, -1)]
        where = next((source[p] for p in prefixes if p in source), PARAMS)
        if problem["type"] == "extra_forbidden":
            allowed = ", ".join(_fields_at(location[:-1]))
            lines.append(f"{where}: unknown key {key!r}; allowed here: {allowed}")
        else:
            value = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"
            lines.append(f"{where}: {key}: {problem['msg']}{value}")
    return "\n".join(lines)


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        annotation = model.model_fields[part].annotation if isinstance(part, str) else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
