"""Poses, face meshes, masks, cut-outs, super-resolution and classes on photos, against published results and oracles.

Oracles are a few plain lines each, written from the model's own documentation. Tolerances:
- MoveNet's published joints come from another build of it: each within 0.05 of the photo's sides, 0.012 on average (its
  heat map has 48 cells a side, so 0.05 is 2.4 cells). Its scores are steps of a coarse quantisation: not compared.
- DeepLab's published mask: at least 95 % of the pixels (a quantised model on another processor gets 96 %).
- Oracles feed the same numbers: a photo that is a JPEG becomes a PNG first, since its decoders differ by a level or
  two. What is left is the last digit of a score, and half a step of a mask's 255.
- Super-resolution: 99.9 % of the values within 2 of 255, all within 8, on average 0.5: colours are enlarged as RGB of 8
  bits here, which clips what bicubic overshoots, and as exact Cb and Cr there.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from edgeferry.model.manifest import Golden, TruthObject
from edgeferry.vision.answer import Answer, ClassificationAnswer, PictureAnswer, SegmentationAnswer, list_objects
from edgeferry.vision.golden import judge
from models_real.oracle import sigmoid
from models_real.serving import Seen, answer_photo, assert_alike, open_rgb, save_exact

pytestmark = pytest.mark.needs_shared
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


def run_litert(model: Path, tensor: np.ndarray) -> list[np.ndarray]:
    interpreter = Interpreter(str(model), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], tensor)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]).copy() for detail in interpreter.get_output_details()]


def run_onnx(model: Path, tensor: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, {session.get_inputs()[0].name: tensor})[0]
    return output


def shrink(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), BILINEAR))


def read_png(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


# --- MoveNet ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def movenet(shared_models: Path) -> Path:
    return shared_models / "pose" / "movenet_single_pose_lightning_ptq.tflite"


def test_movenet_finds_the_joints_that_are_published(shared_models: Path, movenet: Path) -> None:
    rows = list(csv.DictReader((movenet.parent / f"{movenet.stem}_reference.csv").read_text().splitlines()))
    published = np.array([(float(row["keypoint_x"]), float(row["keypoint_y"])) for row in rows])
    (person,) = list_objects(answer_photo(movenet, shared_models / "images" / "squat.png"))
    off = np.abs(np.array([(point.x, point.y) for point in person.points]) - published)
    assert person.label == "person"
    assert off.shape == (17, 2)
    assert off.max() <= 0.05
    assert off.mean() <= 0.012


def see_by_movenet(model: Path, photo: Path) -> Seen:
    """TensorFlow Hub, movenet/singlepose/lightning: resized with padding on black; (y, x, score) of that square."""
    image = open_rgb(photo)
    scale = 192 / max(image.size)
    width, height = (round(side * scale) for side in image.size)
    canvas = Image.new("RGB", (192, 192))
    left, top = (192 - width) // 2, (192 - height) // 2
    canvas.paste(image.resize((width, height), BILINEAR), (left, top))
    joints = run_litert(model, np.asarray(canvas)[None])[0][0, 0].tolist()
    points = [((x * 192 - left) / width, (y * 192 - top) / height) for y, x, _ in joints]
    sure = [point for point, (_, _, score) in zip(points, joints, strict=True) if score >= 0.3]
    xs, ys = [x for x, _ in sure], [y for _, y in sure]
    score = sum(score for *_, score in joints) / 17
    return Seen("person", score, (min(ys), min(xs), max(ys), max(xs)), tuple(points))


@pytest.mark.parametrize("photo", ["squat.png", "person_dog_horse.jpg"])
def test_movenet_sees_what_its_documentation_says(
    shared_models: Path, tmp_path: Path, movenet: Path, photo: str
) -> None:
    path = save_exact(shared_models / "images" / photo, tmp_path)  # a level of grey moves a joint by a cell
    assert_alike(answer_photo(movenet, path), [see_by_movenet(movenet, path)], score=0.001, place=0.001)


# --- face mesh --------------------------------------------------------------------------------------------------------
@pytest.fixture
def face(shared_models: Path, tmp_path: Path) -> Path:
    """A picture that a face fills."""
    path = tmp_path / "face.png"
    open_rgb(shared_models / "images" / "grace_hopper.jpg").crop((150, 80, 400, 360)).save(path)
    return path


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_face_mesh_is_what_mediapipe_reads_from_its_tensors(shared_models: Path, face: Path, version: str) -> None:
    """TensorsToLandmarksCalculator: x and y by the input's sides, z by its width; presence through the sigmoid."""
    model = shared_models / "pairs" / "facelandmark_fp16_reserialised" / f"{version}.tflite"
    outputs = run_litert(model, (shrink(open_rgb(face), 192) / 255).astype(np.float32)[None])
    numbers, (presence,) = sorted((output.reshape(-1).tolist() for output in outputs), key=len, reverse=True)
    points = [(x / 192, y / 192) for x, y in zip(numbers[::3], numbers[1::3], strict=True)]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    answer = answer_photo(model, face)
    wanted = Seen("face", sigmoid(presence), (min(ys), min(xs), max(ys), max(xs)), tuple(points))
    assert wanted.score > 0.9
    assert_alike(answer, [wanted], score=0.001, place=0.001)
    depths = [point.z for point in list_objects(answer)[0].points]
    assert depths == pytest.approx([z / 192 for z in numbers[2::3]], abs=0.001)


