# SPDX-License-Identifier: Apache-2.0
"""The hook of mkdocs.yml: pages that lie outside docs/, and links as they are written for a reader of the repository.

A page's links are relative to where its file lies in the repository. Here each is resolved there, so that a link to
nothing fails the build, and written for the site. What is linked and is no page (a message file, the licence) comes
along as a file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "QUALITY_DECLARATION.md", "bench/RESULTS.md",
    "examples/shipped_policy/README.md",
)  # fmt: skip
_CODE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\(|src=\")(?!\w+:|//|#)([^)#\s\"]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/, and the files that pages link to."""
    for name in OUTSIDE:
        files.append(_copy(config, name, InclusionLevel.INCLUDED))
    pages = [(_source(file), file.content_string) for file in files.documentation_pages()]
    for source, text in pages:
        for _, target in _LINK.findall(_CODE.sub("", text)):
            name = _resolved(source, target)
            if not name.endswith(".md") and _site_path(name) not in files.src_uris:
                files.append(_copy(config, name, InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write a page's links for the site."""
    source = _source(page.file)
    here = PurePosixPath(page.file.src_uri).parent

    def written(found: re.Match[str]) -> str:
        target = _site_path(_resolved(source, found[2]))
        return found[1] + os.path.relpath(target, here)

    parts, end = [], 0
    for code in _CODE.finditer(markdown):
        parts += [_LINK.sub(written, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _LINK.sub(written, markdown[end:])])


def _copy(config: MkDocsConfig, name: str, inclusion: InclusionLevel) -> File:
    return File.generated(config, name, abs_src_path=str(ROOT / name), inclusion=inclusion)


def _source(file: File) -> str:
    """Where a file of the site lies in the repository."""
    return file.src_uri if file.generated_by else f"docs/{file.src_uri}"


def _site_path(name: str) -> str:
    """Where a file of the repository lies in the site."""
    return name.removeprefix("docs/")


def _resolved(source: str, target: str) -> str:
    """Return the file that a link names, from the repository's root.

    Raises:
        PluginError: if there is none.
    """
    name = os.path.normpath(PurePosixPath(source).parent / target)
    if not (ROOT / name).is_file() and not name.endswith(".md"):  # mkdocs itself names a page that is not there
        raise PluginError(f"{source}: the link {target} leads to {name}, expected a file of the repository")
    return name
