"""A diagnosis as JUnit XML: one test case per detector, so that any CI shows it among the tests.

There is no standard; this follows the schema that Jenkins' xUnit plugin and pytest's ``--junitxml`` agree on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from headwater.records import Diagnosis, Finding, Severity
from headwater.reports.sarif import Rule

__all__ = ["to_junit"]

# What XML 1.0 (section 2.2) allows; anything else would make the file unreadable.
_ILLEGAL = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(
    diagnosis: Diagnosis,
    rules: Sequence[Rule],
    *,
    fail_on: Severity = Severity.CRITICAL,
    target: str = "",
    seconds: float = 0.0,
) -> str:
    """Write a diagnosis as a JUnit test suite.

    Args:
        diagnosis: the record.
        rules: one per detector; each is a test case, also when it found nothing.
        fail_on: findings at least this severe fail their test case; the others are its output.
        target: what was diagnosed: the name of the suite.
        seconds: how long it took.

    Returns:
        XML text.
    """
    names = {rule.code: rule.name for rule in rules}
    for finding in diagnosis.findings:
        names.setdefault(finding.code, finding.defect)
    suite = ET.Element("testsuite")
    failures = errors = 0
    for code, name in names.items():
        own = [f for f in diagnosis.findings if f.code == code]
        case = ET.SubElement(
            suite, "testcase", _clean(classname=f"headwater.{target}", name=f"{code} {name}", time="0")
        )
        crashed = [f for f in own if f.defect == "detector failed"]
        failed = [f for f in own if f not in crashed and f.severity.rank >= fail_on.rank]
        notes = [f for f in own if f not in crashed and f not in failed]
        # One element per test case: what more there is goes into its text.
        if failed:
            failures += 1
            _add(case, "failure", failed)
        elif crashed:
            errors += 1
            _add(case, "error", crashed)
        if notes:
            ET.SubElement(case, "system-out").text = _text("\n".join(str(f) for f in notes))
    suite.attrib |= _clean(
        name=f"headwater check {target}".rstrip(), tests=str(len(names)), failures=str(failures), errors=str(errors),
        skipped="0", time=f"{seconds:.3f}",
    )  # fmt: skip
    properties = ET.Element("properties")
    for key, value in (
        ("verdict", diagnosis.verdict.value),
        ("model", diagnosis.profile.model_type),
        ("coverage", str(diagnosis.profile.coverage)),
        ("headwater", diagnosis.profile.headwater_version),
        ("torch", diagnosis.profile.torch_version),
    ):
        ET.SubElement(properties, "property", _clean(name=key, value=value))
    suite.insert(0, properties)
    root = ET.Element("testsuites", dict(suite.attrib))
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _add(case: ET.Element, tag: str, findings: Sequence[Finding]) -> None:
    worst = max(findings, key=lambda f: f.severity.rank)
    element = ET.SubElement(case, tag, _clean(type=worst.severity.value, message=f"{worst.defect}: {worst.cause}"))
    element.text = _text("\n".join(_whole(f) for f in findings))


def _whole(finding: Finding) -> str:
    lines = [str(finding), *(f"  {item}" for item in finding.evidence)]
    if finding.symptom_of:
        lines.append(f"  explained by {finding.symptom_of}")
    return "\n".join(lines)


def _clean(**attributes: str) -> dict[str, str]:
    return {name: _text(value) for name, value in attributes.items()}


def _text(text: str) -> str:
    return _ILLEGAL.sub(lambda found: found.group().encode("unicode_escape", "surrogatepass").decode(), text)
