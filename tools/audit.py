# SPDX-License-Identifier: Apache-2.0
"""List what is installed beside xvla_ros, with licences: a table, and an SBOM in CycloneDX 1.5.

    make audit        or        python tools/audit.py FOLDER

Packages of ROS keep their licence in package.xml, everything else in its metadata. Libraries inside a wheel have
licences of their own: those under the GPL or LGPL are named. Exit code 1 where a licence is unknown, or under the GPL
and not told of in ``KNOWN``.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from xml.etree import ElementTree

# Libraries that wheels bundle, by the beginning of their file's name, which are under the GPL or the LGPL.
COPYLEFT_LIBRARIES = {
    "libx264": "GPL-2.0-or-later", "libx265": "GPL-2.0-or-later", "libavcodec": "LGPL-2.1-or-later",
    "libmp3lame": "LGPL-2.0-or-later", "libgmp": "LGPL-3.0-or-later", "libgnutls": "LGPL-2.1-or-later",
    "libnettle": "LGPL-3.0-or-later", "libhogweed": "LGPL-3.0-or-later", "libunistring": "LGPL-3.0-or-later",
    "libasound": "LGPL-2.1-or-later",
}  # fmt: skip
# What is under the GPL in some part, and why that is no licence of ours.
KNOWN = {
    "av": "a wheel of PyAV bundles FFmpeg with libx264 and libx265 (GPL-2.0-or-later). xvla_ros calls it, for films "
    "and LeRobot videos, and does not distribute it; who ships an image with it ships GPL code",
    "docutils": "a tool of the build; a few of its files are under the GPL",
}
SPDX = {
    "Apache Software License": "Apache-2.0", "Apache License 2.0": "Apache-2.0", "Apache 2.0": "Apache-2.0",
    "MIT License": "MIT", "BSD License": "BSD-3-Clause", "BSD": "BSD-3-Clause",
    "Python Software Foundation License": "PSF-2.0", "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}  # fmt: skip
LICENCES = {"cmeel-qhull": "Qhull"}  # of packages whose metadata name none
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Installed:
    """A package with its version, its licence, and the copyleft libraries that it bundles."""

    name: str
    version: str
    licence: str
    bundled: tuple[str, ...]

    @property
    def problem(self) -> str:
        """What is wrong with its licence; empty where nothing is."""
        texts = (self.licence, *self.bundled)
        if self.licence == UNKNOWN:
            return "its licence is unknown"
        is_gpl = any(re.search(r"(?<![L])GPL|General Public License(?!.*Lesser)", text) for text in texts)
        return "is under the GPL, and tools/audit.py does not say why it is used" * (is_gpl and self.name not in KNOWN)


def main(arguments: list[str] | None = None) -> int:
    """Write the table and the SBOM; return the exit code."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("folder", type=Path, help="receives licences.csv and sbom.json")
    folder = options.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    found = installed()
    with (folder / "licences.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["package", "version", "licence", "bundled"])
        table.writerows([each.name, each.version, each.licence, "; ".join(each.bundled)] for each in found)
    (folder / "sbom.json").write_text(json.dumps(sbom(found), indent=2) + "\n", encoding="utf-8")
    print(f"{len(found)} packages: {folder}/licences.csv, {folder}/sbom.json")
    for each in found:
        if each.name in KNOWN:
            print(f"{each.name} {each.version}: {KNOWN[each.name]}")
        if each.bundled:
            print(f"{each.name} {each.version} bundles {', '.join(each.bundled)}")
    wrong = [each for each in found if each.problem]
    for each in wrong:
        print(f"{each.name} {each.version}: {each.problem}: {each.licence}", file=sys.stderr)
    return 1 if wrong else 0


def installed() -> list[Installed]:
    """Return every package of this interpreter, by name."""
    of_ros = dict(_licences_of_ros(Path(sys.prefix, "share")))
    found = {}
    for each in distributions():
        name = each.metadata["Name"]
        if name != "xvla_ros":
            found[name.lower()] = Installed(name, each.version, _licence(each, of_ros), tuple(_bundled(each)))
    return [found[name] for name in sorted(found)]


def sbom(packages: list[Installed]) -> dict[str, object]:
    """Return the packages as a CycloneDX 1.5 document."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "components": [
            {
                "type": "library",
                "name": each.name,
                "version": each.version,
                "purl": f"pkg:pypi/{re.sub('[-_.]+', '-', each.name).lower()}@{each.version}",
                "licenses": [{"license": {"name": each.licence}}],
                **({"properties": [{"name": "bundled", "value": one} for one in each.bundled]} if each.bundled else {}),
            }
            for each in packages
        ],
    }


def _licence(package: Distribution, of_ros: dict[str, str]) -> str:
    metadata = package.metadata
    name = re.sub(r"[-.]+", "_", metadata["Name"]).lower().removeprefix("ros_")
    classifiers = [text.split(" :: ") for text in metadata.get_all("Classifier") or []]
    named = [parts[-1] for parts in classifiers if parts[0] == "License" and len(parts) > 2]
    text = (metadata.get("License") or "").strip().partition("\n")[0]
    said = metadata.get("License-Expression") or "; ".join(SPDX.get(each, each) for each in named)
    if found := said or of_ros.get(name) or SPDX.get(text, text) or _licence_of_file(package):
        return found
    return LICENCES.get(metadata["Name"], UNKNOWN)


def _licence_of_file(package: Distribution) -> str:
    """Recognise the text of a licence file, where the metadata name none."""
    known = {"Apache License": "Apache-2.0", "MIT License": "MIT", "Redistribution and use in source": "BSD-3-Clause"}
    for file in package.files or ():
        if re.match(r"(?i)licen[cs]e|copying", file.name):
            text = Path(str(file.locate())).read_text(encoding="utf-8", errors="replace")
            return next((licence for words, licence in known.items() if words in text), "")
    return ""


def _licences_of_ros(share: Path) -> Iterator[tuple[str, str]]:
    for file in share.glob("*/package.xml"):
        texts = [each.text or "" for each in ElementTree.parse(file).getroot().findall("license")]
        yield file.parent.name, "; ".join(SPDX.get(text, text) for text in texts) or UNKNOWN


def _bundled(package: Distribution) -> Iterator[str]:
    for file in package.files or ():
        for beginning, licence in COPYLEFT_LIBRARIES.items():
            if re.match(rf"{beginning}[-.]", file.name) and ".so" in file.name:
                yield f"{file.name} ({licence})"


if __name__ == "__main__":
    sys.exit(main())
