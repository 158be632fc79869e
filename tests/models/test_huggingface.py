"""Files of transformers: read under their names on the hub, they compute what transformers' own models compute."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch

import hubconf
from models import build_detector
from models.official_keys import convert_official, huggingface_family
from models.restore import restore_detector
from models.weights import load_checkpoint, load_for_finetuning
from tests.golden import filled, make_image
from tests.tiny import shrunk
from tools.convert_checkpoint import convert
from util.checkpoints.files import CheckpointError, read_checkpoint
from util.config import dump_config
from util.tensors.image_batch import ImageBatch

transformers = pytest.importorskip("transformers")

values = cache(filled)  # most of them are backbones', which are alike
CONFIG = Path(__file__).parents[2] / "config"
LAST, LAST_THREE = ["stage4"], ["stage2", "stage3", "stage4"]
SIZES = ((64, 96), (96, 70))
# name of our config: (prefix of transformers' classes, stages of the backbone, options)
PEERS = {
    "detr/detr_r50": ("Detr", LAST, {"num_labels": 5}),
    "conditional_detr/conditional_detr_r50": ("ConditionalDetr", LAST, {"num_labels": 5}),
    "deformable_detr/deformable_detr_r50_single_scale": ("DeformableDetr", LAST, {"num_feature_levels": 1}),
    "deformable_detr/deformable_detr_r50": ("DeformableDetr", LAST_THREE, {}),
    "deformable_detr/deformable_detr_r50_box_refine": ("DeformableDetr", LAST_THREE, {"with_box_refine": True}),
    "deformable_detr/deformable_detr_r50_two_stage": (
        "DeformableDetr",
        LAST_THREE,
        {"with_box_refine": True, "two_stage": True},
    ),
}


def resnet(stages, depth=18, timm=False):
    """transformers' ResNet, or timm's as transformers uses it: the same network under other names."""
    if timm:
        indices = [int(stage[-1]) for stage in stages]
        backbone = {"backbone": f"resnet{depth}", "out_indices": indices, "use_pretrained_backbone": False}
        return transformers.TimmBackboneConfig(**backbone)
    if depth == 50:
        return transformers.ResNetConfig(out_features=stages)
    basic = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
    return transformers.ResNetConfig(out_features=stages, **basic)


def peer(name, **backbone):
    """transformers' model of a config, narrow, with weights that follow from their names."""
    prefix, stages, options = PEERS[name]
    options = {"num_labels": 5, "num_queries": 12, "two_stage_num_proposals": 12} | options
    widths = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = getattr(transformers, f"{prefix}Config")(backbone_config=resnet(stages, **backbone), **widths, **options)
    model = getattr(transformers, f"{prefix}ForObjectDetection")(config).eval()
    model.load_state_dict({key: values(key, tuple(value.shape)) for key, value in model.state_dict().items()})
    return model


def ours(name, depth=18):
    return build_detector(
        shrunk(CONFIG / f"{name}.py", **{"model.backbone.depth": depth, "model.num_classes": 5})
    ).eval()


def assert_same_answers(detector, model):
    batch = ImageBatch.of([make_image(h, w, float(i)) for i, (h, w) in enumerate(SIZES)])
    with torch.no_grad():
        wanted, found = model(batch.images, (~batch.padding).long()), detector(batch)
    assert wanted.logits.std() > 0.01
    torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.boxes, wanted.pred_boxes, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", PEERS)
def test_a_saved_model_answers_the_same(name, tmp_path, caplog):
    caplog.set_level("INFO")
    model = peer(name)
    model.save_pretrained(tmp_path)
    file, detector = tmp_path / "model.safetensors", ours(name)
    load_checkpoint(detector, read_checkpoint(file), name.split("/")[0], str(file))
    assert f"an official huggingface_{name.split('/')[0]} checkpoint" in caplog.text
    assert_same_answers(detector, model)


