"""What a run is made of: one frozen dataclass, validated where it is made.

Values are merged in this order, later ones winning: field defaults, the environment's preset and a user's YAML file
(`presets.py`), the command line's flags or the keyword arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from fasta2c.errors import UserError, did_you_mean
from fasta2c.fields import Count, Finite, NonNegative, Positive, Range, Seed, Unit, Whole, checked, show

ENCODERS = ("auto", "mlp", "nature-cnn", "impala", "small-cnn")
Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. Fields not given take the environment's preset when the run starts (`with_preset`)."""

    env: str = "Classic/CartPole"
    """Environment: Family/Name (Atari/Pong), an EnvPool id (Pong-v5), gymnasium:ID, gymnasium:module:ID or
    torch:module:Class."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """The environment's own options as JSON, such as '{"frame_skip": 4}'; added to the preset's."""
    num_envs: Count | Literal["auto"] = 16
    """E: environments stepped together; auto tries some for up to a minute and takes the fewest that are fast."""
    num_steps: Count = 8
    """T: rows of one rollout; an update is made of T x E samples."""
    total_steps: Annotated[int, Range(1, 2**53)] = 1_000_000
    """Length of the run in env steps (reset rows do not count)."""
    stop_at_return: Finite | None = None
    """End the run once the last 100 games average this; without it, total_steps alone end it."""
    seed: Seed = 0
    """Seed of environments, parameters and sampling."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    deterministic: bool = False
    """Refuse every operation that could give different parameters when the run is repeated, with any number of env
    threads."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoders; auto takes bf16 where the processor has it and the encoder is a CNN."""
    compile: bool = False
    """Compile the network with torch.compile: half a minute at the start, then 1.0 to 1.2 times the speed on a CPU."""
    env_threads: Whole | Literal["auto"] = "auto"
    """EnvPool's threads; auto (or 0) takes one for each core this process may use, shared with ranks beside it."""
    env_groups: Count | Literal["auto"] = "auto"
    """Groups of environments that take turns: while one steps, the network acts for the next; 1 has no turns."""
    micro_batch: Whole = 0
    """Samples of one backward pass; 0 chooses by device. Changes how much memory an update takes, not the update."""
    reuse_forward: Literal["auto", "on", "off"] = "auto"
    """Differentiate the forward pass that acted, whose graph is kept, instead of a second one; auto does so where that
    is faster and fits in memory."""
    cuda_graphs: bool = True
    """Record what a GPU does for a row, and for an update, and launch each as one; not for an encoder of one's own that
    waits for the GPU, or does other work from call to call."""

    gamma: Unit = 0.99
    """Discount for one env step."""
    gae_lambda: Unit = 0.95
    """GAE's lambda: 1 gives n-step returns, 0 one-step TD errors."""
    gae: Literal["auto", "scan", "compiled", "triton"] = "auto"
    """How advantages are computed: plain reverse scan, the same compiled, or one Triton kernel (on a GPU, auto)."""
    lr: Positive = 7e-4
    """Learning rate."""
    critic_lr: Positive | None = None
    """Learning rate of the critic's own parameters; the same as lr unless given."""
    lr_schedule: Schedule = "constant"
    """Course of the learning rates over env_steps / total_steps; linear and cosine end at 0."""
    ent_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""
    ent_schedule: Schedule = "constant"
    """Course of ent_coef over env_steps / total_steps; linear and cosine end at 0."""
    vf_coef: NonNegative = 0.5
    """Weight of the value loss."""
    value_loss: Literal["mse", "huber"] = "mse"
    """Value loss: half the squared error, or Huber's with threshold 1."""
    critic_target: Literal["gae", "nstep", "td0"] = "gae"
    """What values are trained towards: returns by gae_lambda, n-step returns, or one-step ones."""
    critic_updates: Count = 1
    """Optimizer steps of the critic for each one of the policy's. The extra steps recompute their targets and move the
    critic alone; needs --no-shared."""
    num_minibatches: Count | Literal["auto"] = 1
    """Optimizer steps of one pass through the rollout, each on its share of the environments. auto: T x E /
    minibatch_size, at most E."""
    minibatch_size: Count = 256
    """Samples of one optimizer step, if num_minibatches is auto."""
    num_epochs: Count = 1
    """Times that an update goes through its rollout. V-trace corrects all of its optimizer steps but the first."""
    target_kl: NonNegative = 0.0
    """Skip the rest of an update's optimizer steps once the mean KL divergence of the policy from the one that acted
    exceeds this; 0 makes all of them."""
    normalize_advantage: bool = False
    """Standardise advantages over the valid rows of an optimizer step (value targets never are)."""
    max_grad_norm: Positive = 0.5
    """Gradients are scaled down to this global norm before the step."""
    optimizer: Literal["rmsprop", "rmsprop-tf", "adam", "muon"] = "rmsprop-tf"
    """rmsprop is torch's; rmsprop-tf has TensorFlow's eps inside the root and starts its average at 1; muon makes the
    steps of hidden layers orthogonal, and is Adam elsewhere."""
    optimizer_eps: Positive = 1e-5
    """eps of the optimizer."""
    rmsprop_alpha: Unit = 0.99
    """Decay of RMSprop's squared-gradient average."""

    shared: bool = True
    """Actor and critic share one encoder."""
    encoder: str = "auto"
    """auto (by the observations' shapes), mlp, nature-cnn, impala, small-cnn, or a class of yours as module:Class."""
    hidden_sizes: tuple[Count, ...] = (64, 64)
    """Widths of the fully connected layers for vectors, small grids, and the parts of several observations together."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Activation of these layers."""
    recurrent: Literal["none", "gru", "lstm"] = "none"
    """Memory between encoder and heads, for environments that do not show all there is to know."""
    recurrent_size: Count = 128
    """Width of the memory."""
    normalize_observations: bool = False
    """Bring real-valued observations to mean 0 and variance 1, by statistics of the run so far."""
    normalize_rewards: bool = False
    """Divide learning rewards by the standard deviation of discounted returns so far; scores stay the game's."""
    reward_clip: NonNegative = 0.0
    """Clip the rewards that are learnt from, after scaling, to this magnitude; 0 leaves them as they are. (The option
    of this name in Atari's env_kwargs is EnvPool's own, and clips to -1, 0 and 1.)"""
    action_bounds: Literal["clip", "squash"] = "clip"
    """How real-valued actions are kept within bounds: drawn from a normal distribution and clipped, or squashed by
    tanh."""
    bounds_coef: NonNegative = 0.0
    """Weight of the squared distance by which the means of clipped actions lie beyond their bounds (in units of half
    their range, if both are finite): out there nothing tells one mean from another, and they drift."""
    sde: bool = False
    """Explore real-valued actions by noise that depends on the state and stays for a while (gSDE)."""
    sde_interval: Whole = 0
    """Rows between new draws of gSDE's noise; 0 draws it at the start of each rollout alone, where it always is."""
    log_std_init: Annotated[float, Range(-10, 2)] = 0.0
    """Initial log standard deviation of real-valued actions, in units of half their range."""

    run_dir: Path | None = None
    """Folder of the run; runs/<env>/<time>-s<seed> unless given."""
    init_from: Path | None = None
    """Run directory or checkpoint whose network parameters this run starts from."""
    log_interval: Count = 20
    """Updates between rows of metrics.csv and TensorBoard."""
    checkpoint_interval: Count = 500
    """Updates between checkpoints."""
    checkpoint_minutes: NonNegative = 10.0
    """Most minutes between checkpoints, however long so many updates take; 0 goes by the updates alone."""
    eval_interval: Whole = 0
    """Updates between evaluations during training; 0 makes none."""
    eval_episodes: Count = 10
    """Episodes of one evaluation during training."""
    histogram_interval: Whole = 0
    """Updates between histograms of all parameters in TensorBoard; 0 makes none."""
    video_interval: Whole = 0
    """Updates between films of a game (its first 1,000 steps) in TensorBoard; 0 makes none."""
    env_timeout: Annotated[float, Range(0, 1e6)] = 300.0
    """Seconds that environments may take for a step before the run is ended; 0 waits for ever."""
    restart_envs: bool = False
    """Restart a Gymnasium environment that raises, dies or hangs (its game is lost) instead of ending the run."""
    on_nan: Literal["stop", "skip"] = "stop"
    """On a reward, observation, loss or gradient that is NaN or infinite: stop, or skip that update and go on."""
    wandb: bool = False
    """Send what TensorBoard gets to Weights & Biases as well (pip install wandb)."""
    quiet: bool = False
    """Show no progress."""

    def __new__(cls, **given: Any) -> TrainConfig:
        """Remember which fields were given, so that a preset fills only the others."""
        self = super().__new__(cls)
        object.__setattr__(self, "_given", frozenset(given))
        return self

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            object.__setattr__(self, name, checked(name, getattr(self, name), hint))
        if not (self.device in ("auto", "cpu", "cuda") or _is_cuda_index(self.device)):
            raise UserError(f"device: {show(self.device)} is not one of auto, cpu, cuda, cuda:N.")
        if ":" not in self.encoder and self.encoder not in ENCODERS:
            known = f"{', '.join(ENCODERS)}, nor a class of yours as module:Class"
            raise UserError(f"encoder: {show(self.encoder)} is none of {known}.{did_you_mean(self.encoder, ENCODERS)}")
        if self.deterministic and self.num_envs == "auto":
            raise UserError("deterministic: --num-envs auto goes by what is fast; give a number.")
        if not self.env.strip():
            raise UserError("env: an environment id is needed, such as Atari/Pong.")

    def with_preset(self, preset: Mapping[str, Any]) -> TrainConfig:
        """This configuration with `preset` filled into the fields that were not given.

        `env_kwargs` are merged key by key. The result counts every field as given.
        """
        values = {**to_dict(self), **preset, **self._own()}
        values["env_kwargs"] = {**preset.get("env_kwargs", {}), **self.env_kwargs}
        return type(self)(**values)

    def but(self, **changes: Any) -> TrainConfig:
        """This configuration with other values for some fields; the rest that were not given still are not.

        (`dataclasses.replace` hands over every field, and so counts all of them as given.)
        """
        return type(self)(**self._own() | changes)

    def without(self, name: str) -> TrainConfig:
        """This configuration as if the field `name` had not been given."""
        return type(self)(**{key: value for key, value in self._own().items() if key != name})

    def _own(self) -> dict[str, Any]:
        """The values of the fields that were given."""
        given: frozenset[str] = getattr(self, "_given")  # noqa: B009 - set in __new__, unknown to the dataclass
        return {name: value for name, value in to_dict(self).items() if name in given}

    @property
    def thread_count(self) -> int:
        """env_threads, 0 for auto."""
        return 0 if self.env_threads == "auto" else self.env_threads

    def minibatches(self, num_envs: int) -> int:
        """Their number with `num_envs` environments.

        If it is to follow from these, it is the one that leaves an optimizer step's samples, and so the learning rate
        that suits it, as they are at any number of environments.
        """
        if self.num_minibatches != "auto":
            return self.num_minibatches
        return min(max(round(self.num_steps * num_envs / self.minibatch_size), 1), num_envs)


