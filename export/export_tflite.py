"""Command: write a variant's controller and experts as `.tflite` files, or one network alone.

    export_tflite --workdir=runs/digits --expert=all

With no flags, all experts of the most recent run below runs/; where that run found that
choosing by image does not pay, the static network to ship instead, and nothing else. Every
file is run with a TFLite runtime and compared with Keras, and its latency on this host is
measured, before the folder appears.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from export import manifest
from instanas_tf import cli, startup
from instanas_tf.errors import InputError
from instanas_tf.pipeline.workdir import existing_workdir, locked


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "workdir", "", "Folder of the run; empty: the latest below runs/.", flag_values=values
    )
    flags.DEFINE_string("expert", "all", "all, or indices such as 0,2,5.", flag_values=values)
    flags.DEFINE_string(
        "variant", "", "Which variant; empty: the one picked on validation.", flag_values=values
    )
    flags.DEFINE_string("out", "", "Folder to write; empty: WORKDIR/export.", flag_values=values)
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
            raise InputError(f"--expert={index}: the variant runs the experts {names}")
    return indices


def _export(values: flags.FlagValues) -> None:
    workdir = existing_workdir(values.workdir, "experts.json")
    startup.import_tensorflow()
    from export import ship
    from instanas_tf.pipeline import variants

    variant = variants.pick(workdir, values.variant)
    verdict = None if values.variant else ship.verdict(workdir, variant.name)
    if verdict:
        print(f"{variant.name}: {verdict['sentence']}")
    static = verdict is not None and not verdict["pays"]
    if static and values.expert != "all":
        raise InputError(
            f"--expert={values.expert}: choosing by image does not pay here, and "
            f"{verdict['static_instead']} is exported alone; give --variant={variant.name} to "
            "export the variant all the same"
        )
    indices = parse_experts(values.expert, variant.indices)
    out = pathlib.Path(values.out).expanduser() if values.out else workdir.export
    check_target(out)
    with locked(workdir):
        if static:
            shipment = ship.static(variant, verdict["static_instead"])
        else:
            shipment = ship.variant(variant, indices)
        rows = ship.write(shipment, out.resolve())
    header = ("model", "KiB", "predicted ms", "measured ms", "validation accuracy")
    print(cli.table(rows, header))
    if static:
        print(f"Wrote {verdict['static_instead']} alone to {out}")
        print(f"For variant {variant.name} all the same: --variant={variant.name}")
    else:
        print(f"Wrote variant {variant.name} ({variant.kind}) to {out}")


def check_target(out: pathlib.Path) -> None:
    """Refuses to replace anything that is not an export of this command."""
    if not out.exists():
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    try:
        found = manifest.read(out)
    except InputError as error:
        message = f"--out={out} exists and is no export; choose another folder"
        raise InputError(message) from error
    known = {"manifest.json", "measurements.jsonl", *(model.path.name for model in found.models)}
    strange = sorted(path.name for path in out.iterdir() if path.name not in known)
    if strange or not found.of_kind("expert"):
        what = f"holds {strange[0]!r}, which no export wrote" if strange else "is no export"
        raise InputError(f"--out={out} {what}; move it away or choose another folder")


if __name__ == "__main__":
    sys.exit(main())
