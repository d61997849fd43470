"""The command that exports: nothing half-written, and one line for every mistake."""

import errno
import json
import pathlib
import shutil

import pytest

from export import bundle, convert, export_tflite, inspect_file, judge, manifest, ship
from instanas_tf.errors import CommandError, InputError
from tests import fixtures_ring as ring


@pytest.fixture
def refused(capfd, monkeypatch):
    """Runs a command line that must fail, and gives the line that it leaves."""
    monkeypatch.setenv("PYTHONPATH", str(ring.ROOT))

    def run(*arguments, code=2):
        found = export_tflite.main(["export_tflite", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert found == code, err
        assert "Traceback" not in out + err
        lines = [line for line in err.splitlines() if line.startswith("export_tflite: ")]
        return ring.said("\n".join(lines), "export_tflite")

    return run


@pytest.mark.parametrize(
    ("text", "expected"), [("all", [0, 1, 3]), ("0", [0]), ("3,1", [1, 3]), ("3,3, 0", [0, 3])]
)
def test_parse_experts(text, expected):
    assert export_tflite.parse_experts(text, [0, 1, 3]) == expected


@pytest.mark.parametrize("text", ["x", "", "1,", "2", "-1", "1.5", "99", "ALL"])
def test_experts_that_do_not_exist(text):
    with pytest.raises(InputError, match=f"--expert={text}.* 0, 1, 3$"):
        export_tflite.parse_experts(text, [0, 1, 3])


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("extra", "unexpected argument 'extra'"),
        ("--exprt=0", "exprt"),
        ("--expert=99", "--expert=99: what is exported runs the experts "),
        ("--expert=x", "--expert=x must be all, or some of "),
        ("--variant=Z", "--variant=Z is not all or one of A, B, C, D, E, F"),
    ],
)
def test_mistakes(refused, kinds, argument, words):
    before = ring.listing(kinds)
    assert words in refused(f"--workdir={kinds}", argument)
    assert ring.listing(kinds) == before


