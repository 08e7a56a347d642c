"""Commands on images: what leaves the house."""

from __future__ import annotations

import argparse

from medkit.cli.common import Add, as_usage

DEIDENTIFY = """what comes out:
  OUT/<patient>/<study>/<series>/<instance>.dcm, all pseudonyms, pixels bit for bit as they were
  OUT/deidentified.json: counts, refusals by reason, profile; no names
  OUT/F for each --table F: ids as the same pseudonyms, so that labels still join; coordX, coordY,
    coordZ, class and diameter_mm stay, other columns only by --keep; names of files and columns
    stay as they are

refused without --reviewed, and listed: what is not computed by a scanner (ultrasound, radiographs,
  secondary captures, PDF, reports, colour), BurnedInAnnotation YES, ImageType SECONDARY

what is printed names files of IN: keep it as you keep IN

exit codes:
  0  done; what was refused is listed
  1  a file failed; the others are there
  2  wrong usage, no DICOM file in IN, or medkit[deidentify] is not installed
"""


def add_images(add: Add) -> None:
    """Add deidentify."""
    text = "write a tree of DICOM files anew, without the patients"
    command = add("deidentify", _deidentify, text, DEIDENTIFY)
    command("source", metavar="IN", help="a folder; those below it too")
    command("out", metavar="OUT", help="a new or empty folder outside of IN")
    reviewed = "a person has looked at all pixels and documents: refuse nothing"
    command("--reviewed", action="store_true", help=reviewed)
    key = (
        "the secret behind the pseudonyms, made if it is not there (default: the file that "
        "MEDKIT_KEY_FILE names, else ~/.config/medkit/pseudonym.key)"
    )
    command("--key-file", metavar="F", help=key)
    table = "a CSV file of labels that is written anew into OUT (may be given again)"
    command("--table", metavar="F", dest="tables", action="append", default=[], help=table)
    keep = "a column of the tables that stays as it is: a person has looked (may be given again)"
    command("--keep", metavar="COLUMN", action="append", default=[], help=keep)


def _deidentify(args: argparse.Namespace) -> int:
    from medkit.jobs.notebook import UsageError

    with as_usage():
        from medkit.dicom.deidentify import deidentify_command

        options = {name: getattr(args, name) for name in ("key_file", "reviewed", "tables", "keep")}
        try:
            return deidentify_command(args.source, args.out, **options)
        except ModuleNotFoundError as error:
            raise UsageError(str(error)) from error
