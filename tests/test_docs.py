"""The README and the docs: every command and every piece of Python runs, on a small budget; links lead somewhere."""

import importlib.util
import re
import shlex
import sys
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

import fasta2c
from fasta2c.cli import main

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
# The others hold no commands, or signatures.
TOLD = [page for page in PAGES if page not in ("docs/README.md", "docs/api.md", "docs/settings.md")]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A file that the text in front of a piece of Python says to save it as.
FILE = re.compile(r"[Ss]ave this as `(\w+\.py)`:\n\n$")
# What is not ours to run.
OTHERS = ("python3 -m venv", "pip install", ".venv/bin/pip install", "source", "tensorboard --logdir")
OTHERS += (".venv/bin/ruff check", ".venv/bin/mypy", ".venv/bin/lint-imports", ".venv/bin/python -m pytest")
# Flags of each verb, and the most that a test gives them.
BUDGET = {
    "train": {"--total-steps": 96, "--num-steps": 4, "--num-envs": 8, "--log-interval": 4},
    "sweep": {"--total-steps": 96, "--num-steps": 4, "--num-envs": 4, "--log-interval": 4},
    "eval": {"--episodes": 2, "--num-envs": 2},
    "play": {"--num-envs": 1},
}


def blocks(page):
    """Kind, text and the file it is to be saved as, of each block of code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        named = FILE.search(text[: found.start()])
        yield found[1], found[2], named and named[1]


def commands(script):
    """The commands of a block, each as it is typed."""
    for line in script.splitlines():
        for command in line.split(" && "):
            words = shlex.split(command, comments=True)
            if words:
                yield words


def capped(words):
    """The command with a budget that a test can afford."""
    verb, *rest = words
    limits = dict(BUDGET.get(verb, {}))
    if "--help" in rest:
        return words
    if verb == "sweep" and "--seeds" in rest:
        first = rest.index("--seeds") + 1
        last = next((n for n in range(first, len(rest)) if rest[n].startswith("-")), len(rest))
        rest = [*rest[: first + 2], *rest[last:]]
    if "--resume" in rest:
        limits = {"--total-steps": 192}
    if "--num-envs" in rest and rest[rest.index("--num-envs") + 1] == "auto":
        del limits["--num-envs"]
    for flag, most in limits.items():
        if flag in rest:
            at = rest.index(flag) + 1
            rest[at] = str(min(int(rest[at]), most))
        else:
            rest += [flag, str(most)]
    return [verb, *rest]


@pytest.fixture
def small(monkeypatch):
    """Trainings and evaluations from Python, and trials of numbers of environments, cut short."""
    monkeypatch.setattr("fasta2c.tune.NUM_ENVS", (2, 4))
    whole_train, whole_evaluate = fasta2c.train, fasta2c.evaluate

    def train(config, **options):
        return whole_train(replace(config, total_steps=min(config.total_steps, 2000), quiet=True), **options)

    monkeypatch.setattr(fasta2c, "train", train)
    monkeypatch.setattr("fasta2c.tune.UPDATES", 2)
    monkeypatch.setattr("fasta2c.tune._measure", lambda config, device: 1.0)
    monkeypatch.setattr(fasta2c, "evaluate", lambda run_dir, **_: whole_evaluate(run_dir, episodes=2))


@pytest.mark.slow
@pytest.mark.parametrize("page", TOLD)
@pytest.mark.usefixtures("small")
def test_what_a_page_says_works(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for kind, text, file in blocks(page):
        if file:
            Path(file).write_text(text, encoding="utf-8")
        elif kind == "python":
            if "stable_baselines3" not in text:  # theirs, which is not ours to run
                exec(compile(text, page, "exec"), {"__name__": page})
        else:
            for words in commands(text):
                run(words)
    capsys.readouterr()


def run(words):
    """Run a command of fasta2c's; of others, see that what they name exists."""
    command = " ".join(words)
    if words[0] == "torchrun":  # with one rank; whether torchrun takes its flags
        start = words.index("-m")
        assert words[start + 1] == "fasta2c" and get_args_parser().parse_args([*words[1:start], "script"])
        words = words[start + 1 :]
    if Path(words[0]).name == "fasta2c":
        assert main(capped(words[1:])) == 0, command
    else:
        assert command.startswith(OTHERS), f"{command}: neither run nor known"
        for extra in re.findall(r"\[(\w+)\]", command):
            assert extra in extras(), command


