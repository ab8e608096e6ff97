"""A whole training on one rank: select the step and the fused score on held-out rows, then, if asked, refit.

    select   train on seen minus pseudo-unseen classes; validate every few epochs; keep the best weights; stop early
    refit    train anew on all seen classes for the selected number of steps

Everything that is not a pure function of the step number is in `RunState`, which is saved with the engine's state, so
that a run killed anywhere ends with the same bytes as an undisturbed one. No Ray here: stages/train_loop.py calls it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TextIO

import numpy as np
import numpy.typing as npt
from torch import Tensor

from zscmr_ray.config import Config
from zscmr_ray.data.pairs import PairFeatures
from zscmr_ray.data.splits import ClassSplit, check_no_leak, training_rows
from zscmr_ray.engine.base import Engine
from zscmr_ray.engine.collectives import broadcast_value, rank, world_size
from zscmr_ray.engine.prefetch import Clock, Prefetch
from zscmr_ray.engine.resume import ResumePoint, load_engine, newest_state, save_state
from zscmr_ray.engine.schedule import learning_rate
from zscmr_ray.engine.step import AlignmentStep, StepSource
from zscmr_ray.engine.telemetry import Telemetry
from zscmr_ray.engine.validation import Validator
from zscmr_ray.models.base import LABEL
from zscmr_ray.models.build import build_model, build_network
from zscmr_ray.models.tuned import TunedModel
from zscmr_ray.progress import Progress
from zscmr_ray.retrieval.protocol import ClassGroups
from zscmr_ray.storage import Store

Phase = Literal["select", "refit"]
MakeEngine = Callable[[AlignmentStep, int], Engine]
_DEFAULT_LABEL_WEIGHT = 0.5


@dataclass
class RunState:
    """Where a run stands: `step` steps of `phase` are done, after `before` steps of the earlier phase."""

    phase: Phase = "select"
    step: int = 0
    before: int = 0
    best_step: int = 0
    choice: dict[str, Any] | None = None
    warned: bool = False
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training ends with; `selection` is the record that goes into the checkpoint."""

    weights: dict[str, Tensor]
    label_weight: float
    label_temperature: float
    selection: dict[str, Any]


