"""Networks whose ONNX files need care: sizes without names, numbers of rows as plain integers."""

import numpy as np
import pytest
import torch
from torch import nn

from skexit import ExitHeads, ThresholdPolicy, make_exit_pipeline
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.slow

N_CLASSES = 3


class Blocks(nn.Module):
    """Blocks of a kind, and a classifier."""

    def __init__(self, make_block, n_blocks=3):
        super().__init__()
        self.blocks = nn.ModuleList(make_block() for _ in range(n_blocks))
        self.classifier = nn.Linear(8, N_CLASSES)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)


def make_live(network, x, folder, **options):
    exits, y = [f"blocks.{k}" for k in range(len(network.blocks))], torch.arange(len(x)) % N_CLASSES
    cache = ExitExtractor(network, exits, **options).extract([(x, y)], folder, progress=False)
    policy = make_exit_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=0.8)).fit(cache.X, cache.y)
    return EarlyExitModel(network.eval(), exits, policy, example_input=x[:2], **options)


def rows(n_rows=60, generator=None):
    torch.manual_seed(0)
    return torch.randn(n_rows, 8) + (torch.arange(n_rows) % N_CLASSES)[:, None]


def assert_same(path, live, x):
    session = OnnxEarlyExit(path)
    for part in (x, x[:1], x[:7]):
        expected, found = live(part), session.predict(part.numpy())
        np.testing.assert_array_equal(found.exits, expected.exits)
        np.testing.assert_array_equal(found.labels, expected.labels)


class ChangesParts(nn.Module):
    """Changes every second column in place, as scans over a sequence do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        x = self.linear(x).clone()
        for step in (2, 4):
            x[:, step - 1 :: step] += x[:, step // 2 - 1 :: step]
        return x.tanh()


def test_sizes_without_a_name_stay_without(tmp_path):
    """onnxruntime takes sizes of one name for equal, and lets values of these sizes share memory."""
    x = rows()
    live = make_live(Blocks(ChangesParts), x, tmp_path / "cache")
    path = export_onnx(live, tmp_path / "network.onnx")
    graph = ir.load(path).graph
    shapes = [value.shape for node in ir.traversal.RecursiveGraphIterator(graph) for value in node.outputs]
    named = {size.value for shape in shapes if shape is not None for size in shape if isinstance(size, ir.SymbolicDim)}
    assert not [name for name in named if name is not None and name.endswith("None")]
    assert_same(path, live, x)


class ReadsNumberOfRows(nn.Module):
    """Reads the number of rows as a plain integer, in a module without an exit inside."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        pairs = self.linear(x.reshape(len(x) * 2, 4)).reshape(len(x), -1)
        return pairs.tanh() + torch.ones(len(x), 1)


def test_modules_may_read_the_number_of_rows(tmp_path):
    x = rows()
    live = make_live(Blocks(ReadsNumberOfRows), x, tmp_path / "cache")
    assert_same(export_onnx(live, tmp_path / "network.onnx"), live, x)


def test_modules_of_tokens_may_read_the_number_of_rows(tmp_path):
    class OfTokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x.reshape(len(x) * x.shape[1], 8)).reshape(len(x), -1, 8).tanh()

    class Network(Blocks):
        def __init__(self):
            super().__init__(OfTokens)
            self.embed = nn.Embedding(20, 8)

        def forward(self, ids):
            x = self.embed(ids)
            for block in self.blocks:
                x = block(x)
            return self.classifier(x.mean(1))

    torch.manual_seed(0)
    ids = torch.randint(0, 20, (60, 7))
    live = make_live(Network(), ids, tmp_path / "cache")
    path = export_onnx(live, tmp_path / "network.onnx")
    assert_same(path, live, ids)


def test_a_loop_over_rows_is_refused_with_its_exit(tmp_path):
    class Loops(nn.Linear):
        def forward(self, x):
            return torch.stack([super(Loops, self).forward(row).tanh() for row in x])

    live = make_live(Blocks(lambda: Loops(8, 8)), rows(), tmp_path / "cache")
    with pytest.raises(
        ValueError, match=r"up to exit 'blocks\.0' cannot .* as in a loop over rows\. Run the live network"
    ):
        export_onnx(live, tmp_path / "network.onnx")


