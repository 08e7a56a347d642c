from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from packaging.version import Version
from PIL import Image

pytest.importorskip("transformers", reason="the extra vlm is not installed")

import transformers

from medkit.data.conversations import Conversation, Turn
from medkit.data.encoded import IGNORED, Encoded, given, padded
from medkit.data.reports import ReportDataModule
from medkit.synth.phantom_series import phantom_series
from medkit.vlm import hub
from medkit.vlm.answers import write_answers
from medkit.vlm.model import LitVLM
from medkit.vlm.packs import require_exact_packing
from medkit.vlm.processors import FAMILIES
from tests.vlm.checkpoints import PARTS, checkpoint, conversations, gemma3, pictures, tokenizer_of

Folder = Any


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in made:
            made[name] = checkpoint(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder_of


def images(files: Sequence[str]) -> list[Any]:
    return [Image.open(file).convert("RGB") for file in files]


@pytest.mark.parametrize("name", list(PARTS))
def test_a_real_family_trains_answers_and_packs_from_its_folder(
    name: str, folder: Folder, tmp_path: Path
) -> None:
    path = folder(name)
    some = conversations(tmp_path)
    dm = ReportDataModule(
        some, hub.encoder(model_id=str(path)), batch_size=2, val_fraction=0.25, test_fraction=0.25
    )
    lit = LitVLM("medkit.vlm.hub:pretrained", {"model_id": str(path)})
    before = {n: value.clone() for n, value in lit.model.named_parameters()}
    trainer = pl.Trainer(
        max_steps=2, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(lit, dm)
    groups = {
        lit.groups[n] for n, v in lit.model.named_parameters() if not torch.equal(v, before[n])
    }
    assert groups == {"vision", "aligner", "llm"}
    encoder = dm.encoder
    assert len(write_answers(lit.model, encoder, some, max_new_tokens=3, batch_size=3)) == 4
    if name != "paligemma":  # which looks in both directions
        batch = padded([encoder.encode(one) for one in some], 0)
        assert require_exact_packing(lit.model, batch) < 1e-5


@pytest.mark.parametrize("name", list(PARTS))
def test_a_batch_of_several_pictures_is_what_each_conversation_is_alone(
    name: str, folder: Folder, tmp_path: Path
) -> None:
    encoder = hub.encoder(model_id=str(folder(name)))
    model = hub.pretrained(model_id=str(folder(name))).eval()
    some = [encoder.encode(one) for one in conversations(tmp_path)]
    with torch.no_grad():
        together = model(**given(padded(some, 0))).logits
        for row, one in enumerate(some):
            alone = model(**given(padded([one], 0))).logits[0]
            torch.testing.assert_close(together[row, : len(one.ids)], alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", list(PARTS))
def test_an_answer_is_learnt_to_its_end_and_asked_for_as_it_was_learnt(
    name: str, folder: Folder, tmp_path: Path
) -> None:
    encoder = hub.encoder(model_id=str(folder(name)))
    one = conversations(tmp_path)[1]
    encoded, prompt = encoder.encode(one), encoder.prompt(one)
    learnt = encoded.ids[encoded.labels != IGNORED]
    said = encoder.tokenizer.decode(learnt)
    assert said.strip() == one.answer + encoder.tokenizer.eos_token
    assert torch.equal(encoded.ids[: len(prompt.ids)], prompt.ids)
    assert encoded.labels[len(prompt.ids)] == encoded.ids[len(prompt.ids)]  # and from its start


@pytest.mark.parametrize("name", ["llava", "idefics3", "blip2", "paligemma"])
def test_what_the_model_gets_is_what_its_own_processor_makes(
    name: str, folder: Folder, tmp_path: Path
) -> None:
    parts, one = PARTS[name], conversations(tmp_path)[1]
    tokenizer = tokenizer_of(parts)
    images_of = hub.encoder(model_id=str(folder(name))).pictures.processor
    kind = getattr(transformers, {
        "llava": "LlavaProcessor", "idefics3": "Idefics3Processor", "blip2": "Blip2Processor",
        "paligemma": "PaliGemmaProcessor",
    }[name])  # fmt: skip
    own = kind(images_of, tokenizer, **parts.whole)
    files = images(one.images)
    if parts.template is not None:
        question = one.turns[0].content.rpartition("<image>")[2]
        content = [*({"type": "image"} for _ in files), {"type": "text", "text": question}]
        asked = [{"role": "user", "content": content}]
        text = own.apply_chat_template(
            asked, parts.template, add_generation_prompt=True, tokenize=False
        )
        files = [files] if name == "idefics3" else files
    elif name == "paligemma":
        text, files = "<image><image>is there a nodule?", [files]
    else:  # one picture is all that its processor writes tokens for
        text, files = "Question: is there a nodule? Answer:", files[:1]
        one = conversations(tmp_path)[0]
    true = dict(own(images=files, text=text, return_tensors="pt"))
    found = hub.encoder(model_id=str(folder(name))).prompt(one)
    assert found.ids.tolist() == true.pop("input_ids")[0].tolist()
    batch = given(padded([found], 0))
    for field in set(true) - {"labels", "attention_mask"}:
        assert torch.equal(batch[field], true[field]), field
    assert set(true) - {"labels"} >= set(batch) - {"input_ids"}


@pytest.mark.parametrize(
    "name", ["qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision", "smolvlm"]
)
@pytest.mark.parametrize("sizes", [[(40, 40)], [(64, 32), (32, 100)]], ids=["one", "two"])
def test_a_picture_stands_for_as_many_tokens_as_its_own_processor_writes(
    name: str, sizes: list[tuple[int, int]], folder: Folder, tmp_path: Path
) -> None:
    """These do not load without torchvision, or num2words; what they write of a picture does."""
    seen = hub.encoder(model_id=str(folder(name))).pictures
    kind = {
        "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor",
        "internvl": "InternVLProcessor", "llava_onevision": "LlavaOnevisionProcessor",
        "smolvlm": "SmolVLMProcessor",
    }[name]  # fmt: skip
    real = getattr(transformers, kind)
    own = SimpleNamespace(
        image_processor=seen.processor, image_token=seen.mark, image_seq_length=4,
        start_image_token="<img>", end_image_token="</img>", num_image_tokens=16,
        vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_9",
        image_seq_len=4, fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
    )  # fmt: skip
    for method in ("_get_number_of_features", "_get_unpadded_features"):
        if hasattr(real, method):
            setattr(own, method, getattr(real, method).__get__(own))
    files = pictures(tmp_path, *sizes)
    _, texts = seen(files)
    together = images(files)
    asked = [together] if seen.family.nested else together
    found = seen.processor(images=asked, return_tensors="pt", **seen.family.asked)
    assert texts == [real.replace_image_token(own, found, n) for n in range(len(files))]


def test_qwen_is_told_what_is_a_picture_or_its_places_would_be_those_of_text(
    folder: Folder, tmp_path: Path
) -> None:
    encoder = hub.encoder(model_id=str(folder("qwen2_5_vl")))
    model = hub.pretrained(model_id=str(folder("qwen2_5_vl"))).eval()
    one = encoder.encode(conversations(tmp_path)[1])
    batch = given(padded([one], 0))
    kinds = batch.pop("mm_token_type_ids")
    assert kinds[0].tolist() == (one.ids == model.config.image_token_id).tolist()
    with torch.no_grad():
        told = model(**batch, mm_token_type_ids=kinds).logits
        assert (model(**batch).logits - told).abs().max() > 1e-3


def test_a_picture_has_no_more_tokens_than_it_may(folder: Folder, tmp_path: Path) -> None:
    files = pictures(tmp_path, (512, 512))
    for name, most, tokens in (
        ("qwen2_5_vl", 32 * 32, 4),
        ("internvl", 3 * 32 * 32, 4),  # its shape wants one tile or four
        ("internvl", 4 * 32 * 32, 4 * 5),  # four and the whole
        ("smolvlm", 33 * 33, 4),
        ("llava_onevision", 32 * 32, 16 + 16 + 4),
        ("llava", 1, 16),  # always as many
    ):
        seen = hub.encoder(model_id=str(folder(name)), max_pixels=most).pictures
        (text,) = seen(files)[1]
        assert text.count(seen.mark) == tokens, name
    own = hub.encoder(model_id=str(folder("qwen2_5_vl")), max_pixels=None).pictures
    assert own(files)[1][0].count(own.mark) == 16  # its own 4,096 pixels


def test_a_conversation_longer_than_the_model_reads_is_refused(
    folder: Folder, tmp_path: Path
) -> None:
    one = conversations(tmp_path)[2]
    path = str(folder("llava"))
    assert hub.encoder(model_id=path).longest == 256
    long = hub.encoder(model_id=path, longest=40)
    with pytest.raises(ValueError, match=r"may have 40 tokens.*3 pictures has 78.*fewer slices"):
        long.encode(one)
    with pytest.raises(ValueError, match="may have 40 tokens"):
        long.prompt(one)


def test_a_study_is_several_slices_of_dicom_and_nifti(folder: Folder, tmp_path: Path) -> None:
    (slice_,) = phantom_series(slices=1)
    slice_.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    hu = np.linspace(-1000, 400, 40 * 32).reshape(40, 32, 1).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(hu, np.eye(4)), tmp_path / "b.nii.gz")
    files = (str(tmp_path / "a.dcm"), str(tmp_path / "b.nii.gz"))
    turns = (Turn("user", "Above:<image> below:<image> change?"), Turn("assistant", "no."))
    encoder = hub.encoder(model_id=str(folder("qwen2_5_vl")))
    one = encoder.encode(Conversation(turns, files))
    tokens = one.pictures["image_grid_thw"].prod(1) // 4
    said = re.sub(r"(<.image_pad.>)+", "#", encoder.tokenizer.decode(one.ids))
    eyes = "<|vision_start|>#<|vision_end|>"
    assert f"Above:{eyes} below:{eyes} change?<|im_end|>" in said
    mark = encoder.tokenizer.convert_tokens_to_ids(encoder.mark)
    assert (one.ids == mark).sum() == tokens.sum()
    lung = hub.encoder(model_id=str(folder("qwen2_5_vl")), window_hu=(-1000, 3000))
    assert not torch.equal(
        lung.encode(Conversation(turns, files)).pictures["pixel_values"],
        one.pictures["pixel_values"],
    )


def test_colours_are_kept_and_grey_is_given_thrice(folder: Folder, tmp_path: Path) -> None:
    seen = hub.encoder(model_id=str(folder("llava"))).pictures
    colours = np.zeros((32, 32, 3), np.uint8)
    colours[..., 0] = 255
    Image.fromarray(colours).save(tmp_path / "red.png")
    Image.fromarray(colours[..., 0]).save(tmp_path / "grey.png")
    found = seen([str(tmp_path / "red.png"), str(tmp_path / "grey.png")])[0]["pixel_values"]
    red, grey = found
    assert torch.equal(red[0], grey[0])
    assert not torch.equal(red[1], grey[1])


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="its processor says too little"
)
def test_another_family_goes_by_its_own_processor(folder: Folder, tmp_path: Path) -> None:
    path = gemma3(tmp_path / "gemma3")
    assert "gemma3" not in FAMILIES
    encoder = hub.encoder(model_id=str(path))
    some = [encoder.encode(one) for one in conversations(tmp_path)]
    batch = padded(some, 0)
    assert batch["token_type_ids"].sum(1).tolist() == [16, 32, 48, 16]
    model = hub.pretrained(model_id=str(path)).eval()
    assert torch.isfinite(model(**given(batch)).logits).all()


def test_a_template_that_does_not_write_pictures_or_text_is_refused(
    folder: Folder, tmp_path: Path
) -> None:
    one = conversations(tmp_path)[1]
    path = str(folder("llava"))
    parts = (
        "{% for m in messages %}{% for p in m['content'] %}PART{% endfor %}medkit</s>{% endfor %}"
    )
    texts = parts.replace("PART", "{{ p['text'] }}")
    with pytest.raises(ValueError, match=r"'<image>' once a picture; it wrote 0 for 2.*template="):
        hub.encoder(model_id=path, template=texts).encode(one)
    silent = parts.replace("PART", "{{ '<image>' if p['type'] == 'image' }}")
    with pytest.raises(ValueError, match=r"must write all that is said, and leaves 'is there"):
        hub.encoder(model_id=path, template=silent).encode(one)


def test_what_cannot_be_an_encoder_is_refused(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_pixels must be 1 or more.*got 0"):
        hub.encoder(model_id=str(folder("llava")), max_pixels=0)
    tokenizer_of(PARTS["llava"]).save_pretrained(tmp_path)
    transformers.LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must name its image token.*\(llama\) has no"):
        hub.encoder(model_id=str(tmp_path))


def test_a_family_whose_processor_does_not_load_is_refused(tmp_path: Path) -> None:
    tokenizer_of(PARTS["llava"]).save_pretrained(tmp_path)
    transformers.VideoLlavaConfig(image_token_index=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"encoded for the families.*torchvision.*of your own"):
        hub.encoder(model_id=str(tmp_path))


def test_kinds_stay_with_a_longer_conversation() -> None:
    ids = torch.tensor([7, 3, 3, 8])
    one = Encoded(ids, torch.full_like(ids, IGNORED), {}, {"mm_token_type_ids": 3})
    batch = padded([one, Encoded(ids[:2], ids[:2], {}, one.kinds)], 0)
    assert batch["mm_token_type_ids"].tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]
