"""TensorBoard's pages, looked at in a real browser without a screen."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from fasta2c import TrainConfig, train

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
# All text on a page, that of elements' own (shadow) trees included.
TEXT = """(function words(node) {
    if (node.nodeType == Node.TEXT_NODE) return node.textContent;
    if (["SCRIPT", "STYLE"].includes(node.nodeName)) return "";
    return [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes].map(words).join(" ");
})(document.body)"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dashboard")
    common = {"num_envs": 8, "num_steps": 8, "total_steps": 4000, "log_interval": 10, "quiet": True}
    train(TrainConfig(run_dir=folder / "first", histogram_interval=20, **common))
    train(TrainConfig(run_dir=folder / "second", lr=0.125, seed=1, **common))
    return folder


def test_the_configuration_is_there_as_text_and_as_hyperparameters(runs):
    board = EventAccumulator(str(runs / "second")).Reload()
    (text,) = board.Tensors("config/text_summary")
    assert b"    lr: 0.125\n" in text.tensor_proto.string_val[0]
    content = board.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    told = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert told["lr"].number_value == 0.125 and told["env"].string_value == "Classic/CartPole"
    assert json.loads(told["hidden_sizes"].string_value) == [64, 64]
    assert "log_interval" not in told, "what changes nothing of what is learnt"


def test_histograms_come_on_request(runs):
    sizes = {"histograms": 0}
    boards = [EventAccumulator(str(runs / name), size_guidance=sizes).Reload() for name in ("first", "second")]
    names = boards[0].Tags()["histograms"]
    assert len(names) > 4 and all(name.startswith("parameters/") for name in names)
    spread = boards[0].Histograms(names[0])
    assert len(spread) == 3 and spread[0].histogram_value.num > 0
    assert not boards[1].Tags()["histograms"]


@contextmanager
def ended(process):
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Page:
    """A page of a browser, by its debugging protocol."""

    def __init__(self, socket):
        self._socket, self._number = socket, 0

    def call(self, method, **params):
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while (answer := json.loads(self._socket.recv(timeout=60))).get("id") != self._number:
            pass
        return answer["result"]

    def wait_for(self, url, *words, seconds=60):
        """Open `url` and wait until all `words` are on the page; returns its text."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        for _ in range(4 * seconds):
            shown = self.call("Runtime.evaluate", expression=TEXT)["result"].get("value", "")
            if all(word in shown for word in words):
                return shown
            time.sleep(0.25)
        raise AssertionError(f"{url}: no {[word for word in words if word not in shown]} among {shown.split()[:200]}")


@pytest.fixture(scope="module")
def dashboard(runs, tmp_path_factory):
    """TensorBoard's address and a page to look at it with."""
    if BROWSER is None:
        pytest.skip("there is no Chromium here")
    from websockets.sync.client import connect

    profile = tmp_path_factory.mktemp("profile")
    board = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", "0", "--host", "127.0.0.1"]
    browser = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    browser += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--window-size=1500,1100", "about:blank"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with ended(subprocess.Popen(board, **pipes)) as server, ended(subprocess.Popen(browser, **pipes)) as shown:
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
        control = next(found[1] for line in shown.stderr if (found := re.search(r"ws://([^/]+)/", line)))
        with urllib.request.urlopen(f"http://{control}/json/list", timeout=60) as answer:
            page = next(page for page in json.load(answer) if page["type"] == "page")
        with connect(page["webSocketDebuggerUrl"], max_size=None) as socket:
            yield address.rstrip("/"), Page(socket)


def test_the_custom_layout_is_shown(dashboard):
    address, page = dashboard
    titles = ["Learning", "Losses", "Throughput", "Optimizer", "explained variance", "env steps per second"]
    shown = page.wait_for(f"{address}/#custom_scalars", *titles)
    assert all(name in shown for name in ("first", "second")) and "No dashboards are active" not in shown


@pytest.mark.parametrize(
    ("tab", "words"),
    [
        ("scalars", ["episode", "loss", "optim", "time", "first", "second"]),
        ("hparams", ["Hyperparameters", "gae_lambda", "Trial ID", "first", "second", "episode/return_mean"]),
        ("text", ["config/text_summary", "lr: 0.125"]),
        ("histograms", ["parameters"]),
    ],
)
def test_pages_load(dashboard, tab, words):
    address, page = dashboard
    shown = page.wait_for(f"{address}/#{tab}", *words)
    assert "No dashboards are active" not in shown and "404" not in shown