def test_a_hook_that_reads_values_is_refused_with_its_cause(tmp_path):
    network, kept = Blocks(lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh())), []
    handle = network.blocks[0].register_forward_hook(lambda module, args, output: kept.append(output.numpy()))
    live = make_live(network, rows(), tmp_path / "cache")
    with pytest.raises(ValueError, match=r"up to exit 'blocks\.0' cannot .*numpy\(\) is not supported"):
        export_onnx(live, tmp_path / "network.onnx")
    handle.remove()
    assert_same(export_onnx(live, tmp_path / "network.onnx"), live, rows())


def test_an_operation_without_translation_is_named_with_its_module(tmp_path):
    network = Blocks(lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh()))
    nn.utils.parametrizations.orthogonal(network.blocks[1][0])
    x = rows()
    with pytest.warns(UserWarning, match="linalg_matrix_exp"):  # its FLOPs are not known
        live = make_live(network, x, tmp_path / "cache")
    message = (
        r"no translation for the operation 'aten\.linalg_matrix_exp' in the module "
        r"'blocks\.1\.0\.parametrizations\.weight\.0'\. torch\.nn\.utils\.parametrize\.remove_parametrizations\("
        r"network\.blocks\.1\.0, 'weight'\)"
    )
    with pytest.raises(ValueError, match=message):
        export_onnx(live, tmp_path / "network.onnx")
    nn.utils.parametrize.remove_parametrizations(network.get_submodule("blocks.1.0"), "weight")
    live = make_live(network, x, tmp_path / "cache of plain weights")
    assert_same(export_onnx(live, tmp_path / "network.onnx"), live, x)


def test_double_precision_that_onnxruntime_lacks_is_refused_with_the_cure(tmp_path):
    class Convolution(nn.Conv1d):
        def forward(self, x):
            return super().forward(x[:, None]).tanh()[:, 0]

    network, x = Blocks(lambda: Convolution(1, 1, 3, padding=1)), rows()
    live = make_live(network.double(), x.double(), tmp_path / "cache")
    with pytest.raises(ValueError, match=r"onnxruntime cannot run the network: .* to float32 by float\(\)"):
        export_onnx(live, tmp_path / "network.onnx")
    live = make_live(network.float(), x.float(), tmp_path / "cache in single precision")
    assert_same(export_onnx(live, tmp_path / "network.onnx"), live, x.float())


@pytest.mark.filterwarnings("error:The tensor attribute:UserWarning")
def test_tensors_in_attributes_cause_no_warning_and_stay(tmp_path):
    class Keeps(Blocks):
        last = None

        def forward(self, x):
            self.seen = []
            for block in self.blocks:
                x = block(x)
                self.seen.append(x)
            self.last = x
            return self.classifier(torch.stack(self.seen).mean(0))

    class Recurrent(nn.LSTM):
        def forward(self, x):
            return super().forward(x[:, None])[0][:, 0]

    network, x = Keeps(lambda: Recurrent(8, 8, batch_first=True)), rows()
    live = make_live(network, x, tmp_path / "cache")
    assert_same(export_onnx(live, tmp_path / "network.onnx"), live, x)
    network(x)
    assert type(network.last) is torch.Tensor
    assert len(network.last) == len(x)


@pytest.mark.filterwarnings("ignore:Attribute type is ambiguous")
def test_a_network_of_sounds_with_a_mask(tmp_path):
    """The network counts the frames of each sound, and writes a mask of frames by these numbers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        **{"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8},
        **{"conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (5, 4), "num_feat_extract_layers": 2},
        **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8},
        **{"num_labels": N_CLASSES, "layerdrop": 0.0},
    )
    network = transformers.Wav2Vec2ForSequenceClassification(config).eval()
    mask = (torch.arange(400) < torch.randint(200, 401, (60, 1))).long()
    sounds = {"input_values": torch.randn(60, 400) * mask, "attention_mask": mask}
    exits = ["wav2vec2.encoder.layers.0", "wav2vec2.encoder.layers.1"]
    loader = [sounds | {"labels": torch.arange(60) % N_CLASSES}]
    cache = ExitExtractor(network, exits).extract(loader, tmp_path / "cache", progress=False)
    policy = make_exit_pipeline(ExitHeads(random_state=0), ThresholdPolicy(budget=0.8)).fit(cache.X, cache.y)
    example = {name: tensor[:2] for name, tensor in sounds.items()}
    live = EarlyExitModel(network, exits, policy, example_input=example)
    session = OnnxEarlyExit(export_onnx(live, tmp_path / "network.onnx"))
    found = session.predict(**{name: tensor.numpy() for name, tensor in sounds.items()})
    expected = live(**sounds)
    np.testing.assert_array_equal(found.exits, expected.exits)
    np.testing.assert_array_equal(found.labels, expected.labels)
