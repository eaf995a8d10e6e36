"""Pre-train a backbone with SwAV, DeepCluster-v2 or SeLa-v2 (Caron et al., NeurIPS 2020), from images to a k-NN score.

    make train [CONFIG=config/demo.yaml] [ARGS="data.path=/my/images optimizer.base_lr=0.01"]
    deepspeed train.py RECIPE.yaml [key=value ...]       (or torchrun, srun, or plain python: one process)

Settings and their defaults are in config/default.yaml; `train.py --help KEY` explains a setting or a section.
The same command again resumes the run. Exit codes: 0 done or saved on a signal, 1 training could not go on, 2 a mistake
in the settings or the data.
"""

from __future__ import annotations

import math
import sys
from contextlib import closing
from pathlib import Path

from omegaconf import DictConfig

from common.cli import EXIT_FAILED, exit_on_mistake
from config.recipe import answered, check_given, load_config
from training.counters import Clock, SaveRhythm, SkippedSteps
from training.distributed import Cluster, cluster_from_environment, connected
from training.rank_status import mark_ending, tell_failure, watched
from training.step_agreement import Agreed, Agreement
from training.stopping import SAVED, STOPPED_EARLY, StopSignal, TrainingStopped, not_finite, stopping_on_bad_data


def main(arguments: list[str]) -> int:
    with exit_on_mistake():
        if answered(arguments, __doc__):
            return 0
    cluster, stop_signal = Cluster(), StopSignal()
    with exit_on_mistake(lambda: cluster.main):
        cluster = cluster_from_environment()
        config = load_config([a for a in arguments if not a.startswith("--local_rank=")])  # deepspeed's addition
        check_given(config)
    stop_signal.at_once = stop_signal.alone = cluster.world_size == 1
    try:
        mark_ending(train(config, cluster, stop_signal))
    except TrainingStopped as error:
        tell_failure(error, cluster.main, error.on_all_ranks)
        return EXIT_FAILED
    return 0


