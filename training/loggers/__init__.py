"""Where a run's figures and pictures go besides metrics.jsonl: TensorBoard, wandb, MLflow and CSV.

`open_loggers` opens those of run.loggers; each module has one library in its own offline or local mode.
"""
