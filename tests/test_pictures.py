"""Pictures of every kind: read, refused in one line, prepared alike whatever their size and mode, stored and found."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vae.made import squares

import embedstore
from embedstore import InvalidInput, InvalidRecord
from embedstore.pictures import FORMATS, MAX_PIXELS, picture_of, picture_of_record, plain, read_picture, thumbnail
from embedstore.vae.preparation import ImagePreparation

ROOT = Path(__file__).resolve().parent.parent
CORRUPT = {
    "xc1n0g08", "xc9n2c08", "xcrn0g04", "xcsn0g01", "xd0n2c08", "xd3n2c08", "xd9n2c08", "xdtn0g01", "xhdn0g08",
    "xlfn0g04", "xs1n0g01", "xs2n0g01", "xs4n0g01", "xs7n0g01",
}  # fmt: skip
"""The files of PngSuite that its own description calls corrupt."""


def written(image, format_, **options):
    held = io.BytesIO()
    image.save(held, format_, **options)
    return held.getvalue()


def noise_image(mode="RGB", size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_pngsuite_goes_through_but_for_its_corrupt_files(data):
    refused = set()
    for path in sorted((data / "pngsuite").glob("*.png")):
        try:
            plain(read_picture(path).decode())
        except InvalidInput as error:
            refused.add(path.stem)
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused == CORRUPT


@pytest.mark.parametrize("format_", FORMATS)
def test_every_allowed_format_is_read_and_refused_where_it_is_cut_off(format_):
    body = written(noise_image(), format_)
    picture = picture_of(body, None)
    assert (picture.format, picture.width, picture.height) == (format_, 40, 30)
    assert picture.decode().size == (40, 30)
    for cut in (0, 5, 20, len(body) // 3, len(body) - len(body) // 10):
        with pytest.raises(InvalidInput, match="is no picture that can be read|is a broken picture"):
            picture_of(body[:cut], None).decode()


def test_broken_files_of_every_format_are_refused_or_read_and_nothing_is_said_past_python(tmp_path):
    script = (
        "import io, random\n"
        "import numpy as np\n"
        "from PIL import Image\n"
        "from embedstore import InvalidInput\n"
        "from embedstore.pictures import read_picture\n"
        "from embedstore.vae.preparation import ImagePreparation\n"
        "drawn, prepare, bodies = random.Random(5), ImagePreparation(16), []\n"
        "image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))\n"
        "kinds = [('PNG', {}), ('JPEG', {}), ('JPEG', {'progressive': True}), ('WEBP', {}), ('GIF', {}), ('BMP', {})]\n"
        "kinds += [('TIFF', {'compression': one}) for one in ('raw', 'tiff_lzw', 'tiff_deflate', 'jpeg')]\n"
        "for format_, options in kinds:\n"
        "    held = io.BytesIO(); image.save(held, format_, **options); bodies.append(held.getvalue())\n"
        "n_read = n_refused = 0\n"
        "for _ in range(4000):\n"
        "    body = bytearray(drawn.choice(bodies))\n"
        "    for _ in range(drawn.choice((1, 3, 10))):\n"
        "        place = drawn.randrange(min(len(body), drawn.choice((60, 300, len(body)))))\n"
        "        if drawn.random() < 0.8: body[place] = drawn.randrange(256)\n"
        "        else: del body[place : place + drawn.randrange(1, 40)]\n"
        "    try: prepare.apply(read_picture(bytes(body))); n_read += 1\n"
        "    except InvalidInput as error:\n"
        "        assert '\\n' not in str(error); n_refused += 1\n"
        "assert n_read > 200 and n_refused > 200, (n_read, n_refused)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_a_format_that_is_not_on_the_list_is_refused_whatever_its_name(tmp_path):
    (tmp_path / "a.png").write_bytes(written(noise_image(), "ICO", sizes=[(16, 16)]))
    (tmp_path / "b.jpg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    for name in ("a.png", "b.jpg"):
        with pytest.raises(InvalidInput, match=f"{name}' is no picture that can be read; formats are PNG, JPEG"):
            read_picture(tmp_path / name)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded():
    side = int(MAX_PIXELS**0.5) + 10
    bomb = written(Image.new("1", (side, side)), "PNG")
    assert len(bomb) < 20_000
    with pytest.raises(InvalidInput, match=f"has {side} x {side} pixels; at most 40 million are read"):
        picture_of(bomb, None)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_becomes_eight_bits_of_grey_or_colour(mode):
    image = noise_image() if mode in ("I;16", "I", "F") else noise_image(mode)
    if mode in ("I;16", "I", "F"):
        grey = np.asarray(noise_image("L"), np.float32)
        image = Image.fromarray(grey if mode == "F" else (grey * 257).astype(np.uint16 if mode == "I;16" else np.int32))
    prepared = ImagePreparation(16, "colour").pixels_of(image)
    assert prepared.shape == (3, 16, 16) and prepared.dtype == np.uint8 and 40 < prepared.mean() < 215
    assert ImagePreparation(16, "grey").pixels_of(image).shape == (1, 16, 16)


def test_what_is_seen_through_alpha_is_the_background():
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (ImagePreparation(8).pixels_of(image) == 255).all()
    blue = ImagePreparation(8, background=(0, 0, 255)).pixels_of(image)
    assert (blue[2] == 255).all() and (blue[:2] == 0).all()


def test_a_picture_is_turned_as_its_exif_says_and_tells_when_it_was_taken():
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    exif[0x0132] = "2021:05:04 03:02:01"
    picture = picture_of(written(image, "JPEG", exif=exif), None)
    assert picture.decode().size == (20, 40) and picture.taken == "2021-05-04T03:02:01"
    top = np.asarray(picture.decode())[2, 10]
    assert top[2] > 200 and top[0] < 60  # the left half came to the top


@pytest.mark.parametrize(("fit", "expected"), [("crop", 200), ("pad", 100), ("stretch", 200)])
def test_a_picture_that_is_no_square_is_fitted_as_asked(fit, expected):
    wide = np.full((10, 40), 200, np.uint8)
    made = ImagePreparation(20, "grey", fit, (0, 0, 0)).pixels_of(Image.fromarray(wide))
    assert made[0, 10, 10] == 200 and (made[0, 0, 10] == 200) == (expected == 200)
    assert ImagePreparation(20, "grey", fit).pixels_of(Image.fromarray(wide[:1, :1])).shape == (1, 20, 20)


@pytest.mark.parametrize(
    "given", [5, None, np.zeros((3, 3)), np.zeros((2, 2, 2, 2), np.uint8), "/dev/zero", "/", "nofile"]
)
def test_what_is_no_picture_gets_one_clear_line(given):
    with pytest.raises(InvalidInput, match="a picture |the picture "):
        read_picture(given)


def test_a_picture_in_a_file_is_kept_by_its_name_and_any_other_with_its_bytes(store, tmp_path, square_model):
    noise_image().save(tmp_path / "a.png")
    shapes = store.collection("shapes", encoder=str(square_model))
    shapes.add([
        {"key": "file", "image": tmp_path / "a.png"}, {"key": "bytes", "image": written(noise_image(), "JPEG")},
        {"key": "array", "image": squares(1)[0][0], "n": 1}, {"key": "pillow", "image": noise_image("L")},
    ])  # fmt: skip
    contents = {record.key: record for record in shapes.records()}
    assert contents["file"].content.startswith("ni:///sha-256;") and contents["file"].uri == str(tmp_path / "a.png")
    for key, kind in (("bytes", "jpeg"), ("array", "png"), ("pillow", "png")):
        assert contents[key].content.startswith(f"data:image/{kind};base64,") and contents[key].uri is None
    assert contents["array"].image().size == (16, 16) and contents["file"].image().size == (40, 30)
    assert shapes.count("_modality = 'image'") == 4 and store.verify().ok
    assert len(thumbnail(picture_of_record(contents["file"].content, contents["file"].uri), 10)) < 1000


def test_a_file_that_changed_since_is_told_from_the_one_that_was_brought_in(store, tmp_path, square_model):
    noise_image().save(tmp_path / "a.png")
    shapes = store.collection("shapes", encoder=str(square_model))
    shapes.add([{"key": "a", "image": tmp_path / "a.png"}])
    noise_image("L").save(tmp_path / "a.png")
    with pytest.raises(InvalidInput, match=r"a.png' holds another picture now than when it was brought in; ingest it"):
        shapes.get("a").image()
    assert shapes.upsert([{"key": "a", "image": tmp_path / "a.png"}]).updated == 1
    assert shapes.get("a").image().mode == "L"
    (tmp_path / "a.png").unlink()
    with pytest.raises(InvalidInput, match="cannot be read: there is no such file"):
        shapes.get("a").image()


def test_a_record_has_one_content_and_one_that_the_encoder_reads(store, square_model):
    shapes = store.collection("shapes", encoder=str(square_model))
    with pytest.raises(InvalidRecord, match="row 1, field 'image': the collection's encoder reads image; the record"):
        shapes.add([{"key": "a", "text": "a square"}])
    with pytest.raises(InvalidRecord, match="a record has one content; this has text and image"):
        shapes.add([{"key": "a", "text": "a square", "image": noise_image()}])
    with pytest.raises(InvalidRecord, match="field 'image': the picture is no picture that can be read"):
        shapes.add([{"key": "a", "image": b"torn"}])
    assert len(shapes) == 0


def test_pictures_are_found_by_pictures_decoded_and_computed_with(store, square_model):
    pictures, places = squares(300, seed=5)
    shapes = store.collection("shapes", encoder=str(square_model))
    shapes.add([
        {"key": str(i), "image": picture, "down": int(place[0]), "right": int(place[1])}
        for i, (picture, place) in enumerate(zip(pictures, places, strict=True))
    ])  # fmt: skip
    space = shapes.space()
    assert (space.name, space.metric.value, space.dim) == ("vae", "euclidean", 4)
    for query in (pictures[7], Image.fromarray(pictures[7]), written(Image.fromarray(pictures[7]), "PNG")):
        assert shapes.search(query, k=1).keys == ["7"]
    assert [hits.keys for hits in shapes.search_batch([pictures[1], pictures[2]], k=1)] == [["1"], ["2"]]
    near = shapes.search(pictures[7], k=6)
    assert np.mean([abs(hit.record.metadata["down"] - places[7][0]) for hit in near]) < 1.5
    found = shapes.search(pictures[7], k=5, where="down > 10")
    assert len(found) == 5 and all(hit.record.metadata["down"] > 10 for hit in found)
    back = np.asarray(space["7"].decode(), np.float64)
    assert np.abs(back - pictures[7]).mean() < 25
    np.testing.assert_allclose(np.asarray(space.encode(pictures[7])), np.asarray(space["7"]), atol=1e-5)
    halfway = space["7"].lerp(space["8"], 0.5).decode()
    assert halfway.size == (16, 16) and halfway.mode == "L"
    assert "data:image/png;base64," in near._repr_html_() and "(a picture)" in repr(near)
    assert near[0].to_dict()["image"].startswith("data:image/png")


def test_a_picture_is_one_vector_however_it_is_encoded(square_model):
    encoder = embedstore.encoders.load_encoder(str(square_model))
    pictures = squares(300)[0]
    together = encoder.encode([read_picture(picture) for picture in pictures]).vectors
    for place in (0, 127, 128, 299):
        np.testing.assert_allclose(encoder.encode_query(pictures[place]), together[place], atol=1e-5)
    assert encoder.encode([]).vectors.shape == (0, 4) and encoder.spec.fingerprint == embedstore.encoders.load_encoder(
        str(square_model)
    ).spec.fingerprint
    assert not hasattr(embedstore.encoders.load_encoder("minilm"), "decode")


def folder_of_pictures(folder):
    folder.mkdir()
    for i, picture in enumerate(squares(40)[0]):
        Image.fromarray(picture).save(folder / f"{i:02}.png")
    (folder / "deeper").mkdir()
    noise_image().save(folder / "deeper" / "a.JPG", "JPEG")
    (folder / "torn.png").write_bytes((folder / "00.png").read_bytes()[:60])
    (folder / "text.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("beside them")
    (folder / "list.csv").write_text("file\n00.png\n")
    os.symlink("/etc/hostname", folder / "out.png")
    os.symlink(folder / "01.png", folder / "in.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    return folder


def test_a_folder_of_pictures_comes_in_but_for_what_is_broken_or_leads_out(store, tmp_path, square_model):
    folder = folder_of_pictures(tmp_path / "pictures")
    shapes = store.collection("shapes", encoder=str(square_model))
    report = shapes.ingest(folder, image=True)
    assert (report.added, report.failed) == (42, 3)
    told = " ".join(report.errors)
    for name, why in (
        ("torn.png", "broken picture"), ("text.jpg", "no picture that can be read"), ("out.png", "leads out of"),
    ):  # fmt: skip
        assert any(name in line and why in line for line in report.errors), told
    one = shapes.get("deeper/a.JPG")
    assert one.metadata | {"modified": ""} == {
        "path": "deeper/a.JPG", "width": 40, "height": 30, "mode": "RGB", "format": "JPEG", "modified": ""
    }
    again = shapes.ingest(folder, image=True)
    assert (again.added, again.unchanged, again.encoded) == (0, 42, 0)
    with pytest.raises(InvalidRecord):
        shapes.ingest(folder, image=True, on_error="abort")


def test_pictures_come_in_by_the_paths_of_a_table_and_with_their_bytes(store, tmp_path, square_model):
    folder = folder_of_pictures(tmp_path / "pictures")
    (tmp_path / "list.csv").write_text(f"key,image,kind\na,{folder}/00.png,square\nb,{folder}/01.png,square\n")
    shapes = store.collection("shapes", encoder=str(square_model))
    assert shapes.ingest(tmp_path / "list.csv", embed_bytes=True).added == 2
    assert shapes.get("a").content.startswith("data:image/png") and shapes.get("a").metadata == {"kind": "square"}


def test_pictures_outlive_export_import_backup_and_repair(store, tmp_path, square_model):
    pictures = squares(20)[0]
    shapes = store.collection("shapes", encoder=str(square_model))
    shapes.add([{"key": str(i), "image": picture} for i, picture in enumerate(pictures)])
    vectors = shapes.vectors(["3", "4"])
    for name in ("a.parquet", "a.jsonl"):
        shapes.export(tmp_path / name)
        other = store.collection(f"from-{name}")
        other.import_(tmp_path / name)
        np.testing.assert_array_equal(other.vectors(["3", "4"]), vectors)
        assert other.get("3").modality is embedstore.model.Modality.IMAGE and other.search(pictures[3], 1).keys == ["3"]
    store.backup(tmp_path / "b")
    embedstore.restore(tmp_path / "b", tmp_path / "restored")
    embedstore.repair(store.path, tmp_path / "repaired")
    for folder in ("restored", "repaired"):
        with embedstore.open(tmp_path / folder) as opened:
            assert opened.verify().ok
            np.testing.assert_array_equal(np.asarray(opened.collection("shapes").get("3").image()), pictures[3])


def test_the_names_of_pictures_are_no_words_of_a_keyword_search(any_store, square_model):
    shapes = any_store.collection("shapes", encoder=str(square_model))
    shapes.add([{"key": "a", "image": squares(1)[0][0]}])
    assert shapes.search("image png base64 data", mode="text").keys == []
    assert any_store.verify().ok


def test_a_collection_of_texts_gets_a_second_space_of_what_it_can_read_alone(store, square_model):
    mixed = store.collection("mixed", encoder="none")
    mixed.add([
        {"key": "text", "text": "abc", "vector": [1.0, 2.0]}, {"key": "picture", "image": squares(1)[0][0]},
    ])  # fmt: skip
    mixed.add_space("vae", encoder=str(square_model))
    assert mixed.space("vae").metric.value == "euclidean"
    assert mixed.search(squares(1)[0][0], space="vae").keys == ["picture"]
    mixed.upsert([{"key": "other", "image": squares(2)[0][1]}, {"key": "text2", "text": "x"}])
    assert set(mixed.search(squares(2)[0][1], space="vae").keys) == {"picture", "other"}


def test_pictures_are_trained_on_ingested_and_searched_from_the_command_line(run_cli, tmp_path):
    folder_of_pictures(tmp_path / "pictures")

    def run(*arguments, code=0):
        done = run_cli(*arguments)
        assert done.returncode == code, done.stderr
        return done

    trained = run("train", "image", "pictures", "--out", "model", "--size", "16", "--latent-dim", "2", "--epochs", "1")
    assert "pictures        42\n" in trained.stdout and "refused         4\n" in trained.stdout
    assert "leads out of" in trained.stderr and "no regular file" in trained.stderr
    assert "added       42" in run("-q", "ingest", "shapes", "pictures", "--encoder", "model", "--image").stdout
    found = run("--format", "csv", "search", "shapes", "--image", "pictures/07.png", "-k", "1").stdout.splitlines()
    assert found[1].startswith("1,") and ",07.png," in found[1]
    assert "exists already" in run("train", "image", "pictures", "--out", "model", code=2).stderr
    assert "there is no folder 'nowhere'" in run("train", "image", "nowhere", "--out", "m", code=2).stderr
    wrong = run("search", "shapes", "--image", "pictures/text.jpg", code=2).stderr
    assert "is no picture that can be read" in wrong and "Traceback" not in wrong


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "La", "RGBa", "CMYK"])
def test_a_pillow_image_of_any_mode_is_the_same_picture_as_its_file(tmp_path, mode):
    grey = np.asarray(noise_image("L"), np.float32)
    if mode in ("I", "F", "I;16"):
        kind = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        image = Image.fromarray((grey / 255 if mode == "F" else grey * 257).astype(kind))
    else:
        image = noise_image("LA" if mode == "La" else "RGBA" if mode == "RGBa" else "RGB").convert(mode)
    by_image = ImagePreparation(16, "grey").apply(read_picture(image))
    assert abs(float(by_image.mean()) - float(grey.mean())) < 30


def test_a_pillow_image_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    (tmp_path / "a.png").write_bytes(written(noise_image(), "PNG")[:500])
    with Image.open(tmp_path / "a.png") as lazy, pytest.raises(InvalidInput, match="the picture is a broken picture"):
        read_picture(lazy)
    with pytest.raises(InvalidInput, match="the picture"):
        read_picture(Image.new("RGB", (0, 5)))


def test_decoding_in_threads_leaves_the_filters_of_warnings_alone():
    import warnings
    from concurrent.futures import ThreadPoolExecutor

    body = written(noise_image(), "JPEG")
    picture_of(body, None).decode()
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: picture_of(body, None).decode(), range(200)))
    assert warnings.filters == before


def test_a_text_stays_the_content_where_another_space_reads_pictures_too(store, tmp_path, square_model):
    (tmp_path / "notes.csv").write_text("key,text,file\na,abc,notes.txt\n")
    notes = store.collection("notes", encoder="letters")
    notes.add([{"key": "first", "text": "a"}])
    notes.add_space("vae", encoder=str(square_model))
    assert notes.ingest(tmp_path / "notes.csv").added == 1
    assert notes.get("a").content == "abc" and notes.get("a").metadata == {"file": "notes.txt"}


def test_the_command_line_takes_the_field_of_a_picture_or_the_pictures_of_a_folder(run_cli, tmp_path, square_model):
    folder = tmp_path / "shots"
    folder.mkdir()
    for i, picture in enumerate(squares(3)[0]):
        Image.fromarray(picture).save(folder / f"{i}.png")
    (folder / "note.txt").write_text("words")
    (tmp_path / "table.csv").write_text("key,shot\n" + "".join(f"k{i},shots/{i}.png\n" for i in range(3)))
    for arguments in (("table.csv", "--image", "shot"), ("--image=shot", "table.csv"), ("shots", "--image")):
        name = f"c{len(arguments[0])}"
        done = run_cli("-q", "--format", "json", "ingest", name, *arguments, "--encoder", str(square_model))
        assert done.returncode == 0, done.stderr
        assert '"added": 3' in done.stdout or '"unchanged": 3' in done.stdout
    done = run_cli("ingest", "c9", "shots", "--encoder", str(square_model))
    assert done.returncode == 2 and "--image alone" in done.stderr


def test_pictures_stay_kept_as_they_were_when_they_are_brought_in_again(store, tmp_path, square_model):
    for i, picture in enumerate(squares(3)[0]):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    shots = store.collection("shots", encoder=str(square_model))
    shots.ingest(str(tmp_path), image=True, embed_bytes=True)
    again = shots.ingest(str(tmp_path), image=True)
    assert (again.unchanged, again.encoded) == (3, 0) and shots.get("0.png").content.startswith("data:")
    assert shots.ingest(str(tmp_path), image=True, embed_bytes=False).updated == 3
    assert shots.get("0.png").content.startswith("ni:")
    assert shots.ingest(str(tmp_path), image=True).unchanged == 3


def test_pictures_that_no_encoder_reads_are_refused_and_leave_no_collection(store, tmp_path, people_model):
    Image.fromarray(squares(1)[0][0]).save(tmp_path / "a.png")
    for encoder, reads in (("letters", "text"), (str(people_model), "row")):
        with pytest.raises(InvalidInput, match=f"reads {reads}, not pictures; give --encoder MODEL"):
            store.collection("shots", encoder=encoder).ingest(str(tmp_path), image=True)
    assert store.exists() is False or store.collections() == []
    assert store.collection("kept", encoder="none").ingest(str(tmp_path), image=True).added == 1


def test_an_ingest_of_nothing_but_broken_pictures_leaves_no_collection(store, tmp_path, square_model):
    (tmp_path / "a.png").write_bytes(b"no picture")
    report = store.collection("shots", encoder=str(square_model)).ingest(
        str(tmp_path), image=True, rejects=str(tmp_path / "rejects")
    )
    assert (report.added, report.failed) == (0, 1) and store.collections() == []
    assert str(tmp_path / "a.png") in (tmp_path / "rejects").read_text()
