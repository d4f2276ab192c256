"""What a person may choose for a run; Prefect's UI makes a form of it and refuses what does not fit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows import ROOT
from ohlora.config import Config, load_config, profiles
from ohlora.pipeline import STAGES

Profile = Literal[tuple(profiles(ROOT))]  # type: ignore[valid-type]
StageName = Literal[tuple(STAGES)]  # type: ignore[valid-type]
Override = Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)*=.*$")]


class RunOptions(BaseModel):
    """Settings of one run. The defaults bring everything up to date with params.yaml."""

    model_config = ConfigDict(extra="forbid")

    profile: Profile = Field("default", description="which settings: params.yaml, or an overlay of it")
    force: list[StageName] = Field([], description="stages to run although nothing changed")
    promote: bool = Field(True, description="off: challengers are judged, but nothing is promoted")
    overrides: list[Override] = Field([], description="single settings, e.g. voice.learning_rate=1e-4")

    @model_validator(mode="after")
    def _are_settings(self) -> RunOptions:
        self.config()
        return self

    def config(self) -> Config:
        """The effective settings.

        Raises:
            ConfigError: an override names no setting, or a value is not allowed.
        """
        overrides = list(self.overrides)
        if not self.promote:
            overrides.append("gate.promote=false")
        return load_config(ROOT, self.profile, overrides)