REAL_TIME = {
    "rt_detr/rtdetr_r18vd": ("RTDetr", {"hidden_expansion": 0.5, "decoder_layers": 3}),
    "rt_detr/rtdetrv2_r18vd": ("RTDetrV2", {"hidden_expansion": 0.5, "decoder_layers": 3}),
    "rt_detr/rtdetrv2_r18vd_dsp": (
        "RTDetrV2",
        {"hidden_expansion": 0.5, "decoder_layers": 3, "decoder_method": "discrete"},
    ),
    "d_fine/dfine_hgnetv2_l": ("DFine", {"hidden_expansion": 1.0, "decoder_n_points": [3, 6, 3]}),
    "d_fine/dfine_hgnetv2_s": (
        "DFine",
        {"hidden_expansion": 0.5, "depth_mult": 0.34, "decoder_layers": 3, "decoder_n_points": [3, 6, 3]},
    ),
}


def real_time_backbone(name):
    """transformers' description of the backbone, and the widths of its maps."""
    stages = {"out_features": LAST_THREE}
    if name.startswith("rt_detr"):
        widths = [64, 128, 256, 512]
        basic = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": widths}
        return transformers.RTDetrResNetConfig(**basic, **stages), widths[1:]
    if name.endswith("_l"):
        return transformers.HGNetV2Config(**stages), [512, 1024, 2048]
    small = {
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 64, 256, 512],
        "stage_mid_channels": [16, 32, 64, 128],
        "stage_out_channels": [64, 256, 512, 1024],
        "hidden_sizes": [64, 256, 512, 1024],
        "stage_num_blocks": [1, 1, 2, 1],
        "stage_numb_of_layers": [3, 3, 3, 3],
        "use_learnable_affine_block": True,
    }
    return transformers.HGNetV2Config(**small, **stages), [256, 512, 1024]


