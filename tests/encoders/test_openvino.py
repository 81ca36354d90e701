"""Claims about OpenVINO, which is optional."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from embedstore.encoders import load_encoder

from .conftest import SENTENCES

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")


def opened(encoder):
    from embedstore.encoders.openvino_text import OpenVinoText
    from embedstore.encoders.torch_text import pad_id

    encoder.encode_query("so that the export is there")
    return OpenVinoText(encoder._export.graph, dim=encoder.spec.dim, pad_id=pad_id(encoder._model))


def test_it_makes_minilms_vectors_from_the_same_graph(cached, minilm_folder):
    encoder = load_encoder("minilm", device="cpu")
    ids, _ = encoder._tokens().encode_all(SENTENCES * 3)
    np.testing.assert_allclose(opened(encoder).encode(ids), encoder.encode(SENTENCES * 3).vectors, atol=1e-5)


@pytest.mark.parametrize("options", ["layer=1,pool=max", "layer=0,pool=first", "pool=mean,normalize=true", "pool=last"])
def test_it_makes_the_vectors_of_other_models(cached, tiny_bert, options):
    encoder = load_encoder(f"hf:{tiny_bert}@{options}", device="cpu")
    ids, _ = encoder._tokens().encode_all(SENTENCES)
    expected = encoder.encode(SENTENCES).vectors
    np.testing.assert_allclose(opened(encoder).encode(ids), expected, atol=1e-4, rtol=1e-5)


def test_threads_may_share_it(cached, minilm_folder):
    from concurrent.futures import ThreadPoolExecutor

    encoder = load_encoder("minilm", device="cpu")
    ids, _ = encoder._tokens().encode_all(SENTENCES)
    shared, expected = opened(encoder), encoder.encode(SENTENCES).vectors
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: shared.encode(ids), range(6)):
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_threads_may_begin_together(cached, minilm_folder):
    encoder = load_encoder("minilm", device="cpu")
    encoder.encode_query("so that the export is there")
    code = (
        "import sys, threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from pathlib import Path\n"
        "from embedstore.encoders.openvino_text import OpenVinoText\n"
        "sys.setswitchinterval(1e-6)  # threads change places within the first inference\n"
        f"shared = OpenVinoText(Path({str(encoder._export.graph)!r}), dim=384, pad_id=0)\n"
        "together = threading.Barrier(6)\n"
        "def encode(number):\n"
        "    together.wait()\n"
        "    return shared.encode([[101, number, 102]]).shape\n"
        "with ThreadPoolExecutor(6) as pool:\n"
        "    print(set(pool.map(encode, range(6))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "{(1, 384)}", done.stderr


def test_a_file_that_is_no_graph_is_an_error_of_the_encoder(tmp_path):
    from embedstore.encoders.openvino_text import OpenVinoText
    from embedstore.errors import EncoderUnavailable

    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(EncoderUnavailable, match="OpenVINO cannot run"):
        OpenVinoText(tmp_path / "model.onnx", dim=384, pad_id=0)


def test_it_reports_nothing_and_leaves_no_id_behind(tmp_path):
    code = (
        "import sys, socket\n"
        "def refuse(*_): raise SystemExit('it looks for the network')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        "from embedstore.encoders.quiet_openvino import load_openvino\n"
        "load_openvino().Core()\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "print(telemetry_utils.tm.__name__, 'openvino_telemetry' in sys.modules)\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    for name in ("CI", "TF_BUILD", "JENKINS_URL"):  # with which it would be quiet by itself
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=120,
        env=environment,
    )  # fmt: skip
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub False", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_where_it_is_absent_nothing_is_said(isolated, tiny_bert, monkeypatch, caplog):
    from embedstore.encoders import bulk, race

    monkeypatch.setattr(race, "OPENVINO_TOKENS", 0)
    monkeypatch.setattr(bulk, "has_openvino", lambda: False)
    encoder = load_encoder(f"hf:{tiny_bert}", device="cpu")
    encoder.encode(SENTENCES)
    assert set(encoder._bulk._runners) == {race.Runtime.ONNX} and "openvino" not in caplog.text.lower()
