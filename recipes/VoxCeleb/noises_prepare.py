"""Downloads and extracts MUSAN and RIRS_NOISES, the noises for training.

::

    python noises_prepare.py FOLDER [--musan=ARCHIVE] [--rirs=ARCHIVE]

makes FOLDER/musan and FOLDER/RIRS_NOISES, for ``musan_folder`` and
``rirs_folder`` in the YAML files. Archives that are not given are downloaded
from OpenSLR (12.4 GB in all); what is there already is used again.

MUSAN (D. Snyder, G. Chen, D. Povey, 2015) is OpenSLR's resource 17,
RIRS_NOISES (T. Ko et al., ICASSP 2017) resource 28; they hold their licences.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import argparse
import os
import tarfile
import tempfile
import zipfile
import zlib

from tqdm import tqdm

from redimnet2_lobes.files.atomic import replace_when_synced
from redimnet2_lobes.files.download import download
from redimnet2_lobes.files.error_lines import one_line_errors

DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error)

# For each corpus the folder in its archive, the folders that must be in that,
# where the archive is, and its MD5 sum.
CORPORA = {
    "musan": (
        "musan",
        ("music", "noise", "speech"),
        "https://www.openslr.org/resources/17/musan.tar.gz",
        "0c472d4fc0c5141eca47ad1ffeb2a7df",
    ),
    "rirs": (
        "RIRS_NOISES",
        ("simulated_rirs",),
        "https://www.openslr.org/resources/28/rirs_noises.zip",
        "e6f48e257286e05de56413b4779d8ffb",
    ),
}


def prepare_noises(
    folder: str, musan: str | None = None, rirs: str | None = None
) -> None:
    """Extracts both corpora, unless they are there already.

    The folder receives ``musan/`` and ``RIRS_NOISES/``, each when it is
    complete. Archives that are not given are downloaded into it.

    Raises
    ------
    ValueError
        If an archive is damaged or another one.
    OSError
        If the network or the disk fails.
    """
    os.makedirs(folder, exist_ok=True)
    for corpus, archive in (("musan", musan), ("rirs", rirs)):
        name, parts, url, md5 = CORPORA[corpus]
        target = os.path.join(folder, name)
        if os.path.exists(target):
            _check_parts(target, parts, "remove it and run this again")
            continue
        remedy = f"pass {os.path.basename(url)} of OpenSLR as --{corpus}"
        if archive is None:
            archive = os.path.join(folder, os.path.basename(url))
            download(url, archive, md5)
            remedy = "remove it and run this again"
        # On the same disk, so that the last step is a renaming.
        with tempfile.TemporaryDirectory(
            prefix=".incomplete.", dir=folder
        ) as temporary:
            _extract(archive, temporary, remedy)
            extracted = os.path.join(temporary, name)
            _check_parts(extracted, parts, remedy, archive)
            replace_when_synced(extracted, target)


def _check_parts(
    target: str, parts: tuple[str, ...], remedy: str, shown: str | None = None
) -> None:
    for part in parts:
        if not os.path.isdir(os.path.join(target, part)):
            name = os.path.basename(target)
            raise ValueError(
                f"{shown or target}: no folder {name}/{part}/ in it; {remedy}"
            )


def _extract(archive: str, folder: str, remedy: str) -> None:
    """Extracts an archive; nothing gets out of the folder."""
    bar = {"desc": os.path.basename(archive)}
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as members:
                for member in tqdm(members.infolist(), unit="file", **bar):
                    members.extract(member, folder)
            return
        # Read from front to back: a list of the members would mean to
        # decompress it twice.
        size = os.path.getsize(archive)
        with (
            open(archive, "rb") as stream,
            tqdm.wrapattr(stream, "read", total=size, **bar) as watched,
            tarfile.open(fileobj=watched, mode="r|*") as members,
        ):
            members.extractall(folder, filter="data")
    except DAMAGED as error:
        raise ValueError(
            f"{archive}: damaged or no archive ({error}); {remedy}"
        ) from error


def main(arguments: list[str] | None = None) -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(
        description="Download and extract MUSAN and RIRS_NOISES."
    )
    parser.add_argument("folder", help="where to put both")
    parser.add_argument("--musan", help="musan.tar.gz, if it is here already")
    parser.add_argument("--rirs", help="rirs_noises.zip, likewise")
    options = parser.parse_args(arguments)
    with one_line_errors():
        prepare_noises(options.folder, options.musan, options.rirs)
    musan, rirs = (
        os.path.join(options.folder, name) for name, *_ in CORPORA.values()
    )
    print(f"For training: --musan_folder={musan} --rirs_folder={rirs}")


if __name__ == "__main__":
    main()