class TrainingRun:
    """One rank's training over features that hold the trained and the validation rows of a split."""

    def __init__(
        self,
        config: Config,
        split: ClassSplit,
        features: PairFeatures,
        *,
        architecture: dict[str, Any],
        store: Store,
        make_engine: MakeEngine,
        device: str = "cpu",
        stream: TextIO | None = None,
        keep_best: Callable[[Outcome], None] | None = None,
    ) -> None:
        self.config, self.split, self.features = config, split, features
        self.architecture, self.store, self.device = architecture, store, device
        self.make_engine, self.stream, self.keep_best = make_engine, stream, keep_best
        self.state = RunState()
        self.best: dict[str, Tensor] | None = None
        held_out = held_out_rows(features, split)
        self.validator = None if held_out is None else self._make_validator(features.select(held_out))
        self.refits = config.train.refit and bool(split.pseudo_unseen)

    def run(self) -> Outcome:
        """Train to the end, going on from the newest resumable state if there is one. Every rank must call it.

        Raises TrainingError when the loss is not finite, ConfigError and DataError for what cannot be trained.
        """
        point = newest_state(self.store, **self._layout(), stream=self.stream)
        if point is not None:
            self.state, self.best = RunState(**point.run), point.best
        state = self.state
        source = self._source(refit=False)
        total_steps = self.config.optim.max_epochs * source.steps_per_epoch
        with Telemetry(
            self.store, lines=state.lines, warned=state.warned, is_active=rank() == 0, stream=self.stream
        ) as telemetry:
            if point is not None:
                then = f" of {point.num_workers} workers" if point.num_workers != world_size() else ""
                message = f"going on from {point.name}{then}"
                telemetry.event("resumed", phase=state.phase, step=state.step, message=message)
            if state.phase == "select":
                engine = self._engine(total_steps, point)
                self._train(engine, source, telemetry, until=total_steps, total_steps=total_steps)
                point = None
                if self.validator is None:
                    self.best, state.best_step = engine.weights(), state.step
                if self.refits:
                    state.phase, state.before, state.step = "refit", state.step, 0
            if state.phase == "refit":
                source = self._source(refit=True)
                engine = self._engine(total_steps, point)
                self._train(engine, source, telemetry, until=state.best_step, total_steps=total_steps)
                self.best = engine.weights()
        return self._outcome(source, refit=self.refits)

    def _make_validator(self, features: PairFeatures) -> Validator:
        model = build_model(self.architecture)
        return Validator(model, features, pseudo_unseen=self.split.pseudo_unseen, device=self.device)

    def _source(self, *, refit: bool) -> StepSource:
        trained = self.features.select(trained_rows(self.features, self.split, refit=refit))
        check_no_leak(trained.labels, self.split, refit=refit)
        return StepSource(
            trained,
            global_batch_size=self.config.train.global_batch_size,
            seed=self.config.train.seed,
            rank=rank(),
            num_workers=world_size(),
            device=self.device,
            classes_per_batch=self.config.train.classes_per_batch,
        )

    def _engine(self, total_steps: int, point: ResumePoint | None) -> Engine:
        model = build_model(self.architecture, seed=self.config.train.seed)
        train = self.config.train
        if isinstance(model, TunedModel) and train.activation_checkpointing:
            model.recompute_activations()
        step = AlignmentStep(model, precision=train.precision, micro_batch_size=train.micro_batch_size)
        engine = self.make_engine(step, total_steps)
        if point is not None:
            load_engine(self.store, point, engine)
        return engine

    def _train(
        self, engine: Engine, source: StepSource, telemetry: Telemetry, *, until: int, total_steps: int
    ) -> None:
        """Do the steps that are left of a phase, fewer when validation no longer gets better."""
        state, train, clock = self.state, self.config.train, Clock()
        prefetch = Prefetch(source.inputs, first=state.step, until=until, depth=train.prefetch_steps)
        with _progress(state, until, self.stream) as progress, prefetch:
            while state.step < until:
                parts = engine.update(prefetch.take())
                state.step += 1
                clock.count(train.global_batch_size)
                telemetry.watch_collapse(parts, phase=state.phase, step=state.step)
                if state.step % train.log_every_steps == 0 or state.step == until:
                    rates = clock.rates(waited_s=prefetch.waited_s)
                    telemetry.watch_waiting(rates, phase=state.phase, step=state.step)
                    self._log(telemetry, source, self._losses(parts, total_steps) | rates)
                if self._validates(source, until) and self._validate(engine, source, telemetry):
                    break
                if state.step % train.checkpoint_every_steps == 0:
                    self._save(engine, telemetry)
                if progress is not None:
                    progress.advance(note=f"loss {parts['total']:.4f}")

    def _losses(self, parts: dict[str, float], total_steps: int) -> dict[str, float]:
        optim = self.config.optim
        rate = learning_rate(
            self.state.step - 1, peak=optim.lr, warmup_steps=optim.warmup_steps, total_steps=total_steps
        )
        return {f"loss/{name}": value for name, value in parts.items()} | {"lr": rate}

    def _log(self, telemetry: Telemetry, source: StepSource, values: dict[str, float]) -> None:
        epoch = self.state.step / source.steps_per_epoch
        telemetry.scalars(phase=self.state.phase, step=self.state.step, epoch=epoch, values=values)

    def _validates(self, source: StepSource, until: int) -> bool:
        if self.validator is None or self.state.phase != "select":
            return False
        every = self.config.optim.validate_every_epochs * source.steps_per_epoch
        return self.state.step % every == 0 or self.state.step == until

    def _validate(self, engine: Engine, source: StepSource, telemetry: Telemetry) -> bool:
        """Score the weights on held-out rows and keep them if they are the best; return whether to stop."""
        assert self.validator is not None
        state, weights = self.state, engine.weights()
        choice = broadcast_value(self.validator.score(weights).to_json() if rank() == 0 else None)
        is_best = state.choice is None or choice["score"] > state.choice["score"]
        if is_best:
            state.choice, state.best_step, self.best = choice, state.step, weights
            if rank() == 0 and self.keep_best is not None:
                self.keep_best(self._outcome(source, refit=False))
        self._log(
            telemetry,
            source,
            {"validation/map": choice["score"], "validation/chance": choice["chance"]}
            | {f"validation/{name}": choice[name] for name in ("label_weight", "label_temperature")},
        )
        telemetry.say(
            f"epoch {state.step / source.steps_per_epoch:.3g}: mAP {choice['score']:.4f} on {choice['rows']} rows"
            f" (chance {choice['chance']:.4f}){', the best so far' if is_best else ''}"
        )
        patience = self.config.optim.patience_epochs * source.steps_per_epoch
        return state.step - state.best_step >= patience

    def _save(self, engine: Engine, telemetry: Telemetry) -> None:
        self.state.lines, self.state.warned = tuple(telemetry.lines), telemetry.warned
        save_state(
            self.store,
            engine,
            step=self.state.before + self.state.step,
            run=asdict(self.state),
            best=self.best,
            **self._layout(),
            keep=self.config.train.keep_checkpoints,
        )
        telemetry.flush()

    def _layout(self) -> dict[str, Any]:
        return {"zero_stage": self.config.train.zero_stage, "architecture": self.architecture}

    def _outcome(self, source: StepSource, *, refit: bool) -> Outcome:
        assert self.best is not None
        choice = self.state.choice or _unselected(self.architecture)
        record = choice | {
            "steps": self.state.best_step,
            "epoch": self.state.best_step / source.steps_per_epoch,
            "refit": refit,
            "trained_rows": len(source.features),
        }
        return Outcome(self.best, choice["label_weight"], choice["label_temperature"], record)


def trained_rows(features: PairFeatures, split: ClassSplit, *, refit: bool) -> npt.NDArray[np.int64]:
    """Return the rows that may be trained on: partition train, all labels among the trained classes."""
    mask = training_rows(features.labels, split, refit=refit)
    return np.flatnonzero(mask & (features.partition == "train"))


def held_out_rows(features: PairFeatures, split: ClassSplit) -> npt.NDArray[np.int64] | None:
    """Return the validation rows: of pseudo-unseen classes, or of the val partition without a class split.

    None where nothing is held out: the last step is then kept, with the default score settings.
    """
    if split.pseudo_unseen:
        groups = ClassGroups((), (), split.pseudo_unseen).of_items(features.labels)
        return np.flatnonzero(groups == "held")
    return np.flatnonzero(features.partition == "val") if split.kind == "none" else None


def _unselected(architecture: dict[str, Any]) -> dict[str, Any]:
    has_labels = LABEL in {block.name for block in build_network(architecture).blocks}
    return {
        "rows": "none: no class was held out",
        "label_weight": _DEFAULT_LABEL_WEIGHT if has_labels else 0.0,
        "label_temperature": 1.0,
    }


def _progress(
    state: RunState, until: int, stream: TextIO | None
) -> contextlib.AbstractContextManager[Progress | None]:
    if rank() != 0:
        return contextlib.nullcontext()
    return Progress(f"train ({state.phase})", total=until - state.step, unit="steps", stream=stream)
