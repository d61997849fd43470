"""Command: write variants of a run as `.tflite` files, or one network alone.

    export_tflite --workdir=runs/digits --expert=all

With no flags, all experts of the most recent run below runs/; where that run found that
choosing by image does not pay, the static network to ship instead, and nothing else. Every
file is run with a TFLite runtime and compared with Keras, and its latency on this host is
measured, before the folder appears; --overwrite replaces an earlier export as a whole.

With --quantize the files hold fewer bits, and the table shows what that costs on the validation
split; see docs/quantization.md.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from export import manifest
from instanas_tf import cli, startup
from instanas_tf.errors import InputError
from instanas_tf.pipeline.workdir import existing_workdir, locked

MODES = ["none", "fp16", "dynamic", "int8"]
IOS = ["float", "uint8"]

if TYPE_CHECKING:
    from instanas_tf.pipeline.variants import Variant


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    values = flags.FlagValues()
    texts = {
        "workdir": ("", "Folder of the run; empty: the latest below runs/."),
        "expert": ("all", "all, or indices such as 0,2,5."),
        "variant": ("", "all, or letters such as A,B; empty: the one picked on validation."),
        "out": ("", "Folder to write; empty: WORKDIR/export."),
    }
    for name, (default, text) in texts.items():
        flags.DEFINE_string(name, default, text, flag_values=values)
    flags.DEFINE_enum(
        "quantize",
        "none",
        MODES,
        "Numbers of the files: float32, or fewer bits.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "io", "float", IOS, "Images and probabilities; uint8 with int8 only.", flag_values=values
    )
    flags.DEFINE_integer(
        "representative",
        200,
        "Training images that show int8 files their ranges.",
        flag_values=values,
    )
    flags.DEFINE_bool("bundle", True, "Write one file with all graphs too.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace an earlier export.", flag_values=values)
    return cli.run("export_tflite", _export, argv or sys.argv, __doc__ or "", values)


def parse_experts(text: str, known: Sequence[int]) -> list[int]:
    """Indices of the experts that `--expert` names.

    Args:
        text: `all`, or indices separated by commas.
        known: those that the variant runs.

    Raises:
        InputError: no number, or an index that the variant does not run.
    """
    if text == "all":
        return list(known)
    names = ", ".join(map(str, known))
    try:
        indices = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise InputError(f"--expert={text} must be all, or some of {names}") from error
    for index in indices:
        if index not in known:
            raise InputError(f"--expert={index}: what is exported runs the experts {names}")
    return indices


def _export(values: flags.FlagValues) -> None:
    if values.io != "float" and values.quantize != "int8":
        raise InputError(f"--io={values.io} needs --quantize=int8. Received: {values.quantize}")
    workdir = existing_workdir(values.workdir, "experts.json")
    startup.import_tensorflow()
    from export import ship, shipment
    from instanas_tf.pipeline import checks, data, variants

    chosen = picked(variants.load(workdir), values.variant, variants.read(workdir)["selected"])
    verdict = None if values.variant else shipment.verdict(workdir, chosen[0].name)
    if verdict:
        print(f"{chosen[0].name}: {verdict['sentence']}")
    static = verdict is not None and not verdict["pays"]
    if static and values.expert != "all":
        raise InputError(
            f"--expert={values.expert}: choosing by image does not pay here, and "
            f"{verdict['static_instead']} is exported alone; give --variant={chosen[0].name} to "
            "export the variant all the same"
        )
    indices = None
    if values.expert != "all":
        known = sorted({index for variant in chosen for index in variant.indices})
        indices = parse_experts(values.expert, known)
    out = pathlib.Path(values.out).expanduser() if values.out else workdir.export
    check_target(out, values.overwrite)
    config = checks.from_json(workdir.config)
    try:
        images = data.load(config.data, config.seed)
    except InputError as error:
        raise InputError(
            f"the run's images cannot be read, which judge the files: {error}. If they have moved, "
            f"say where in {workdir.config} (data.data_dir)"
        ) from error
    with locked(workdir):
        if static:
            leaves = shipment.static(chosen[0], verdict["static_instead"])
        else:
            leaves = shipment.of_variants(chosen, indices)
        options = ship.Options(values.quantize, values.io, values.bundle, values.representative)
        written = ship.write(leaves, images, config, options, out.resolve())
    measured = f"ms ({written.runtime})"
    header = ("model", "KiB", "predicted ms", measured, "validation accuracy", "vs float")
    print(cli.table(written.rows, header))
    for line in written.losses:
        print(line)
    if static:
        print(f"Wrote {verdict['static_instead']} alone to {out}")
        print(f"For variant {chosen[0].name} all the same: --variant={chosen[0].name}")
    else:
        listed = ", ".join(f"{variant.name} ({variant.kind})" for variant in chosen)
        print(f"Wrote variant{'s' if len(chosen) > 1 else ''} {listed} to {out}")


def picked(found: Sequence[Variant], names: str, selected: str) -> list[Variant]:
    """The variants that `--variant` names.

    Args:
        found: all of the run.
        names: `all`, names separated by commas, or nothing.
        selected: the name of the one that is meant by nothing.

    Raises:
        InputError: there is no such variant.
    """
    by_name = {variant.name: variant for variant in found}
    wanted = list(by_name) if names == "all" else (names or selected).split(",")
    for name in wanted:
        if name not in by_name:
            raise InputError(f"--variant={name} is not all or one of {', '.join(by_name)}")
    return [variant for variant in found if variant.name in wanted]


def check_target(out: pathlib.Path, overwrite: bool) -> None:
    """Refuses to replace what no export wrote, and an export unless that is wanted."""
    if not out.exists():
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    try:
        found = manifest.read(out)
    except InputError as error:
        message = f"--out={out} exists and is no export of this version; choose another folder"
        raise InputError(message) from error
    known = {"manifest.json", "measurements.jsonl", manifest.BUNDLE}
    known |= {model.path.name for model in found.models}
    strange = sorted(path.name for path in out.iterdir() if path.name not in known)
    if strange or not found.of_kind("expert"):
        what = f"holds {strange[0]!r}, which no export wrote" if strange else "is no export"
        raise InputError(f"--out={out} {what}; move it away or choose another folder")
    if not overwrite:
        raise InputError(f"--out={out} holds an export; give --overwrite or choose another folder")


if __name__ == "__main__":
    sys.exit(main())
