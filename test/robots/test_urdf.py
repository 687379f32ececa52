# SPDX-License-Identifier: Apache-2.0
"""One reader of URDFs: what robot_state_publisher takes is taken, by new profiles and by kinematics alike."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import pinocchio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvla_ros.errors import KinematicsError
from xvla_ros.robots import ProfileError, urdf_file
from xvla_ros.robots.kinematics import Chain, RobotDescription
from xvla_ros.robots.urdf import parse_urdf, read_urdf

LIMIT = '<limit lower="-1.5" upper="2.5" velocity="3" effort="1"/>'
FIXED = '<joint name="f" type="fixed"><parent link="l3"/><child link="eye"/></joint>'
XACRO = 'xmlns:xacro="http://www.ros.org/wiki/xacro"'


def robot(head: str = "<?xml version='1.0'?>", about: str = "", inside: str = LIMIT, rest: str = "") -> str:
    links = "".join(f'<link name="l{i}"/>' for i in range(4))
    joints = "".join(
        f'<joint name="j{i}" type="revolute"><origin xyz="0 0 0.{i}" rpy="0 {i} 0"/><parent link="l{i - 1}"/>'
        f'<child link="l{i}"/><axis xyz="0 1 0"/>{inside}</joint>'
        for i in range(1, 4)
    )
    return f'{head}<robot name="r" {about}>{links}{joints}{rest}</robot>'


TAKEN = {
    "a prefix without a namespace": robot(inside=LIMIT.replace("effort", 'drake:acceleration="9" effort')),
    "an element of such a prefix": robot(rest='<link name="eye"><sensor:camera/></link>' + FIXED),
    "a default namespace": robot(about='xmlns="http://www.ros.org"'),
    "xacro's as the default, and no xacro": robot(about='xmlns="http://www.ros.org/wiki/xacro"'),
    "xacro's name, as after expanding": robot(about=XACRO),
    "Latin-1": robot(head='<?xml version="1.0" encoding="ISO-8859-1"?><!-- modelo de José -->'),
    "Latin-1 of which nothing is said": robot(head="<!-- modelo de José -->"),
    "an encoding that nobody knows": robot(head='<?xml version="1.0" encoding="klingon"?>'),
    "a byte order mark": "\ufeff" + robot(),
    "a blank line before the declaration": "\n" + robot(),
    "a comment before the declaration": "<!-- exported -->\n" + robot(),
    "no effort": robot(inside=LIMIT.replace('effort="1"', "")),
    "no velocity": robot(inside=LIMIT.replace('velocity="3"', "")),
    "a limit that says nothing": robot(
        rest='<link name="eye"/>' + FIXED.replace("fixed", "continuous").replace("<parent", "<limit/><parent")
    ),
    "no name": robot().replace('name="r"', ""),
    "xacro in a comment": robot(about=XACRO, rest="<!-- <xacro:arm/> -->"),
    "a document type": robot(head='<?xml version="1.0"?><!DOCTYPE robot SYSTEM "robot.dtd">'),
    "signs as they are": robot(rest='<gazebo a="1 < 2 && 3 > 2"/>'),
    "a mesh without a file": robot(
        rest='<link name="eye"><visual><geometry><mesh/></geometry></visual></link>' + FIXED
    ),
    "text between elements": robot(rest="and so on"),
}


@pytest.mark.parametrize("trait", TAKEN)
def test_whatever_the_state_publisher_takes_is_taken_by_every_tool(tmp_path: Path, trait: str):
    path = tmp_path / "arm.urdf"
    path.write_bytes(TAKEN[trait].encode("latin-1" if "Latin-1" in trait else "utf-8"))
    expected = Chain(RobotDescription(robot(), "plain"), "l0", "l3")
    assert [name for name in read_urdf(path).joints if name.startswith("j")] == ["j1", "j2", "j3"]
    read = Chain(RobotDescription.from_file(path), "l0", "l3")
    assert read.joints == expected.joints
    angles = np.array([0.1, -0.2, 0.3])
    np.testing.assert_array_equal(read.poses(angles).positions, expected.poses(angles).positions)
    np.testing.assert_array_equal(read.lower, expected.lower)


REFUSED = {
    "ends early": ("<robot name='r'><link name='a'>", "the text ends too early; <link> of line 1 is open"),
    "closes no element": ("<robot>\n</link></robot>", "line 2: </link> closes no element; <robot> of line 1 is open"),
    "no element": ("<robot name='r'>< 3", "line 1: '< 3' starts no element"),
    "unfinished": ("<robot name='r", "line 1: <robot> is not finished"),
    "comment without end": ("<!-- <robot/>", "starts no element"),
    "twice": ("<robot a='1' a='2'/>", "'a' occurs twice in <robot>"),
    "nothing": ("", "the outermost element is no element; expected <robot>"),
    "words": ("Permission denied", "the outermost element is no element"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_every_tool_refuses_in_the_same_words(case: str):
    text, words = REFUSED[case]
    with pytest.raises(ProfileError) as found:
        parse_urdf(text, "arm.urdf")
    assert words in str(found.value)
    with pytest.raises(KinematicsError) as also:
        Chain(RobotDescription(text, "arm.urdf"), "a", "b")
    assert str(found.value) in str(also.value)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=6)
BETWEEN = st.sampled_from(
    ["", "\n", "<!-- a -- b > -->", "<!x y>", "<![CDATA[<joint/>]]>", "<drake:a b:c='1'/>", "w > v"]
)


@given(st.lists(NAMES, min_size=2, max_size=4, unique=True), st.lists(BETWEEN, min_size=9, max_size=9), NAMES)
def test_the_tree_is_the_one_that_urdfdom_reads(names: list[str], between: list[str], origin: str):
    links = "".join(f"{gap}<link name={quoteattr(f'l{i}')}></link >" for i, gap in zip(range(5), between, strict=False))
    joints = "".join(
        f"{between[5 + i]}<joint type='revolute' name={quoteattr(name)}><parent link='l{i}' />"
        f"<child\n link = 'l{i + 1}'/><axis xyz='0 {i} 1'/>{LIMIT}</joint>"
        for i, name in enumerate(names)
    )
    extra = "".join(
        f"<joint type='fixed' name='f{i}'><parent link='l0'/><child link='l{i}'/></joint>"
        for i in range(len(names) + 1, 5)
    )
    text = f"{between[0]}<robot name={quoteattr(origin)}>{links}{joints}{extra}</robot>"
    theirs = pinocchio.buildModelFromXML(text)
    read = parse_urdf(text, "arm.urdf")
    ours = pinocchio.buildModelFromXML(read.text)
    assert set(theirs.names) - {"universe"} == set(names)
    assert [joint.name for joint in read.joints.values() if joint.moves] == names
    assert [frame.name for frame in ours.frames] == [frame.name for frame in theirs.frames]
    assert [str(place) for place in ours.jointPlacements] == [str(place) for place in theirs.jointPlacements]


@given(st.text(alphabet="<>/'\"=-![]? \nab:&;#x1") | st.binary().map(urdf_file.decode))
def test_any_text_is_read_or_refused(text: str):
    with pytest.raises(ProfileError):
        parse_urdf(text, "arm.urdf")


MACRO = f"""<robot name="r" {XACRO}>
<xacro:macro name="joint" params="i"><link name="l${{i}}"/><joint name="j${{i}}" type="revolute">
<parent link="l${{i - 1}}"/><child link="l${{i}}"/><limit lower="${{-pi / 2}}" upper="1" velocity="1" effort="1"/>
</joint></xacro:macro><link name="l0"/><xacro:joint i="1"/><xacro:joint i="2"/></robot>"""


@pytest.mark.parametrize("name", ["arm.urdf.xacro", "arm.urdf"])
def test_xacro_is_expanded_for_every_tool(tmp_path: Path, name: str):
    pytest.importorskip("xacro")
    path = tmp_path / name
    path.write_text(MACRO)
    assert read_urdf(path).joints["j2"].lower == pytest.approx(-np.pi / 2)
    assert Chain(RobotDescription.from_file(path), "l0", "l2").joints == ("j1", "j2")


def test_what_xacro_says_is_passed_on(tmp_path: Path):
    pytest.importorskip("xacro")
    path = tmp_path / "arm.xacro"
    path.write_text(f'<robot name="r" {XACRO}><xacro:arm/></robot>')
    with pytest.raises(ProfileError, match=r"xacro cannot expand it: (?s:.*)xacro:arm(?s:.*)NAME:=VALUE"):
        read_urdf(path)


@pytest.mark.parametrize("sign", ["${prefix}", "$(arg prefix)"])
def test_names_that_are_still_expressions_are_no_names(tmp_path: Path, sign: str):
    """What is left where only the elements of xacro were taken out of a file."""
    pytest.importorskip("xacro")
    path = tmp_path / "arm.urdf"
    path.write_text(robot().replace('"j1"', f'"{sign}j1"'))
    with pytest.raises(ProfileError, match="xacro cannot expand it"):
        read_urdf(path)
    path.write_text(robot(rest=f'<material name="{sign}"/>'))
    assert "j1" in read_urdf(path).joints


ESCAPES = {
    "a builtin": ("$(eval open)", "open. is not defined"),
    "a class within a comprehension": ("${[c.__class__ for c in [1]]}", "uses __class__"),
    "every class": ("${python.type(1)}", "type. is not defined"),
    "attributes by their names": ("${python.vars(python.dict)}", "vars. is not defined"),
    "the frame of a generator": ("${(x for x in [1]).gi_frame}", "uses gi_frame"),
    "memory": ("${len('x' * 10 ** 11)}", "evaluating expression"),
    "output": ("${'x' * 10 ** 8}", "more than 8000000 bytes"),
}


@pytest.mark.parametrize("escape", list(ESCAPES))
def test_expressions_of_xacro_reach_nothing_but_values(tmp_path: Path, escape: str):
    pytest.importorskip("xacro")
    path, (expression, message) = tmp_path / "arm.xacro", ESCAPES[escape]
    path.write_text(MACRO.replace("</robot>", f'<link name="{expression.replace(chr(39), "&apos;")}"/></robot>'))
    with pytest.raises(ProfileError, match=f"xacro cannot expand it(?s:.*){message}"):
        read_urdf(path)


def test_expressions_of_robots_are_evaluated(tmp_path: Path):
    pytest.importorskip("xacro")
    path = tmp_path / "arm.xacro"
    table = """<xacro:arg name="n" default="2"/><xacro:property name="sizes" value="${dict(a=[1, 2], f_b=3)}"/>
    <link name="x${sizes['a'][1] + len('ab'.upper())}${round(radians(180), 1)}$(arg n)"/>"""
    path.write_text(MACRO.replace("</robot>", f"{table.replace(chr(39), '&apos;')}</robot>"))
    with pytest.raises(ProfileError, match=r"x43\.12"):  # a second root: its name is what was evaluated
        read_urdf(path)


def test_the_command_does_where_the_module_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = tmp_path / "bin" / "xacro"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nimport sys\nassert sys.argv[1].endswith('a.xacro')\nprint({robot()!r})\n")
    command.chmod(0o755)
    path = tmp_path / "a.xacro"
    path.write_text(MACRO)
    monkeypatch.setattr(urdf_file, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(command.parent))
    assert list(read_urdf(path).joints) == ["j1", "j2", "j3"]
    shutil.rmtree(command.parent)
    with pytest.raises(ProfileError, match=r"contains xacro, but xacro is not installed; expected .*pip install xacro"):
        read_urdf(path)
    with pytest.raises(KinematicsError, match="pip install xacro"):
        RobotDescription.from_file(path)