# What --resume may change: nothing here alters what is learnt, except that a longer run stretches the schedules.
RESUMABLE = frozenset(
    {"total_steps", "stop_at_return", "log_interval", "eval_interval", "eval_episodes", "quiet"}
    | {"histogram_interval", "video_interval", "wandb"}
    | {"device", "compile", "env_threads", "env_groups", "micro_batch", "reuse_forward", "cuda_graphs"}
    | {"checkpoint_interval", "checkpoint_minutes", "on_nan", "env_timeout", "restart_envs"}
)


def check_resumable(config: TrainConfig, saved: TrainConfig) -> None:
    """Raise `UserError` where `config` changes what the `saved` run learns."""
    old = to_dict(saved)
    changed = [name for name, value in to_dict(config).items() if value != old[name] and name not in RESUMABLE]
    if changed:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise UserError(
            f"{flags} cannot change when a run is resumed; only "
            f"{', '.join(sorted('--' + n.replace('_', '-') for n in RESUMABLE))} can. "
            "Start a new run with --init-from to keep the parameters."
        )
    if config.total_steps < saved.total_steps:
        raise UserError(f"--total-steps: a resumed run can only be made longer than its {saved.total_steps}.")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Field values by name, as the dataclass holds them."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """Field values as YAML and checkpoints hold them: paths as text, tuples as lists."""
    convert = {Path: str, tuple: list}
    return {
        k: next((to(v) for kind, to in convert.items() if isinstance(v, kind)), v) for k, v in to_dict(config).items()
    }


def from_plain(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Keyword arguments for `TrainConfig` from a mapping read from `source` (a file's name, for messages).

    Raises:
        UserError: an unknown key (the nearest named) or a value of the wrong type, with its full path.
    """
    hints = _hints()
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            hint = did_you_mean(key, hints) if isinstance(key, str) else ""
            raise UserError(f"{source}: unknown key {show(key)}.{hint}")
        try:
            arguments[key] = checked(key, value, hints[key])
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
    return arguments


@functools.cache
def _hints() -> dict[str, Any]:
    """Annotations of `TrainConfig` by field."""
    return typing.get_type_hints(TrainConfig, include_extras=True)


def _is_cuda_index(device: str) -> bool:
    kind, _, index = device.partition(":")
    return kind == "cuda" and index.isascii() and index.isdecimal() and len(index) < 4
