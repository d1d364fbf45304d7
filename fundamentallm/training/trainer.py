"""The training loop.

Shapes: B sequences in a batch, T tokens in a sequence, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fundamentallm.checkpoint import save_checkpoint
from fundamentallm.config import Config
from fundamentallm.data.batches import BatchOrder, TokenWindows
from fundamentallm.data.token_store import PreparedData
from fundamentallm.devices import autocast, describe_device, resolve_precision
from fundamentallm.errors import CheckpointError, TrainingError
from fundamentallm.evaluation.evaluator import mean_loss
from fundamentallm.models import BaseModel
from fundamentallm.recording import Recording
from fundamentallm.runs import Metrics, RunDirectory
from fundamentallm.training.budget import Budget
from fundamentallm.training.callbacks import (
    BaseCallback,
    CheckpointSaved,
    EndReason,
    Evaluated,
    Event,
    Sampled,
    StepLogged,
    TrainingEnded,
    TrainingStarted,
    Working,
    notify,
)
from fundamentallm.training.optimizers import build_optimizers
from fundamentallm.training.sampling import continue_prompt
from fundamentallm.training.schedules import learning_rate_factor
from fundamentallm.training.stopping import StopFlag

_UNCERTAIN = 0.02  # nats: what 8,192 characters may miss of the loss on the whole held-out part


@dataclass
class Counters:
    """Everything besides weights and optimizers that a resumed training must know to go on exactly."""

    step: int = 0
    tokens: int = 0
    elapsed_seconds: float = 0.0
    best_val_loss: float | None = None
    best_step: int = 0
    stale_evaluations: int = 0


class Trainer:
    """Trains one model on one prepared text, into one run directory.

    Args:
        config: The whole configuration; saved beside the weights.
        model: On the device it is to be trained on.
        data: Tokens and tokenizer.
        run: Where checkpoints go. Curves, samples and status are written by a ``RunRecorder`` among the callbacks.
        callbacks: Told of everything, in order.
        stop: Ends the training early when set.
    """

    def __init__(
        self,
        config: Config,
        model: BaseModel,
        data: PreparedData,
        run: RunDirectory,
        callbacks: Sequence[BaseCallback] = (),
        stop: StopFlag | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.data = data
        self.run = run
        self.callbacks = callbacks
        self.stop = stop or StopFlag(run)
        settings, length = config.training, config.model.sequence_length
        self.device = next(model.parameters()).device
        self.precision = resolve_precision(settings.precision, self.device)
        self.optimizers = build_optimizers(model, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.windows = TokenWindows(data.train, length)
        self.order = BatchOrder(len(data.train), length, settings.batch_size, settings.seed)
        self.tokens_per_step = settings.batch_size * settings.gradient_accumulation_steps * length
        self.steps_per_epoch = self.order.batches_per_epoch / settings.gradient_accumulation_steps
        self.forward = torch.compile(model) if settings.compile else model
        self._recording: Recording | None = None
        self._is_prepared = False
        self.counters = Counters()
        self.budget = Budget(settings, self.steps_per_epoch)
        # Sums stay on the device, so that a GPU is not waited for at every step.
        self._loss_sum = torch.zeros((), device=self.device)
        self._loss_count = 0
        self._grad_norm = torch.zeros((), device=self.device)
        self._learning_rate = 0.0
        self._logged_tokens = 0
        self._training_since = 0.0
        self._saved_step: int | None = None

    def train(self) -> TrainingEnded:
        """Take steps until a limit is reached, the loss is good enough, or somebody asks to stop.

        Raises:
            TrainingError: The loss is no longer a number, or a checkpoint cannot be saved; the last good checkpoint
                is intact.
        """
        try:
            return self._train()
        finally:
            # It holds the trainer, which else would outlive its use.
            self._recording, self._is_prepared = None, False

    def _train(self) -> TrainingEnded:
        self._prepare()
        self.budget.start(self.counters.elapsed_seconds)
        self._notify(self._started())
        if self.counters.step == 0:
            self._measure_beginning()
        self._training_since = time.perf_counter()
        reason = self._reason_to_end()
        while reason is None:
            started = time.perf_counter()
            self.train_step()
            self.budget.add_step(time.perf_counter() - started)
            reason = self._after_step()
        if self._saved_step != self.counters.step:
            self._save(is_best=False)  # stopped before the first step
        return self._ended(reason)

    def train_step(self) -> None:
        """One optimizer step: forward and backward over every accumulated batch, then one update."""
        if not self._is_prepared:
            self._prepare()
        learn = self._recording or self._add_gradients
        rounds = self.config.training.gradient_accumulation_steps
        self._set_learning_rate()
        for round_ in range(rounds):
            learn(*self._batch(self.counters.step * rounds + round_))  # each (B, T)
            self._loss_count += 1
        self._update_weights()
        self.counters.step += 1
        self.counters.tokens += self.tokens_per_step

    def _add_gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Add what a batch says to the gradients, and its loss to the sum of losses, which is returned."""
        loss = self._loss(inputs, targets)
        self.scaler.scale(loss / self.config.training.gradient_accumulation_steps).backward()
        self._loss_sum += loss.detach()
        return self._loss_sum

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of the next token, nats, in float32."""
        with autocast(self.device, self.precision):
            logits = self.forward(inputs)  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def _update_weights(self) -> None:
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)  # type: ignore[arg-type] # has what a scaler needs of torch's own
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        self._grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.training.gradient_clip_norm is not None:
            limit = self.config.training.gradient_clip_norm
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, self._grad_norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)  # type: ignore[arg-type]
        self._forget_gradients()
        self.scaler.update()

    def _forget_gradients(self) -> None:
        for optimizer in self.optimizers:  # a recording goes on with the memory it was made with
            optimizer.zero_grad(set_to_none=self._recording is None)

    def _set_learning_rate(self) -> None:
        step = self.counters.step
        factor = learning_rate_factor(self.config.training, self.budget.progress_during(step), step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        self._learning_rate = self.config.training.learning_rate * factor

    def _batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the batch with this number, each (B, T), on the device."""
        inputs, targets = self.windows.__getitems__(self.order.starts(index))
        meanwhile = self.device.type == "cuda"  # copied while the GPU still computes
        if meanwhile:
            inputs, targets = inputs.pin_memory(), targets.pin_memory()
        return inputs.to(self.device, non_blocking=meanwhile), targets.to(self.device, non_blocking=meanwhile)

    def _after_step(self) -> EndReason | None:
        """Log, measure and save whatever is due; why the training should end, if it should."""
        settings, step = self.config.training, self.counters.step
        reason = self._reason_to_end()
        ends = reason is not None
        evaluates = ends or (step % settings.eval_every_n_steps == 0 and self.budget.has_time_to_measure())
        saves = ends or step % settings.save_every_n_steps == 0
        if not (evaluates or saves or step % settings.log_every_n_steps == 0):
            return None
        train_loss = self._mean_train_loss()
        started = time.perf_counter()  # a GPU has caught up by now
        tokens_per_second = (self.counters.tokens - self._logged_tokens) / (started - self._training_since)
        val_loss, is_best = self._evaluate() if evaluates else (None, False)
        self._log(train_loss, val_loss, tokens_per_second)
        if evaluates:
            self._sample()
            reason = self._reached(val_loss) or reason  # reached with the last step is reached
        if saves or is_best or reason is not None:
            self._save(is_best)
        self._logged_tokens, self._training_since = self.counters.tokens, time.perf_counter()
        if evaluates:
            self.budget.add_measurement(self._training_since - started)
        return reason

    def _reason_to_end(self) -> EndReason | None:
        return "stopped" if self.stop.is_set() else self.budget.used_up(self.counters.step)

    def _reached(self, val_loss: float | None) -> EndReason | None:
        """Whether the validation loss gives a reason to end."""
        settings, tokens = self.config.training, self.data.validation.tokens
        patience, target = settings.early_stopping_patience, settings.target_val_loss
        if target is not None and val_loss is not None and val_loss <= target + _UNCERTAIN:
            # The measured part may be easier or harder than the rest; only the whole of it counts.
            whole = settings.eval_tokens is None or settings.eval_tokens >= len(tokens)
            if (val_loss if whole else self._validation_loss(max_tokens=None)) <= target:
                return "target_val_loss"
        if patience is not None and self.counters.stale_evaluations >= patience:
            return "early_stopping"
        return None

    def _evaluate(self) -> tuple[float, bool]:
        """Measure the validation loss (nats per token) and whether it is the best so far."""
        counters = self.counters
        val_loss = self._validation_loss(self.config.training.eval_tokens)
        is_best = counters.best_val_loss is None or val_loss < counters.best_val_loss
        if is_best:
            counters.best_val_loss, counters.best_step, counters.stale_evaluations = val_loss, counters.step, 0
        elif counters.step % self.config.training.eval_every_n_steps == 0:  # one made because of a stop does not count
            counters.stale_evaluations += 1
        best = counters.best_val_loss
        assert best is not None
        self._notify(Evaluated(counters.step, val_loss, best, is_best))
        return val_loss, is_best

    def _validation_loss(self, max_tokens: int | None) -> float:
        return mean_loss(
            self.model,
            self.data.validation.tokens,
            self.config.model.sequence_length,
            max_tokens=max_tokens,
            precision=self.precision,
        )

    def _measure_beginning(self) -> None:
        """The first point of the curves: what the model knows before it has learnt anything."""
        started = time.perf_counter()
        val_loss = self._validation_loss(self.config.training.eval_tokens)
        self._notify(Evaluated(0, val_loss, val_loss, is_best=False))
        self._log(None, val_loss, None)
        self._sample()
        self.budget.add_measurement(time.perf_counter() - started)

    def _mean_train_loss(self) -> float:
        """Mean over the batches since it was last asked for; raises TrainingError when it is not a number."""
        loss = float(self._loss_sum) / max(1, self._loss_count)
        if not torch.isfinite(torch.tensor(loss)):
            raise TrainingError(
                f"The training loss became infinite or not a number by step {self.counters.step}: "
                f"train again with a lower learning rate{self._learning_rates()}{self._what_remains()}."
            )
        self._loss_sum.zero_()
        self._loss_count = 0
        return loss

    def _log(self, train_loss: float | None, val_loss: float | None, tokens_per_second: float | None) -> None:
        counters = self.counters
        metrics = Metrics(
            step=counters.step,
            tokens=counters.tokens,
            elapsed_seconds=self.budget.elapsed_seconds,
            train_loss=train_loss,
            val_loss=val_loss,
            learning_rate=self._learning_rate,
            grad_norm=float(self._grad_norm) if counters.step else None,
            tokens_per_second=tokens_per_second,
        )
        done, remaining = self.budget.progress(counters.step), self.budget.remaining_seconds(counters.step)
        self._notify(StepLogged(metrics, self.budget.max_steps, done, remaining))

    def _sample(self) -> None:
        prompt = self.config.training.sample_prompt
        text = continue_prompt(
            self.model, self.data.tokenizer, prompt, self.config.generation, seed=self.config.training.seed
        )
        self._notify(Sampled(self.counters.step, prompt, text))

    def _save(self, is_best: bool) -> None:
        """Write a checkpoint; raises TrainingError when the weights are no numbers or there is no room."""
        step = self.counters.step
        norms = torch._foreach_norm([p.detach() for p in self.model.parameters()])
        if not torch.stack(list(norms)).isfinite().all():
            raise TrainingError(
                f"The weights became infinite or not a number by step {step}: "
                f"train again with a lower learning rate{self._learning_rates()}{self._what_remains()}."
            )
        path = self.run.checkpoint_path(step)
        try:
            state = self.state_dict()
            save_checkpoint(path, self.model, self.data.tokenizer, self.config, trainer_state=state, step=step)
            self.run.mark_checkpoint("last", step)
            if is_best:
                self.run.mark_checkpoint("best", step)
        except (CheckpointError, OSError) as error:
            reason = str(error).removesuffix(".")
            raise TrainingError(f"Training ended at step {step}: {reason}{self._what_remains()}.") from error
        self.run.prune_checkpoints(self.config.training.keep_last_n_checkpoints)
        self._saved_step = step
        self._notify(CheckpointSaved(step, path, is_best))

    def _learning_rates(self) -> str:
        settings = self.config.training
        muon = f", muon_learning_rate {settings.muon_learning_rate:g}" if settings.optimizer == "muon" else ""
        return f" (it was {settings.learning_rate:g}{muon})"

    def _what_remains(self) -> str:
        return f"; {self.run.checkpoint('last').name} is intact" if self.run.has_checkpoint else ""

    def _prepare(self) -> None:
        """Compile and record before the clock starts, by forward and backward passes that change nothing."""
        self._is_prepared = True
        records = Recording.suits(self.device) and self.precision != "fp16" and self.model.replayable
        if not (self.config.training.compile or records):
            return
        if self.config.training.compile:
            self._notify(Working("Compiling the model", None))
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            if records:
                self._recording = Recording(self._add_gradients)
                self._recording.record(*self._batch(0))
            else:
                self._add_gradients(*self._batch(0))
        self._forget_gradients()
        self._loss_sum.zero_()

    def _started(self) -> TrainingStarted:
        return TrainingStarted(
            run=self.run.path,
            step=self.counters.step,
            max_steps=self.budget.max_steps,
            parameters=self.model.num_parameters(),
            vocab_size=self.data.tokenizer.vocab_size,
            train_tokens=len(self.data.train),
            validation_tokens=len(self.data.validation),
            tokens_per_step=self.tokens_per_step,
            device=describe_device(self.device, self.precision),
        )

    def _ended(self, reason: EndReason) -> TrainingEnded:
        counters, seconds = self.counters, self.budget.elapsed_seconds
        messages: dict[EndReason, str] = {
            "max_steps": f"Finished {counters.step} steps.",
            "max_epochs": f"Finished {counters.step / self.steps_per_epoch:.3g} epochs at step {counters.step}.",
            "max_minutes": f"The time is up, at step {counters.step}.",
            "early_stopping": f"Stopped early at step {counters.step}: the validation loss no longer improves.",
            "target_val_loss": f"Reached the target validation loss at step {counters.step}.",
            "stopped": f"Stopped at step {counters.step}; everything is saved, and resume continues from here.",
        }
        result = TrainingEnded(
            reason, counters.step, counters.best_step, counters.best_val_loss, seconds, messages[reason]
        )
        self._notify(TrainingEnded(**vars(result)))
        return result

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to go on exactly: plain values and tensors."""
        self.counters.elapsed_seconds = self.budget.elapsed_seconds
        return {
            "counters": vars(self.counters),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; learning rates and decay come from this trainer's configuration.

        Raises:
            CheckpointError: The state belongs to another optimizer or model.
        """
        try:
            self.counters = Counters(**state["counters"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
                optimizer.load_state_dict(saved)
                for group, values in zip(optimizer.param_groups, own, strict=True):
                    group.update(values)
            self.scaler.load_state_dict(state["scaler"])
            torch.set_rng_state(state["random"])
            if self.device.type == "cuda" and state["cuda_random"] is not None:
                torch.cuda.set_rng_state(state["cuda_random"], self.device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"The trainer's state does not fit this configuration: {reason}.") from None
        self._logged_tokens = self.counters.tokens
        self._saved_step = self.counters.step

    def _notify(self, event: Event) -> None:
        notify(self.callbacks, event)
