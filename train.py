"""Pre-train a backbone with SwAV (Caron et al., NeurIPS 2020), from images to a k-NN score.

    make train [CONFIG=config/demo.yaml] [ARGS="data.path=/my/images optimizer.base_lr=1.2"]
    deepspeed train.py RECIPE.yaml [key=value ...]       (or torchrun, srun, or plain python: one process)

Settings and their defaults are in config/default.yaml. The same command again resumes the run. Exit codes: 0 done or
saved on a signal, 1 training could not go on, 2 a mistake in the settings or the data.
"""

from __future__ import annotations

import math
import sys
from contextlib import closing
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from config.recipe import load_config
from launch.agreement import Agreed, Agreement
from launch.cluster import Cluster, cluster_from_environment, connected
from launch.report import mistakes_end_the_run, print_error
from launch.steps import Clock, SaveRhythm, SkippedSteps
from launch.stopping import STOPPED_EARLY, StopSignal, TrainingStopped, not_finite, stopping_on_bad_data
from launch.watch import mark_ending, watched


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    cluster, stop_signal = Cluster(), StopSignal()
    with mistakes_end_the_run(cluster):
        cluster = cluster_from_environment()
        config = load_config([a for a in arguments if not a.startswith("--local_rank=")])  # deepspeed's addition
    stop_signal.at_once = cluster.world_size == 1
    try:
        mark_ending(train(config, cluster, stop_signal))
    except TrainingStopped as error:
        print_error(error, cluster if error.on_all_ranks else Cluster())
        return 1
    return 0