def test_a_face_mesh_sees_no_face_in_a_cat(shared_models: Path) -> None:
    model = shared_models / "pairs" / "facelandmark_fp16_reserialised" / "v2.tflite"
    assert list_objects(answer_photo(model, shared_models / "images" / "cat.jpg")) == ()


# --- masks ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def deeplab(shared_models: Path) -> Path:
    return shared_models / "segmentation" / "deeplabv3_mnv2_dm05_pascal_quant.tflite"


def segment(model: Path, photo: Path, labels: Path | None = None) -> tuple[SegmentationAnswer, np.ndarray]:
    """The answer, and the class map that its run lengths tell."""
    answer = answer_photo(model, photo, labels=labels)
    assert isinstance(answer, SegmentationAnswer)
    indices, lengths = np.array(answer.runs).T
    return answer, np.repeat(indices, lengths).reshape(answer.height, answer.width)


def test_deeplab_makes_the_mask_that_is_published(shared_models: Path, deeplab: Path) -> None:
    images = shared_models / "images"
    published = np.asarray(Image.open(images / "bird_segmentation_mask.png"))
    answer, classes = segment(
        deeplab, images / "bird_segmentation.png", deeplab.parent / "pascal_voc_segmentation_labels.txt"
    )
    assert (classes == published).mean() >= 0.95
    assert [one.label for one in answer.classes][:2] == ["background", "bird"]
    assert answer.classes[1].share == pytest.approx((published == 3).mean(), abs=0.03)
    assert (read_png(answer.png) == classes).all()


@pytest.mark.parametrize("photo", ["bird_segmentation.png", "dog_bicycle_car.jpg", "person_dog_horse.jpg"])
def test_deeplab_maps_are_the_models_own_argmax(shared_models: Path, tmp_path: Path, deeplab: Path, photo: str) -> None:
    path = save_exact(shared_models / "images" / photo, tmp_path)
    _, classes = segment(deeplab, path)
    wanted = run_litert(deeplab, shrink(open_rgb(path), 513)[None])[0][0]
    assert len(np.unique(wanted)) > 2
    assert (classes == wanted).all()


@pytest.fixture
def selfie(shared_models: Path) -> Path:
    return shared_models / "segmentation" / "selfie_segmentation.tflite"


def find_person(model: Path, photo: Path) -> np.ndarray:
    """MediaPipe, selfie_segmentation: stretched to 256 x 256, RGB 0..1; the output is a probability already."""
    tensor = (shrink(open_rgb(photo), 256) / 255).astype(np.float32)[None]
    plane: np.ndarray = run_litert(model, tensor)[0][0, :, :, 0]
    return plane


def test_selfie_segmentation_keeps_the_probabilities_of_the_model(
    shared_models: Path, tmp_path: Path, selfie: Path
) -> None:
    path = save_exact(shared_models / "images" / "grace_hopper.jpg", tmp_path)
    answer, classes = segment(selfie, path)
    wanted = find_person(selfie, path)
    assert np.abs(read_png(answer.png) / 255 - wanted).max() <= 0.5 / 255 + 1e-6
    assert (classes == (wanted >= 0.5)).all()
    assert (answer.classes[0].label, answer.classes[0].share) == ("person", pytest.approx(0.58, abs=0.01))


def test_background_removal_cuts_the_photo_out_by_the_same_probabilities(
    shared_models: Path, tmp_path: Path, selfie: Path
) -> None:
    path = save_exact(shared_models / "images" / "grace_hopper.jpg", tmp_path)
    answer = answer_photo(selfie, path, task="image")
    assert isinstance(answer, PictureAnswer)
    made, photo = read_png(answer.png), open_rgb(path)
    assert made.shape == (photo.height, photo.width, 4)
    assert (made[:, :, :3] == np.asarray(photo)).all()
    shades = Image.fromarray(np.rint(find_person(selfie, path) * 255).astype(np.uint8))
    assert np.abs(made[:, :, 3] - np.asarray(shades.resize(photo.size, BILINEAR)).astype(int)).max() <= 1