def test_no_run(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no run below runs/" in refused()
    assert "holds no run" in refused("--workdir=missing")
    (tmp_path / "config.json").write_text("{}")
    assert "holds no experts yet; train first" in refused(f"--workdir={tmp_path}")


@pytest.mark.parametrize("name", ["photo.jpg", "manifest.json"])
def test_out_that_is_no_export(refused, trained, tmp_path, name):
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text('{"name": "a web page"}')
    (out / "more.txt").write_text("dear to me")
    before = ring.listing(out)
    line = refused(f"--workdir={trained}", f"--out={out}")
    assert "exists and is no export of this version; choose another folder" in line
    assert ring.listing(out) == before


def test_out_is_a_file_or_below_one(refused, trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "is no export" in refused(f"--workdir={trained}", f"--out={tmp_path / 'file'}")
    line = refused(f"--workdir={trained}", f"--out={tmp_path / 'file' / 'below'}", code=5)
    assert "cannot write" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_the_old_export(refused, trained_copy, exported_copy, monkeypatch):
    out = pathlib.Path(shutil.move(exported_copy, trained_copy / "export"))
    before = ring.listing(trained_copy)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert, "to_tflite", lambda *args: b"x")
    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    line = refused(f"--workdir={trained_copy}", "--overwrite", code=5)
    assert "No space left on device; free some space" in line
    monkeypatch.undo()
    assert ring.listing(trained_copy) == before
    assert out.exists()


@pytest.fixture
def quick(monkeypatch):
    """Lets the command convert, check and measure nothing."""

    def convert_none(models, folder, *rest):
        paths = {name: folder / f"{name}.tflite" for name in models}
        for path in paths.values():
            path.write_bytes(b"x")
        return paths

    def judge_none(shipment, paths, *rest):
        return judge.Judged({n: {} for n in paths}, {name: {} for name in shipment.systems})

    def measure(listed, out, *rest):
        names = [entry["name"] for entry in json.loads(listed.read_text())["models"]]
        runtime = {"name": "none"}
        return [{"model": n, "median_ms": 1.0, "device": {}, "runtime": runtime} for n in names]

    monkeypatch.setattr(ship, "write_models", convert_none)
    monkeypatch.setattr(bundle, "merge", lambda paths, out: out.write_bytes(b"x"))
    monkeypatch.setattr(judge, "judge", judge_none)
    monkeypatch.setattr(inspect_file, "ops_of", lambda path: {})
    monkeypatch.setattr(inspect_file, "min_runtime", lambda path: "1.5.0")
    monkeypatch.setattr(inspect_file, "signatures", lambda path: {"x": {}})
    monkeypatch.setattr(ship, "bench", measure)


@pytest.mark.parametrize("code", [4, 5, 6])
def test_a_bench_that_fails_leaves_nothing(refused, trained_copy, quick, monkeypatch, code):
    def fail(*args):
        raise CommandError("the bench said so", code)

    monkeypatch.setattr(ship, "bench", fail)
    before = ring.listing(trained_copy)
    assert refused(f"--workdir={trained_copy}", code=code) == "the bench said so"
    assert ring.listing(trained_copy) == before


def test_some_experts(kinds, tmp_path, quick, capsys):
    run = ring.copy_run(kinds, tmp_path)
    out = run / "some"
    arguments = [f"--workdir={run}", "--variant=D", "--expert=1", f"--out={out}"]
    assert export_tflite.main(["export_tflite", *arguments]) == 0
    content = json.loads((out / "manifest.json").read_text())
    assert [entry["name"] for entry in content["models"]] == ["controller", "expert_01"]
    assert content["variants"][0]["experts"] == ["expert_00", "expert_01", "expert_02"]
    assert f"Wrote variant D (image) to {out}" in capsys.readouterr().out
    (out / "notes.txt").write_text("mine")
    assert export_tflite.main(["export_tflite", *arguments]) == 2
    assert "holds 'notes.txt', which no export wrote" in capsys.readouterr().err
    (out / "notes.txt").unlink()
    # An export is replaced only if that is wanted.
    before = ring.listing(out)
    assert export_tflite.main(["export_tflite", *arguments]) == 2
    line = f"--out={out} holds an export; give --overwrite or choose another folder"
    assert line in capsys.readouterr().err
    assert ring.listing(out) == before
    # Another choice replaces the whole folder, through a link too, and sweeps up after a kill.
    left_behind, link = out.parent / ".some.kill3d_x", out.parent / "link"
    left_behind.mkdir()
    link.symlink_to(out)
    arguments[2:] = ["--expert=0", f"--out={link}", "--overwrite"]
    assert export_tflite.main(["export_tflite", *arguments]) == 0
    assert link.is_symlink() and not left_behind.exists()
    assert sorted(path.name for path in out.glob("*.tflite")) == [
        "controller.tflite",
        "expert_00.tflite",
        "instanas.tflite",
    ]


def exported(*arguments):
    code, out, err = ring.quietly(export_tflite.main, *arguments)
    assert code == 0, err
    return out


def test_several_variants_share_their_experts(kinds, tmp_path, quick):
    out = tmp_path / "export"
    printed = exported(f"--workdir={kinds}", "--variant=all", f"--out={out}", "--nobundle")
    assert "Wrote variants A (cascade), B (cascade), C (search), D (image), E" in printed
    found = manifest.read(out)
    names = [model.name for model in found.models]
    experts = [f"expert_0{index}" for index in range(3)]
    tails = [f"tail_0{index}" for index in range(3)]
    assert names == sorted(
        [*experts, *tails, "decide_A", "decide_B", "decide_F"]
        + [f"controller_{letter}" for letter in "BCDEF"]
    )
    by_name = {variant.name: variant for variant in found.variants}
    assert list(by_name) == list("ABCDEF")
    assert set(by_name["A"].experts) <= set(experts) and by_name["D"].experts == tuple(experts)
    assert set(by_name["B"].experts) <= set(tails) and by_name["E"].experts == tuple(tails)
    assert (by_name["A"].controller, by_name["A"].decide) == (None, "decide_A")
    assert (by_name["D"].controller, by_name["D"].decide) == ("controller_D", None)
    assert found.content["bundle"] is None
    assert not (out / "instanas.tflite").exists()


def test_some_variants(kinds, tmp_path, quick):
    out = tmp_path / "export"
    exported(f"--workdir={kinds}", "--variant=E,B", f"--out={out}")
    found = manifest.read(out)
    assert [variant.name for variant in found.variants] == ["B", "E"]
    names = ["controller_B", "controller_E", "decide_B", "expert_00", "expert_01", "expert_02"]
    assert [model.name for model in found.models] == names  # No whole ones beside them.
    assert found.content["bundle"]["file"] == "instanas.tflite"
    assert found.content["selected"] == "B"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--io=uint8"], "--io=uint8 needs --quantize=int8. Received: none"),
        (["--io=uint8", "--quantize=fp16"], "needs --quantize=int8. Received: fp16"),
        (["--quantize=int4"], "int4"),
        (["--variant=A,Z"], "--variant=Z is not all or one of A, B, C, D, E, F"),
        (["--variant=A", "--quantize=int8", "--representative=20"], "at least 50 images"),
        (["--variant=A", "--quantize=int8"], "int8 needs 200 training images"),
    ],
)
def test_what_cannot_be_quantised(refused, kinds, tmp_path, arguments, words):
    out = tmp_path / "export"
    assert words in refused(f"--workdir={kinds}", f"--out={out}", *arguments)
    assert not out.exists()