def extras():
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return dict(parser["options.extras_require"])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_what_is_made_from_the_code_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "docs" / "make.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    for name, page in made.PAGES.items():
        assert page() == (ROOT / "docs" / name).read_text(encoding="utf-8"), f"{name} is stale: python docs/make.py"


def test_the_flags_that_the_docs_name_exist():
    """In tables and running text too, where nothing runs them."""
    known = {f"--{name.replace('_', '-')}" for name in fasta2c.TrainConfig.__dataclass_fields__}
    known |= {f"--no-{flag[2:]}" for flag in known}
    from fasta2c.cli import VERBS

    for verb in VERBS.values():
        known |= {f"--{name.replace('_', '-')}" for name in getattr(verb.flags, "__dataclass_fields__", {})}
    known |= {option for action in get_args_parser()._actions for option in action.option_strings}  # torchrun's
    known |= {"--model", "--json"}  # benchmarks/ranks.py's
    known |= {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--signal", "--requeue"}  # Slurm's
    known |= {"--cpu-bind", "--cpunodebind", "--membind", "--dist"}  # of srun, numactl and pytest
    known |= {"--help", "--version", "--tyro-write-completion", "--no-prune", "--logdir"}
    foreign = set(re.findall(r"^\| `(--[a-z-]+)", (ROOT / "docs/migrating.md").read_text(), re.MULTILINE))
    foreign |= set(re.findall(r"`(--[a-z-]+)", (ROOT / "docs/migrating.md").read_text().partition("## CleanRL")[2]))
    for page in PAGES:
        unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / page).read_text())) - known
        assert not unknown - (foreign if page == "docs/migrating.md" else set()), page


def test_the_command_that_is_sb3s_a2c_has_its_defaults(monkeypatch):
    """Stable-Baselines3 2.9, `a2c.py`: what `A2C("MlpPolicy", env)` is made with."""
    text = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")
    (words,) = [words for kind, block, _ in blocks("docs/migrating.md") if kind == "bash" for words in commands(block)]
    assert "n_envs=16), n_steps=5, learning_rate=7e-4, ent_coef=0.01" in text
    found = []
    monkeypatch.setattr("fasta2c.launch.train", lambda config, **_: found.append(config) or sys.exit(0))
    assert main(words[1:]) == 0
    theirs = {
        "num_envs": 16, "num_steps": 5, "lr": 7e-4, "ent_coef": 0.01, "total_steps": 100_000,
        "gamma": 0.99, "gae_lambda": 1.0, "vf_coef": 2 * 0.5, "max_grad_norm": 0.5, "optimizer": "rmsprop",
        "optimizer_eps": 1e-5, "rmsprop_alpha": 0.99, "lr_schedule": "constant", "normalize_advantage": False,
        "shared": False, "hidden_sizes": (64, 64), "activation": "tanh", "num_epochs": 1, "num_minibatches": 1,
        "normalize_observations": False, "normalize_rewards": False, "reward_clip": 0.0, "sde": False,
    }  # fmt: skip
    assert {name: getattr(found[0], name) for name in theirs} == theirs
    assert found[0].critic_lr == found[0].lr and found[0].ent_schedule == "constant"


def test_every_recipe_has_its_result():
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    recipes = {file.stem for file in (ROOT / "configs" / "recipes").glob("*.yaml")}
    assert {row.split("`")[1] for row in page.splitlines() if row.startswith("| `")} == recipes