# --- super-resolution -------------------------------------------------------------------------------------------------
def enlarge_plainly(model: Path, image: Image.Image) -> np.ndarray:
    """PyTorch's tutorial on exporting to ONNX: Y by the model, Cb and Cr bicubic; conversions as JFIF 1.02 has them."""
    red, green, blue = np.asarray(image).astype(np.float64).transpose(2, 0, 1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    made = run_onnx(model, (luma.round() / 255).astype(np.float32)[None, None])[0, 0].astype(np.float64) * 255
    made, size = made.clip(0, 255), (made.shape[1], made.shape[0])
    chroma = [((blue - luma) / 1.772).astype(np.float32), ((red - luma) / 1.402).astype(np.float32)]
    to_blue, to_red = (np.asarray(Image.fromarray(plane).resize(size, BICUBIC)) for plane in chroma)
    planes = [made + 1.402 * to_red, made - 0.344136 * to_blue - 0.714136 * to_red, made + 1.772 * to_blue]
    return np.stack(planes, axis=2).clip(0, 255)


def test_super_resolution_makes_what_its_tutorial_makes(shared_models: Path, tmp_path: Path) -> None:
    model = shared_models / "image2image" / "super_resolution.onnx"
    small = open_rgb(shared_models / "images" / "cat.jpg").crop((460, 60, 908, 508)).resize((224, 224), BICUBIC)
    small.save(tmp_path / "small.png")
    answer = answer_photo(model, tmp_path / "small.png")
    assert isinstance(answer, PictureAnswer)
    made, wanted = read_png(answer.png), enlarge_plainly(model, small)
    assert made.shape == wanted.shape == (672, 672, 3)
    off = np.abs(made - wanted)
    assert off.max() <= 8
    assert np.percentile(off, 99.9) <= 2
    assert off.mean() <= 0.5


def test_super_resolution_keeps_the_shape_of_a_photo(shared_models: Path) -> None:
    photo = shared_models / "images" / "cat.jpg"
    answer = answer_photo(shared_models / "image2image" / "super_resolution.onnx", photo)
    assert isinstance(answer, PictureAnswer)
    assert (answer.width, answer.height) == (672, 378)
    plain = np.asarray(open_rgb(photo).resize((672, 378), BICUBIC)).astype(int)
    off = np.abs(read_png(answer.png) - plain).mean(axis=(1, 2))  # by row: no line along the edges
    assert off.mean() <= 5
    assert off.max() <= 2.5 * off.mean()


# --- classes ----------------------------------------------------------------------------------------------------------
def classify(model: Path, photo: Path, labels: Path | None = None, **overrides: object) -> dict[str, float]:
    """Scores by label; all of them."""
    everything = {"score": 0.0, "max_results": 1001}
    answer = answer_photo(model, photo, labels=labels, thresholds=everything, **overrides)
    assert isinstance(answer, ClassificationAnswer)
    return {one.label: one.score for one in answer.classes}


def soften(logits: np.ndarray) -> list[float]:
    powers = [math.exp(value - max(logits.tolist())) for value in logits.tolist()]
    return [power / sum(powers) for power in powers]


def require_scores(found: dict[str, float], lines: list[str], wanted: list[float], *, off: float) -> None:
    """`wanted` scores by class, the label of class i at line i; the best of them is the best that was found."""
    assert next(iter(found)) == lines[wanted.index(max(wanted))]
    for line, score in zip(lines, wanted, strict=True):
        if lines.count(line) == 1:  # ImageNet has two cranes and two maillots
            assert found[line] == pytest.approx(score, abs=off), line


def write_labels(folder: Path, names: list[str]) -> Path:
    (folder / "labels.txt").write_text("\n".join(names))
    return folder / "labels.txt"


def test_a_handwritten_nine_is_a_nine(shared_models: Path, tmp_path: Path) -> None:
    """ONNX zoo, mnist: grey 28 x 28, 0..255; ten logits."""
    model, photo = shared_models / "classification" / "mnist-8.onnx", shared_models / "images" / "mnist_nine.png"
    digits = [str(digit) for digit in range(10)]
    spec = {"mean": [0], "std": [1], "fit": "stretch"}
    logits = run_onnx(model, np.asarray(Image.open(photo)).astype(np.float32)[None, None])[0]
    found = classify(model, photo, write_labels(tmp_path, digits), input=spec)
    assert next(iter(found)) == "9"
    require_scores(found, digits, soften(logits), off=0.001)


NAMED = {"cat.jpg": "Egyptian cat", "bird.png": "chickadee", "grace_hopper.jpg": "military uniform"}


@pytest.mark.parametrize("photo", list(NAMED))
def test_mobilenet_in_int8_onnx_classifies_as_torchvision_feeds_it(shared_models: Path, photo: str) -> None:
    """Torchvision, MobileNet_V2_Weights: shorter side to 256, the middle 224 x 224, ImageNet's mean and deviation.

    Ours fits in one step where torchvision resizes, rounds and then cuts: up to 0.05 of a score.
    """
    folder, path = shared_models / "classification", shared_models / "images" / photo
    image = open_rgb(path)
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224))) / 255
    tensor = ((pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).astype(np.float32)
    wanted = soften(run_onnx(folder / "mobilenet_v2_int8.onnx", tensor.transpose(2, 0, 1)[None])[0])
    means = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "fit": "crop", "resize_to": 256}
    labels = folder / "imagenet_labels.txt"
    found = classify(folder / "mobilenet_v2_int8.onnx", path, labels, input=means)
    lines = labels.read_text().splitlines()[1:]
    best = max(range(1000), key=wanted.__getitem__)
    assert next(iter(found)) == lines[best]
    assert found[lines[best]] == pytest.approx(wanted[best], abs=0.05)
    assert sum(abs(found[line] - score) for line, score in zip(lines, wanted, strict=True) if score > 0.01) < 0.25


