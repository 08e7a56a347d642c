"""Commands on images: what leaves the house."""

from __future__ import annotations

import argparse

from medkit.cli.common import Add, as_usage

DEIDENTIFY = """what comes out:
  OUT/<patient>/<study>/<series>/<instance>.dcm, all pseudonyms, pixels bit for bit as they were
  OUT/deidentified.json: counts, refusals by reason, profile; no names

refused without --reviewed, and listed: what is not computed by a scanner (ultrasound, radiographs,
  secondary captures, PDF, reports, colour), BurnedInAnnotation YES, ImageType SECONDARY

what is printed names files of IN: keep it as you keep IN

exit codes:
  0  done; what was refused is listed
  1  a file failed; the others are there
  2  wrong usage, or medkit[deidentify] is not installed
"""


def add_images(add: Add) -> None:
    """Add deidentify."""
    text = "write a tree of DICOM files anew, without the patients"
    command = add("deidentify", _deidentify, text, DEIDENTIFY)
    command("source", metavar="IN", help="a folder; those below it too")
    command("out", metavar="OUT", help="a new or empty folder outside of IN")
    reviewed = "a person has looked at all pixels and documents: refuse nothing"
    command("--reviewed", action="store_true", help=reviewed)
    key = "the secret behind the pseudonyms, made if it is not there (default: MEDKIT_KEY_FILE)"
    command("--key-file", metavar="F", help=key)


def _deidentify(args: argparse.Namespace) -> int:
    from medkit.jobs.notebook import UsageError

    with as_usage():
        from medkit.dicom.deidentify import deidentify_command

        options = {name: getattr(args, name) for name in ("key_file", "reviewed")}
        try:
            return deidentify_command(args.source, args.out, **options)
        except ModuleNotFoundError as error:
            raise UsageError(str(error)) from error