def train(config: DictConfig, cluster: Cluster, stop_signal: StopSignal) -> str:
    """The whole run; returns what it came to. What a user can get wrong is found before the processes meet."""
    import torch

    from evaluation.features import labelled_data
    from evaluation.knn import backbone_knn, pixel_knn
    from launch.build import build_loader, build_network, build_queue
    from launch.checkpoint import NotSaved, latest_checkpoint, load_checkpoint, save_checkpoint
    from launch.engine import build_engine, input_dtype
    from launch.fit import fit
    from launch.journal import Journal
    from launch.profile import profile_steps
    from launch.zero import load_loss_scale, loss_scale, publish
    from model.loss import swapped_prediction
    from model.monitor import CodeMonitor, advice
    from model.optimizer import build_optimizer, set_step
    from model.schedule import warmup_cosine
    from model.sinkhorn import hard_codes, sinkhorn
    from model.weights import load_weights
    from pipeline.batch import split_batch
    from pipeline.crops import crops_from_config
    from pipeline.dataset import open_splits

    clock, device = Clock(), cluster.device()
    journal = Journal(Path(config.run.directory), cluster.main)
    checkpoints = journal.directory / "checkpoints"

    with mistakes_end_the_run(cluster):
        # ---- data and settings -------------------------------------------------------------------
        table, test = open_splits(config.data, progress=cluster.main)
        choices = fit(config, len(table.usable()), cluster)
        if journal.finished(config):
            return "done"
        crops, batch = crops_from_config(config.crops, config.pipeline.backend), config.run.batch_size
        labelled = labelled_data(table, test, config.evaluation.max_train)
        loader = build_loader(config, table, crops, cluster)

        # ---- network, prototypes, queue and optimizer --------------------------------------------
        torch.manual_seed(config.run.seed)
        sizes = [size for size, _ in crops.groups] + [config.evaluation.size]
        network = build_network(config.model, sizes).to(device)
        if config.model.weights is not None:
            load_weights(network, Path(config.model.weights))
            network.prototypes.normalize()
        assigning, queue, dtype = list(config.swav.assigning), build_queue(config, cluster), input_dtype(config)
        heads = config.model.heads
        monitor = CodeMonitor(config.model.prototypes, config.model.embedding_dim, device, heads)
        optimizer, settings, steps = build_optimizer(config.optimizer, network), config.optimizer, len(loader)
        learning_rates = warmup_cosine(
            steps, config.run.epochs, settings.warmup_epochs, settings.start_lr, settings.base_lr, settings.final_lr
        )

        journal.take()
        for choice in choices:
            journal.say(f"auto: {choice}")
        journal.check_same_run(config, checkpoints, len(table.usable()), table.digest())

    stop_signal.at_once, total_steps, parts = False, config.run.epochs * steps, config.engine.accumulation
    rhythm, skipped = SaveRhythm(config.checkpoint.every, steps), SkippedSteps(config.engine.max_skipped_steps)
    with connected(cluster, config.launch.timeout), closing(loader), closing(journal):
        # ---- the engine, and resuming from the last checkpoint -----------------------------------
        step, last_epoch = 0, {}
        with mistakes_end_the_run(cluster):
            engine = build_engine(config, network, optimizer, cluster, device)
            last_saved = latest_checkpoint(checkpoints, say=journal.say)
            if last_saved is not None:
                state = load_checkpoint(last_saved, network, optimizer, queue)
                publish(engine)
                load_loss_scale(engine, state["loss_scale"])
                loader.load_state_dict(state["loader"])
                monitor.load_state_dict(state["monitor"], cluster.rank)
                clock.load_state_dict(state["clock"])
                step, last_epoch = state["step"], state["last_epoch"]
                journal.say(f"resuming from {last_saved} (step {step})")
        journal.open(config, done_steps=step, total_steps=total_steps)

        # ---- what the untrained network and pixels give ------------------------------------------
        def knn() -> float:
            return backbone_knn(engine, network, labelled, crops, config, device, dtype) if labelled else math.nan

        if cluster.add_up([stop_signal.received is not None])[0]:
            journal.say(STOPPED_EARLY)
            return "not begun"
        if last_saved is None and labelled is not None:
            pixels = pixel_knn(labelled, crops, config, device)
            journal.record("untrained.json", {"knn_random_init": knn(), "knn_raw_pixels": pixels})
        clock.start_training()
        first_step, agreement = step, Agreement(cluster.world_size, device, config.run.log_every)
        profile_steps(config, total_steps - step, agreement.times, engine, monitor, journal)

        def observe(agreed: Agreed | None) -> None:
            """Log the step that all ranks have agreed on, or end the run if a loss was not finite."""
            if agreed is None:
                return
            if agreed.bad_step is not None:
                raise not_finite(agreed.bad_step, f"the loss is not finite on {agreed.bad_ranks} processes", last_saved)
            if agreed.step % config.run.log_every == 0:
                rate, speed = learning_rates[agreed.step - 1], clock.rate((step - first_step) * batch)
                values = {"epoch": epoch, "loss": agreed.loss, "lr": rate, "images_per_second": speed}
                if config.engine.precision == "fp16":
                    values |= {"skipped_steps": skipped.total / (step - first_step), "loss_scale": engine.loss_scale()}
                journal.log(agreed.step, values | {"ranks": agreed.ranks})

        def save(needed: bool) -> Path | None:
            observe(agreement.settle())  # never save weights that a bad loss has touched
            state = {
                "step": step,
                "clock": clock.state_dict(),
                "images": len(table.usable()),
                "digest": table.digest(),
                "monitor": monitor.state_dict(),
                "last_epoch": last_epoch,
                "loader": loader.state_dict(cluster.add_up),
                "loss_scale": loss_scale(engine),
                "config": OmegaConf.to_container(config),
            }
            keep = config.checkpoint.keep, config.checkpoint.keep_epochs * steps
            try:
                return save_checkpoint(checkpoints, state, network, optimizer, queue, *keep)
            except NotSaved as error:
                if needed:
                    raise TrainingStopped(f"{error}; the last good checkpoint: {last_saved}") from None
                journal.say(f"{error}; training goes on, the last good checkpoint: {last_saved}")
                return last_saved

        # ---- train -------------------------------------------------------------------------------
        for epoch in range(loader.position.epoch, config.run.epochs):
            for images in stopping_on_bad_data(agreement.times.waits(loader)):
                set_step(optimizer, learning_rates[step], frozen_prototypes=step < config.swav.freeze_prototypes)
                crop_tensors = [crop.to(device, dtype, non_blocking=True) for crop in images.crops]
                for part in split_batch(crop_tensors, len(images.rows), parts):
                    # embeddings and their scores against the prototypes, the queue's too once it is full (section 3.1)
                    active = queue if epoch >= config.swav.queue.start_epoch else None
                    queued, batch_here = None if active is None else active.queued(), len(images.rows) // parts
                    embeddings, scores, queue_scores = engine(part, batch_here, queued)
                    agreement.times.mark("codes")

                    # codes of the assigning crops, over the global batch and the queue (equations 3 to 5)
                    with torch.no_grad():
                        inputs = scores[assigning]
                        if queue_scores is not None:
                            inputs = torch.cat([queue_scores, inputs], dim=1)
                        codes = sinkhorn(inputs, config.swav.epsilon, config.swav.iterations, check=False, heads=heads)
                        codes = codes[:, -batch_here:]
                        if config.swav.hard:
                            codes = hard_codes(codes, heads)
                        if active is not None:
                            active.push(embeddings[assigning])

                    # every other crop predicts the codes (equations 1, 2 and 6)
                    agreement.times.mark("loss")
                    loss = swapped_prediction(codes, scores, assigning, config.swav.temperature, heads)
                    monitor.update(codes, embeddings[assigning], loss)
                    engine.backward(loss)
                    engine.step()  # moves the network after the last part
                step += 1
                skipped.count(step, engine.was_step_applied())

                agreed = agreement.exchange(step, loss, stop=stop_signal.received is not None, save=rhythm.wanted)
                observe(agreed)
                journal.progress(epoch, clock.rate((step - first_step) * batch))
                if step % steps and (rhythm.due(step, agreement) or agreement.stop):  # else at the end of the epoch
                    last_saved = save(needed=agreement.stop)
                    if agreement.stop:
                        journal.say(f"stopped by a signal, saved {last_saved}; the same command resumes from there")
                        return "saved"

            # ---- the end of an epoch -------------------------------------------------------------
            observe(agreement.settle())
            loader.account(cluster.add_up)
            last_epoch = monitor.summary()
            monitor.reset()
            journal.log(step, {"epoch": epoch, **last_epoch})
            for trouble in advice(last_epoch, config.model.prototypes):
                journal.warn(step, f"epoch {epoch + 1}: {trouble}")
            if rhythm.due(step, agreement) or agreement.stop:
                last_saved = save(needed=agreement.stop)
            if agreement.stop and epoch + 1 < config.run.epochs:
                journal.say(f"stopped by a signal, saved {last_saved}; the same command resumes from there")
                return "saved"
            if labelled and config.evaluation.every and (epoch + 1) % config.evaluation.every == 0:
                journal.log(step, {"epoch": epoch, "knn": knn()})
        seconds = clock.state_dict()

        # ---- the result --------------------------------------------------------------------------
        last_saved = save(needed=True)
        journal.finish(
            {
                "knn": knn() if labelled else None,
                **(journal.read("untrained.json") or {"knn_random_init": None, "knn_raw_pixels": None}),
                "prototypes": config.model.prototypes,
                **last_epoch,
                "code_entropy_limit": math.log(config.model.prototypes),
                "epochs": config.run.epochs,
                "steps": step,
                "skipped_steps": skipped.total,
                "images_per_second": step * batch / seconds["training_seconds"],
                "seconds": clock.state_dict()["seconds"],
                "world_size": cluster.world_size,
                "unreadable_images": cluster.merge(loader.bad),
                "checkpoint": str(last_saved),
            }
        )
        return "done"


if __name__ == "__main__":
    sys.exit(watched(main, sys.argv[1:]))