def judged(workdir, pays, instead="expert_01"):
    """Lets the results of a run say whether choosing by image pays."""

    def change(results):
        (variant,) = results["variants"]
        variant |= {"pays": pays, "static_instead": instead, "sentence": f"it pays: {pays}"}

    ring.change_json(workdir / "results.json", change)
    return [f"--workdir={workdir}", f"--out={workdir / 'export'}"]


def test_a_variant_that_pays_is_exported(trained_copy, quick):
    code, out, err = ring.quietly(export_tflite.main, *judged(trained_copy, True))
    assert code == 0, err
    assert out.startswith("A: it pays: True\n")
    assert "Wrote variant A (" in out
    (entry,) = manifest.read(trained_copy / "export").variants
    assert entry.name == "A"
    assert entry.routing["kind"] != "static"


def alone_of(workdir):
    """Name of the expert that was trained by itself too."""
    results = json.loads((workdir / "results.json").read_text())
    return results["static"][4]["name"]


@pytest.mark.parametrize("name", ["expert_01", "mobilenet_v2_1.0", "alone"])
def test_where_it_does_not_pay_one_network_is_exported(trained_copy, quick, name):
    name = alone_of(trained_copy) if name == "alone" else name
    code, out, err = ring.quietly(export_tflite.main, *judged(trained_copy, False, name))
    assert code == 0, err
    assert out.startswith("A: it pays: False\n")
    assert f"Wrote {name} alone to {trained_copy / 'export'}" in out
    assert "For variant A all the same: --variant=A" in out
    found = manifest.read(trained_copy / "export")
    assert [(model.name, model.kind) for model in found.models] == [(name, "expert")]
    (entry,) = found.variants
    assert (entry.name, entry.controller, entry.decide) == (name, None, None)
    assert entry.experts == (name,)
    assert entry.routing["kind"] == "static"


def test_the_user_may_decide_otherwise(trained_copy, quick, refused):
    arguments = judged(trained_copy, False)
    code, out, err = ring.quietly(export_tflite.main, *arguments, "--variant=A")
    assert code == 0, err
    assert "Wrote variant A (" in out
    assert "it pays" not in out
    line = refused(*arguments, "--expert=0")
    assert "--expert=0: choosing by image does not pay here, and expert_01 is exported" in line
    assert "give --variant=A" in line


def without(*keys):
    def change(results):
        holder = results["variants"][0] if len(keys) > 1 else results
        holder.pop(keys[-1])

    return change


@pytest.mark.parametrize(
    "change",
    [
        *[without(key) for key in ("variants", "static")],
        *[without("variants", key) for key in ("name", "pays", "sentence", "static_instead")],
        lambda results: results.update(variants=[]),
        lambda results: results.update(variants=3),
        lambda results: results["variants"][0].update(pays="yes"),
        lambda results: results["variants"][0].update(static_instead="expert_09"),
        lambda results: results.update(static=[3]),
        lambda results: [item.update(latency_ms=10**400) for item in results["static"]],
    ],
)
def test_damaged_results(refused, trained_copy, change):
    ring.change_json(trained_copy / "results.json", change)
    line = refused(f"--workdir={trained_copy}")
    assert "results.json is damaged (" in line
    assert line.endswith("delete it and run --stage=evaluate again")


def test_rules_that_no_file_can_follow(refused, trained_copy):
    def change(content):
        routing = content["variants"][0]["routing"]
        routing["weights"] = [1e300] * len(routing["weights"])

    ring.change_json(trained_copy / "experts.json", change)
    line = refused(f"--workdir={trained_copy}", "--variant=A")
    assert "experts.json is damaged (variant A: `weights[0]` must be" in line


def test_images_that_have_moved(refused, trained_copy):
    def change(config):
        config["data"].update(name="npz", data_dir=str(trained_copy / "gone"))

    ring.change_json(trained_copy / "config.json", change)
    line = refused(f"--workdir={trained_copy}", "--variant=A")
    assert f"say where in {trained_copy}/config.json (data.data_dir)" in line


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff"])
def test_results_that_are_none(refused, trained_copy, content):
    (trained_copy / "results.json").write_bytes(content)
    line = refused(f"--workdir={trained_copy}")
    assert "results.json" in line
    assert line.endswith("delete it and run --stage=evaluate again")


def test_without_results_the_variant_is_exported(trained_copy, quick):
    (trained_copy / "results.json").unlink()
    code, out, err = ring.quietly(export_tflite.main, f"--workdir={trained_copy}")
    assert code == 0, err
    assert "Wrote variant A (" in out