@pytest.mark.parametrize("photo", list(NAMED))
@pytest.mark.parametrize(
    ("file", "side"), [("mobilenet_v2_1.0_224_quant.tflite", 224), ("mobilenet_v1_0.25_128_quant.tflite", 128)]
)
def test_quantised_mobilenets_answer_their_own_numbers(
    shared_models: Path, tmp_path: Path, file: str, side: int, photo: str
) -> None:
    folder, path = shared_models / "classification", save_exact(shared_models / "images" / photo, tmp_path)
    steps = run_litert(folder / file, shrink(open_rgb(path), side)[None])[0][0]
    found = classify(folder / file, path)
    require_scores(found, (folder / "imagenet_labels.txt").read_text().splitlines(), (steps / 256).tolist(), off=0.001)
    if "v2" in file:
        assert next(iter(found)) == NAMED[photo]


@pytest.mark.parametrize(("version", "classes"), [("v1", 5), ("v2", 4)])
def test_teachable_machine_models_see_pixels_from_minus_one_to_one(
    shared_models: Path, tmp_path: Path, version: str, classes: int
) -> None:
    folder, photo = shared_models / "pairs" / "teachable_fp32_head_retrain", shared_models / "images" / "bird.png"
    written = (folder / "v2_labels.txt").read_text().splitlines()
    names = [line.split(" ", 1)[-1] for line in written] if version == "v2" else [f"class {i}" for i in range(5)]
    model = folder / f"{version}.tflite"
    wanted = run_litert(model, (shrink(open_rgb(photo), 224) / 127.5 - 1).astype(np.float32)[None])[0][0]
    assert len(names) == len(wanted) == classes
    found = classify(model, photo, write_labels(tmp_path, names), input={"mean": [127.5], "std": [127.5]})
    require_scores(found, names, wanted.tolist(), off=0.001)


# --- golden truth -----------------------------------------------------------------------------------------------------
def holds(answer: Answer, label: str, box: tuple[float, float, float, float] | None) -> bool:
    """Whether a device would take the version, when a person says that this is to be seen."""
    golden = Golden(input="sha256:" + "0" * 64, size=1, truth=(TruthObject(label=label, box=box),))
    return judge([(golden, answer)]).passed


def test_what_a_person_says_of_the_photos_holds_and_what_is_wrong_does_not(
    shared_models: Path, movenet: Path, deeplab: Path, selfie: Path
) -> None:
    images, labels = shared_models / "images", deeplab.parent / "pascal_voc_segmentation_labels.txt"
    pose = answer_photo(movenet, images / "squat.png")
    assert holds(pose, "person", (0.22, 0.22, 0.97, 0.72))
    assert not holds(pose, "person", (0.0, 0.6, 0.4, 1.0))
    bird = answer_photo(deeplab, images / "bird_segmentation.png", labels=labels)
    assert holds(bird, "bird", (0.12, 0.15, 0.77, 0.94))
    assert not holds(bird, "cat", None)
    assert holds(answer_photo(selfie, images / "grace_hopper.jpg"), "person", (0.04, 0.0, 1.0, 1.0))
    assert holds(answer_photo(selfie, images / "grace_hopper.jpg", task="image"), "person", None)