def real_time_peer(name):
    """transformers' model of a config, narrow, with weights that follow from their names."""
    prefix, options = REAL_TIME[name]
    backbone, widths = real_time_backbone(name)
    sizes = dict.fromkeys(("d_model", "encoder_hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 32)
    sizes |= {"encoder_in_channels": widths, "decoder_in_channels": [32] * 3, "num_queries": 12, "num_labels": 5}
    config = getattr(transformers, f"{prefix}Config")(backbone_config=backbone, **sizes, **options)
    model = getattr(transformers, f"{prefix}ForObjectDetection")(config).eval()
    constants = re.compile(r"(points_scale|\.up|reg_scale)$")
    model.load_state_dict(
        {k: v if constants.search(k) else values(k, tuple(v.shape)) for k, v in model.state_dict().items()}
    )
    return model


@pytest.mark.parametrize("name", REAL_TIME)
@pytest.mark.parametrize("form", ["saved", "as the module names them"])
def test_real_time_models_answer_the_same(name, form, tmp_path):
    """On images of a size, also oblong ones: transformers pads none, and reads discrete points rightly on squares."""
    model, detector = real_time_peer(name), build_detector(shrunk(CONFIG / f"{name}.py", **{"model.num_classes": 5}))
    model.save_pretrained(tmp_path)
    weights = read_checkpoint(tmp_path / "model.safetensors") if form == "saved" else {"model": model.state_dict()}
    load_checkpoint(detector, weights, name.split("/")[0], "model.safetensors")
    height, width = (128, 128) if name.endswith("_dsp") else (96, 160)
    images = [make_image(height, width, float(i)) for i in range(2)]
    with torch.no_grad():
        wanted, found = model(torch.stack(images)), detector.eval()(images)
    assert wanted.logits.std() > 0.01
    torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.boxes, wanted.pred_boxes, rtol=0, atol=1e-4)


def test_a_backbone_of_timm(tmp_path):
    name = "detr/detr_r50"
    model, detector = peer(name, timm=True), ours(name)
    model.save_pretrained(tmp_path)
    weights = read_checkpoint(tmp_path / "model.safetensors")
    assert "model.backbone.conv_encoder.model.layer4.1.bn2.weight" in weights
    counter = "model.backbone.conv_encoder.model.layer1.0.downsample.1.num_batches_tracked"  # in files on the hub
    load_checkpoint(detector, {**weights, counter: torch.tensor(0)}, "detr", "model.safetensors")
    assert_same_answers(detector, model)


def test_blocks_of_three_convolutions():
    body = transformers.AutoBackbone.from_config(resnet(LAST, depth=50)).state_dict()
    named = {f"model.backbone.conv_encoder.model.{key}": value for key, value in body.items()}
    found = convert_official(named, "huggingface_detr")
    wanted = ours("detr/detr_r50", depth=50).backbone.state_dict()
    assert {key: value.shape for key, value in found.items()} == {f"backbone.{k}": v.shape for k, v in wanted.items()}


def test_heads_of_older_releases(tmp_path):
    """They store one head for each layer, under either name, with or without those that are equal."""
    name = "deformable_detr/deformable_detr_r50_box_refine"
    model = peer(name)
    model.save_pretrained(tmp_path)
    weights = read_checkpoint(tmp_path / "model.safetensors")
    wanted = convert_official(weights, "huggingface_deformable_detr")
    older = {key.replace("model.decoder.bbox_embed", "bbox_embed"): value for key, value in weights.items()}
    older |= {f"class_embed.{i}.bias": torch.full((5,), float(i)) for i in range(1, 6)}
    found = convert_official(older, "huggingface_deformable_detr")
    assert found.keys() == wanted.keys()
    assert torch.equal(
        found["decoder.heads.3.bbox_embed.layers.2.bias"], wanted["decoder.heads.3.bbox_embed.layers.2.bias"]
    )
    assert found["decoder.heads.3.class_embed.bias"].eq(3).all()
    assert wanted["decoder.heads.3.class_embed.bias"].equal(weights["class_embed.0.bias"])


def test_finetuning_from_a_file_of_the_hub(tmp_path, caplog):
    """A detector of another family takes the backbone, the neck and the encoder."""
    caplog.set_level("INFO")
    peer("deformable_detr/deformable_detr_r50").save_pretrained(tmp_path)
    detector = build_detector(shrunk(CONFIG / "DINO/dino_4scale_r50.py", **{"model.backbone.depth": 18}))
    load_for_finetuning(detector, str(tmp_path / "model.safetensors"), "dino", [])
    linear = values("model.encoder.layers.5.mlp.fc1.weight", (32, 32))
    assert torch.equal(detector.encoder.layers[5].linear1.weight, linear)
    assert "skipped, since this model has no such weights (3): queries.embed.weight" in caplog.text


def test_foreign_keys_are_named():
    keys = {
        "model.backbone.conv_encoder.model.conv1.weight": torch.zeros(1),
        "model.encoder.layernorm.bias": torch.zeros(1),
    }
    assert huggingface_family(keys) == "huggingface_detr"
    with pytest.raises(
        CheckpointError, match=r"table\.safetensors: .*huggingface_detr.*model\.encoder\.layernorm\.bias"
    ):
        load_checkpoint(torch.nn.Identity(), keys, "detr", "table.safetensors")
    assert huggingface_family({"transformer.level_embed": None}) is None


def test_a_folder_of_transformers_is_a_checkpoint_everywhere(tmp_path, caplog):
    """In one file or several: it is evaluated, fine-tuned from, restored, converted and taken by the hub alike."""
    caplog.set_level("INFO")
    name, options = "detr/detr_r50", {"model.backbone.depth": 18, "model.num_classes": 5}
    model, folder, config = peer(name), tmp_path / "hub", tmp_path / "detr_r50.py"
    model.save_pretrained(folder, max_shard_size="20MB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    config.write_text(dump_config(shrunk(CONFIG / f"{name}.py", **options)))
    assert_same_answers(restore_detector(folder, config).detector, model)
    assert_same_answers(hubconf._load(config, folder).eval(), model)
    fine = ours(name)
    load_for_finetuning(fine, str(folder), "detr", [])
    assert_same_answers(fine, model)
    convert(folder, tmp_path / "one.safetensors")
    assert_same_answers(restore_detector(tmp_path / "one.safetensors", config).detector, model)
    assert "an official huggingface_detr checkpoint" in caplog.text
    lightning = {
        "state_dict": {f"model.{key}": value for key, value in read_checkpoint(tmp_path / "one.safetensors").items()}
    }
    detector = ours(name)
    load_checkpoint(detector, lightning, "detr", "lightning.ckpt")
    assert_same_answers(detector, model)
    next(folder.glob("model-00002-of-*")).unlink()
    with pytest.raises(CheckpointError, match=r"hub: model-00002-of-\S+ of its \d files of weights is missing"):
        restore_detector(folder, config)