def train(config: DictConfig, cluster: Cluster, stop_signal: StopSignal) -> str:
    """The whole run; returns how it ended. A user's mistakes are reported before the processes connect."""
    import torch

    from evaluation.classifiers.knn import backbone_knn, untrained_knn
    from evaluation.report.watch import Watch
    from model.monitor import CodeMonitor, advice
    from model.optimizer.build import build_optimizer, set_step
    from model.optimizer.schedule import learning_rates_of
    from model.teacher import Teacher, momentum_at, only_views
    from pipeline.batch import split_batch
    from pipeline.crops import crops_from_config
    from pipeline.dataset.accounting import of_splits
    from pipeline.dataset.labelled import labelled_data
    from pipeline.dataset.open import open_splits
    from training.auto import check_before_data, fit
    from training.build import build_loader, build_objective, build_probe, build_queue, build_teacher, starting_network
    from training.checkpoint.save_load import NotSaved, latest_checkpoint
    from training.deepspeed_engine import build_engine, input_dtype
    from training.fastest_loader import choices_of, take_fastest
    from training.passes.epoch_targets import begin_epoch, build_clusters
    from training.passes.warm_start import warm_start
    from training.profiling.profile import profile_steps
    from training.run_directory import Journal
    from training.run_state import RunState

    clock, device, journal = Clock(), cluster.take_device(), Journal(Path(config.run.directory), cluster.main)
    checkpoints = journal.directory / "checkpoints"
    with exit_on_mistake(cluster.main):
        # ---- data and settings -------------------------------------------------------------------
        check_before_data(config, cluster, journal.begun_with())
        table, test = open_splits(config.data, progress=cluster.main)
        backends = choices_of(config, journal.begun_with(), cluster, table.pixels)
        choices = fit(config, table.images, cluster, journal.begun_with(), table)
        if journal.finished(config):
            return "done"
        crops = crops_from_config(config.crops, config.pipeline.backend, config.distill.crops)
        labelled = labelled_data(table, test, config.evaluation.max_train)
        loader = build_loader(config, table, crops, cluster, stop_signal.ends_wait)

        # ---- network, prototypes, queue and optimizer --------------------------------------------
        torch.manual_seed(config.run.seed)
        sizes = [*crops.networks_sizes, config.evaluation.size]
        network = starting_network(config.model, sizes, journal.begun_with() is not None, journal.say).to(device)
        swav, heads, prototypes = config.swav, config.model.heads, config.model.prototypes
        objective, dtype, batch = build_objective(config), input_dtype(config), config.run.batch_size
        clusters = build_clusters(config, loader, len(table), device)
        frozen_steps = math.inf if config.method == "deepclusterv2" else swav.freeze_prototypes
        probe = build_probe(config, network, table, labelled)
        monitor = CodeMonitor(prototypes, config.model.embedding_dim, device, heads)
        frozen_epochs, steps = config.model.freeze_backbone_epochs, len(loader)
        optimizer = build_optimizer(config.optimizer, network, frozen_epochs > 0)
        learning_rates = learning_rates_of(config.optimizer, steps, config.run.epochs)

        journal.take(choices)
        journal.check_same_run(config, table.images, table.digest())

    stop_signal.at_once, total_steps, parts = False, config.run.epochs * steps, config.engine.accumulation
    rhythm, skipped = SaveRhythm(config.checkpoint.every, steps), SkippedSteps(config.engine.max_skipped_steps)
    with connected(cluster, config.launch.timeout), closing(loader), closing(journal):
        # ---- the engine, and resuming from the last checkpoint -----------------------------------
        take_fastest(backends, config, table, loader, cluster, journal.say)
        step, last_epoch = 0, dict[str, float]()
        with exit_on_mistake(cluster.main):
            teacher = build_teacher(config, network, cluster, journal.say)
            queue = build_queue(config, cluster, teacher)
            engine = build_engine(config, network, optimizer, cluster, device)
            run_state = RunState(engine, network, optimizer, queue, clusters, loader, monitor, clock, teacher, probe)
            if (last_saved := latest_checkpoint(checkpoints, say=journal.say)) is not None:
                step, last_epoch = run_state.load(last_saved, cluster)
                journal.say(f"resuming from {last_saved} (step {step})")
        cluster.on_main(lambda: journal.open(config, done_steps=step, total_steps=total_steps))

        def accuracies() -> dict[str, float]:
            """k-NN of the backbone; before the first one, that of the untrained network and of raw pixels as well."""
            if labelled is None:
                return {}
            if cluster.add_up([cluster.main and journal.read("untrained.json") is None])[0]:
                untrained = untrained_knn(labelled, crops, config, device, dtype)
                cluster.on_main(lambda: journal.record("untrained.json", untrained))
            return backbone_knn(engine, network, labelled, crops, config, device, dtype, teacher, probe)

        if last_saved is None:
            warm_start(run_state, config, cluster, stop_signal)
        if cluster.add_up([stop_signal.received is not None])[0]:
            return journal.ended(STOPPED_EARLY, "not begun")
        watch = Watch(config, table, labelled, crops, engine, network, journal, cluster)
        watch(0, step)
        clock.start_training()
        first_step, agreement = step, Agreement(cluster.world_size, device, config.run.log_every)
        profile_steps(config, total_steps - step, agreement.times, journal, engine, monitor, teacher, probe)

        def observe(agreed: Agreed | None) -> None:
            """Log the step that all ranks have agreed on, or end the run if a loss was not finite."""
            if agreed is None:
                return
            if agreed.bad_step is not None:
                raise not_finite(agreed.bad_step, f"the loss is not finite on {agreed.bad_ranks} processes", last_saved)
            if agreed.step % config.run.log_every == 0:
                rate, done = clock.rate((step - first_step) * batch), step - first_step
                values = {"epoch": epoch, "loss": agreed.loss, "lr": learning_rates[agreed.step - 1]}
                values |= {"images_per_second": rate, **skipped.values(engine, done), "ranks": agreed.ranks}
                journal.log(agreed.step, values)

        def save(needed: bool) -> Path | None:
            observe(agreement.settle())  # never save weights that a bad loss has touched
            try:
                return run_state.save(checkpoints, config, cluster, step, last_epoch)
            except NotSaved as error:
                if needed:
                    raise TrainingStopped(f"{error}; the last good checkpoint: {last_saved}") from None
                journal.say(f"{error}; training goes on, the last good checkpoint: {last_saved}")
                return last_saved

        def save_and_stop() -> str:
            return journal.ended(SAVED.format(save(needed=True)), "saved")

        # ---- train -------------------------------------------------------------------------------
        for epoch in range(loader.position.epoch, config.run.epochs):
            network.backbone_frozen = epoch < frozen_epochs  # head and prototypes learn first
            # the other methods' targets of the epoch, from the embeddings of the one before (section 4.1, appendix)
            if clusters is not None and not begin_epoch(clusters, run_state, config, cluster, stop_signal):
                return journal.ended(STOPPED_EARLY, "not begun")

            for images in stopping_on_bad_data(agreement.times.waits(loader), stop_signal):
                if images is None:
                    return save_and_stop()
                set_step(optimizer, learning_rates[step], step < frozen_steps, network.backbone_frozen)
                crop_tensors = [crop.to(device, dtype, non_blocking=True) for crop in images.crops]
                sample_rows, batch_here = images.rows.reshape(parts, -1), len(images.rows) // parts
                for rows, part in zip(sample_rows, split_batch(crop_tensors, len(images.rows), parts), strict=True):
                    # embeddings and their scores against the prototypes, the queue's too once it is full (section 3.1)
                    active = queue if epoch >= swav.queue.start_epoch else None
                    queued = None if active is None else active.queued()
                    seen = only_views(part, batch_here, crops.networks_places)[0]
                    embeddings, scores, queue_scores, features = engine(seen, batch_here, None if teacher else queued)
                    agreement.times.mark("codes")

                    # codes of the assigning crops, over the global batch and the queue (equations 3 to 5), or the
                    # clusters of their rows in this epoch; a teacher may give them, an average or a trained network
                    own = assigned = objective.of_assigning(embeddings)
                    assigned_scores = objective.of_assigning(scores)
                    if teacher is not None:
                        assigned, assigned_scores, queue_scores = teacher(part, batch_here, queued)
                    targets = None if clusters is None else clusters.targets_of(rows, assigned)
                    codes = objective.codes(assigned_scores, queue_scores, targets)
                    if active is not None:
                        active.push(assigned)
                    agreement.times.mark("loss")

                    # every other crop predicts the codes (equations 1, 2 and 6), or every crop the clusters
                    loss = objective.loss(codes, scores, targets)
                    monitor.update(codes, own, loss)
                    engine.backward(loss)
                    engine.step()  # moves the network after the last part
                    if probe is not None:
                        probe.update(features, rows)
                if isinstance(teacher, Teacher):
                    teacher.follow(network, momentum_at(step, total_steps, *swav.teacher.values()))
                step += 1
                skipped.count(step, engine.was_step_applied())

                agreed = agreement.exchange(step, loss, stop=stop_signal.received is not None, save=rhythm.requested)
                observe(agreed)
                journal.progress(epoch, clock.rate((step - first_step) * batch))
                if step % steps and agreement.stop:  # else at the end of the epoch
                    return save_and_stop()
                if step % steps and rhythm.due(step, agreement):
                    last_saved = save(needed=False)

            # ---- the end of an epoch -------------------------------------------------------------
            observe(agreement.settle())
            loader.account(cluster.add_up)
            last_epoch = monitor.summary() | loader.of_sources() | ({} if probe is None else probe.summary())
            monitor.reset()
            journal.log(step, {"epoch": epoch, **last_epoch})
            for trouble in advice(last_epoch, prototypes, config.method, config.model.embedding_dim, swav.temperature):
                journal.warn(step, f"epoch {epoch + 1}: {trouble}")
            if agreement.stop and epoch + 1 < config.run.epochs:
                return save_and_stop()
            if rhythm.due(step, agreement) or agreement.stop:
                last_saved = save(needed=agreement.stop)
            if labelled and config.evaluation.every and (epoch + 1) % config.evaluation.every == 0:
                journal.log(step, {"epoch": epoch, **accuracies()})
            watch(epoch + 1, step)
        speed = step * batch / clock.state_dict()["training_seconds"]

        # ---- the result --------------------------------------------------------------------------
        last_saved = save(needed=True)
        names = ("knn", "knn_random_init", "knn_raw_pixels")  # None without labels
        result = dict.fromkeys(names) | accuracies() | (journal.read("untrained.json") or {})
        result |= {"prototypes": prototypes, **last_epoch, "code_entropy_limit": math.log(prototypes)}
        result |= {"epochs": config.run.epochs, "steps": step, "skipped_steps": skipped.total}
        result |= {"images_per_second": speed, "seconds": clock.state_dict()["seconds"]}
        result |= {"world_size": cluster.world_size, "unreadable_images": cluster.merge(loader.bad)}
        result |= {"checkpoint": str(last_saved), "data": of_splits(table, test, labelled)}
        cluster.on_main(lambda: journal.finish(result))
        watch.write()
        return "done"


if __name__ == "__main__":
    sys.exit(watched(main, sys.argv[1:]))
