"""Runs of a second, and what they leave behind."""

import csv

import torch

from fasta2c import TrainConfig
from fasta2c.run import checkpoint

SMALL = {"env": "Classic/CartPole", "num_envs": 8, "num_steps": 8, "quiet": True, "log_interval": 5}


def config(tmp_path, name="run", **changed):
    return TrainConfig(**{**SMALL, "total_steps": 3000, "run_dir": tmp_path / name, **changed})


def load(result_or_path):
    return checkpoint.load(checkpoint.resolve(getattr(result_or_path, "run_dir", result_or_path)))


def rows(path):
    with (path / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def same_parameters(a, b):
    return all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
