"""One page: batch → step → push → positives → log. What every Ray Train worker does, and nothing else trains here.

The training thread makes no Ray call: the loader decodes on its own thread and the bank client talks on its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cluster.bank.alarm import alarms_of
from cluster.bank.asked import shared_out
from cluster.bank.spec import BankSpec
from cluster.training.agree import Poll, from_first_rank, together
from cluster.training.cached import CachedLoader
from cluster.training.crew import crew_of
from cluster.training.failure import Halt, failure_of, read_failure, write_failure
from cluster.training.finite import FiniteWatch
from cluster.training.hang import HangWatch
from cluster.training.job import Job, Summary
from cluster.training.laggard import Laggard
from cluster.training.length import Length, batch_of, length_from
from cluster.training.lost import write_ranks
from cluster.training.meter import StepMeter
from cluster.training.overseer import Overseer
from cluster.training.passes import passes
from cluster.training.runlog import RunLog, note_event
from cluster.training.seat import Seat
from cluster.training.skipped import SkippedVideos
from pipelines.dataset.manifest import load_manifest
from pipelines.dataset.patience import Patience
from pipelines.loader import LoaderSpec, TrainLoader
from vidssl.batch import ClipBatch, Embeddings, Positives
from vidssl.distributed import gather_objects, synchronise_norms
from vidssl.errors import VidsslError
from vidssl.methods import Method, StepOutput, build_method
from vidssl.optimizers import build_optimizer, clip_gradients
from vidssl.saved.checkpoint import (
    Meta,
    choose_checkpoint,
    random_state,
    read_checkpoint,
    read_meta,
    read_ranks,
    restore_random_state,
    save_checkpoint,
)
from vidssl.saved.run_folder import RunFolder
from vidssl.saved.trained import artifact, encoder_state
from vidssl.schedule import learning_rate
from vidssl.transfer import Later

if TYPE_CHECKING:
    from cluster.bank.client import BankClient

__all__ = ["run"]


def run(job: Job, seat: Seat) -> Summary:
    """One attempt of one rank. What it raises is tried again, what it returns is final."""
    folder = RunFolder(job.folder)
    if read_failure(folder) is not None:  # an attempt before met a user's mistake: meeting it again helps nobody
        return Summary(0)
    try:
        with Worker(job, seat) as worker:
            return worker.train()
    except Halt as halt:
        failure = halt.failure
        if not failure.again:
            return Summary(0, failure=failure)
        if seat.rank == 0:
            note_event(folder, f"{failure.sentence}; the workers begin again", restart=True)
        raise failure.error() from halt
    except (OSError, VidsslError) as error:
        failure = failure_of(error, folder)
        if not failure.again and seat.world == 1:
            return Summary(0, failure=failure)
        if not failure.again:  # the others wait for this rank: only Ray can end them
            write_failure(folder, failure)
        else:
            what = f"rank {seat.rank}: {failure.sentence}; the workers begin again"
            note_event(folder, what, restart=True)
        raise


class Worker:
    """One rank of one attempt: everything that is opened is closed, whatever happens."""

    def __init__(self, job: Job, seat: Seat) -> None:
        self.job, self.folder = job, RunFolder(job.folder)
        self.recipe = crew_of(job.recipe, seat.world)
        self.rank, self.world, self.device = seat.rank, seat.world, seat.device
        self.open = contextlib.ExitStack()
        self._settle_numerics()
        write_ranks(self.folder, seat)
        # The driver saw manifest and shards: what has left since is waited for.
        self.manifest = load_manifest(job.data, "nothing", Patience(self.recipe.loader.patience, self._say))
        self.start = self._start()
        rows = self.manifest.training_rows()
        self.length = Length(self.recipe.trainer, len(rows))
        self.method = build_method(self.recipe, self.recipe.seed, len(self.manifest), rows).to(self.device)
        if self.recipe.model.sync_bn:
            synchronise_norms(self.method, self.device)
        self.optimizer = build_optimizer(self.recipe.optim, [p for p in self.method.parameters() if p.requires_grad])
        self.loader = CachedLoader(self._loader(), job.kept) if job.kept else self._loader()
        self.open.callback(self.loader.close)
        self.bank = self._bank_client()
        if self.start:
            self._resume()
        else:
            self._start_from_others()
        self.ddp = _distributed(self.method, self.world, self.device)
        self.meter = StepMeter(
            self.loader,
            self.bank,
            self.method.trained_view,
            self.recipe.trainer.batch * self.recipe.clips.per_video,
            self.device,
            self.ddp,
        )
        self.alarms, self.laggard = alarms_of(job.bank_spec), Laggard(self.folder)
        self.finite = FiniteWatch(self.recipe, self.folder, self.length.total)
        self.stop_poll, self.overseer = Poll(self.device), Overseer(self.folder, job.lock)
        self.hang = self.open.enter_context(HangWatch(self.folder, self.rank, self.recipe.trainer.hang_s))
        self.log = self.open.enter_context(RunLog(self.folder, self.start)) if self.rank == 0 else None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *reason: object) -> None:
        self.open.close()

    def train(self) -> Summary:
        """The loop: from the last checkpoint to the last step, or to the step at which the run is asked to stop.

        Raises:
            Halt: on all ranks: a loss that is not finite, a disk that cannot be written.
        """
        trainer, total = self.recipe.trainer, self.length.total
        ends = max(min(total, self.job.until or total), self.start)
        self.method.train()
        for step in range(self.start, ends):
            self.hang.step()
            batch = self.meter.timed_next()
            positives = self._positives(step, batch)
            self._set_rate(step)
            self.optimizer.zero_grad(set_to_none=True)
            out = passes(self.ddp, batch, positives, trainer.accumulate, self._autocast)
            self.finite.note(step, out.loss, batch.on_host("instance"))
            self.method.before_update(batch)
            if out.update:
                if self.recipe.optim.clip is not None:
                    clip_gradients(self.optimizer, self.recipe.optim.clip)
                self.optimizer.step()
            self._push(out, batch, step)
            self.meter.step_done(out)
            if (step + 1) % trainer.log_every_steps == 0 or step == self.start:
                self._log(step, batch.epoch)
            stop, passed = self._asked_to_stop(step), self.length.passed(step)
            if (step + 1) % trainer.checkpoint_every_steps == 0 or step + 1 == ends or stop or passed:
                self._save(step + 1, batch.epoch, stop or step + 1 == ends)
            if stop:
                return Summary(step + 1, stopped=True)
        return Summary(ends, stopped=ends < total)

    def _positives(self, step: int, batch: ClipBatch) -> Positives | None:
        if self.bank is None or not self.method.needs_positives(step):
            return None
        return self.bank.take(step, batch.on_host("instance"))

    def _push(self, out: StepOutput, batch: ClipBatch, step: int) -> None:
        if self.bank is None:
            return
        soon = step + self.bank.spec.horizon
        wanted = self.loader.upcoming(soon - step) if self.method.needs_positives(soon) else None
        views = {view: Later(rows.to(torch.float32)) for view, rows in out.embeddings.items()}
        pushed = Embeddings(views=views, instance=batch.on_host("instance"), step=step, rank=self.rank)
        self.bank.push(pushed, wanted, soon)

    def _log(self, step: int, epoch: int) -> None:
        self.finite.settle()
        row, log = self.meter.read(step, epoch, self.optimizer.param_groups[0]["lr"]), self.log
        together(lambda meet: None if log is None else log.write(row), self.folder, self.device)
        for said in (
            *(one.note(row) for one in self.alarms),
            self.laggard.note(self.meter.own, row["step_ms"], self.device),
        ):
            if self.rank == 0 and said:
                note_event(self.folder, said)
        for line in self.method.news():
            if self.rank == 0:
                note_event(self.folder, line)

    def _asked_to_stop(self, step: int) -> bool:
        # One number per few steps is shared, so that all ranks leave after the same step.
        if step % 4:
            return False
        flags = (self.folder.stop_flag, self.folder.resize_flag)
        return self.stop_poll.heard(self.rank == 0 and (any(flag.exists() for flag in flags) or self.overseer.gone()))

    def _save(self, done: int, epoch: int, last: bool) -> None:
        self.finite.settle()
        together(lambda meet: self._checkpoint(done, epoch, meet, last), self.folder, self.device)

    def _checkpoint(self, done: int, epoch: int, meet: Callable[[], None], last: bool) -> None:
        if self.rank == 0:
            self.overseer.refuse_another()
        meet()
        state: dict[str, Any] = {"loader": self.loader.state_dict(), "random": random_state()}
        if self.bank is not None:
            self.bank.drain()
            state["bank"] = self.bank.state_dict()
        shared = (
            {"method": self.method.state_dict(), "optimizer": self.optimizer.state_dict()} if self.rank == 0 else None
        )
        meta = Meta(
            done,
            self.job.recipe.fingerprint(),
            self.manifest.hash,
            self.world,
            epoch,
            len(self.manifest),
            self.recipe.settings(),
            seen=self.loader.seen,
            passed=self.length.passed(done - 1),
        )
        keep, unset = self.recipe.trainer.keep, self.method.unset
        save_checkpoint(self.folder, meta, self.rank, state, shared, gather_objects, keep, unset)
        if self.bank is not None:  # after the model: where the disk is full now, the weights are safe
            meet()
            if self.rank == 0:
                # A large bank takes seconds: it is of this moment, and written while training goes on.
                self.bank.save(str(self.folder.bank), done, wait=last or self.recipe.trainer.deterministic)
            meet()
        self.meter.skip_interval()

    def _start(self) -> int:
        """Steps done at the newest whole checkpoint: machines may see a shared folder differently, rank 0 chooses for all."""
        chosen = choose_checkpoint(self.folder, lambda line: note_event(self.folder, line)) if self.rank == 0 else None
        return from_first_rank(chosen or 0, self.device)

    def _resume(self) -> None:
        """What all ranks have alike is rank 0's; of what each has for itself, other workers take what is of use to them."""
        meta = read_meta(self.folder, self.start)
        same = (meta.world, batch_of(meta, self.recipe.trainer)) == (self.world, self.recipe.trainer.batch)
        # A rank that is new takes another's random states: all draws of training have an address and need none.
        _, shared, own = read_checkpoint(self.folder, self.start, self.rank % meta.world)
        self.length = length_from(self.recipe.trainer, len(self.manifest.training_rows()), meta)
        self.method.load_state_dict(shared["method"])
        self.optimizer.load_state_dict(shared["optimizer"])
        self.loader.load_state_dict(own["loader"])
        restore_random_state(own["random"])
        if self.bank is not None:
            self.bank.load_state_dict(own["bank"] if same else self._shared_out(self.bank.spec))

    def _shared_out(self, spec: BankSpec) -> dict[str, Any]:
        """The positives that other ranks had for the next steps, for the rows that are this rank's now."""
        soon = [step for step in range(self.start, self.start + spec.horizon) if self.method.needs_positives(step)]
        needed = {step: self.loader.upcoming(step - self.start + 1) for step in soon}
        return shared_out([rank["bank"] for rank in read_ranks(self.folder, self.start)], needed, spec)

    def _start_from_others(self) -> None:
        wanted = self.recipe.method
        if wanted.first_from is not None:
            self.method.start_from(artifact(wanted.first_from, wanted.view))
        if wanted.second_from is not None and wanted.second_view in self.recipe.views:
            self.method.load_encoder(wanted.second_view, encoder_state(wanted.second_from, wanted.second_view))

    def _say(self, sentence: str) -> None:
        note_event(self.folder, f"rank {self.rank}: {sentence}" if self.world > 1 else sentence)

    def _loader(self) -> TrainLoader:
        recipe, say = self.recipe, self._say
        spec = LoaderSpec(
            clips=recipe.clips,
            augment=recipe.augment,
            loader=recipe.loader,
            views=recipe.views,
            batch=recipe.trainer.batch,
            seed=recipe.seed,
            flow_channels=recipe.model.flow_channels,
        )
        place = {"rank": self.rank, "world": self.world, "device": self.device}
        skipped, split = SkippedVideos(self.folder, self.rank, say), self.manifest.training_split
        return TrainLoader(self.manifest, spec, **place, split=split, say=say, on_bad=skipped)

    def _bank_client(self) -> BankClient | None:
        if self.job.bank is None or self.job.bank_spec is None:
            return None
        from cluster.bank.client import BankClient

        # One rank tells the user; what others meet is in the log's numbers, which are of the worst rank.
        say = self._say if self.rank == 0 else None
        client = BankClient(self.job.bank, self.job.bank_spec, self.rank, say=say)
        self.open.callback(client.close)
        attempt = client.reset(self._bank_source(), self.world, self.start) if self.rank == 0 else 0
        client.join(from_first_rank(attempt, self.device))
        return client

    def _bank_source(self) -> str | None:
        """What the bank begins with: what was typed for this step, else the newest whole snapshot, or nothing."""
        typed = self.job.bank_from
        if typed is not None and typed.step == self.start:
            return typed.source
        return str(self.folder.bank) if self.start else None

    def _set_rate(self, step: int) -> None:
        rate = learning_rate(self.recipe.optim, step, self.length.span, self.length.at(step))
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.recipe.trainer.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _settle_numerics(self) -> None:
        torch.set_num_threads(self.recipe.trainer.cpus_per_worker)
        torch.manual_seed(self.recipe.seed)
        if self.recipe.trainer.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = not self.recipe.trainer.deterministic  # clips of a run have one size


def _distributed(method: Method, world: int, device: torch.device) -> nn.Module:
    if world == 1:
        return method
    return nn.parallel.DistributedDataParallel(
        method,
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,  # queues are equal on all ranks by construction
        find_unused_parameters=method.unused_parameters,
    )
