"""A diagnosis as SARIF 2.1.0, the format in which code hosts and editors take findings.

Reference: OASIS, *Static Analysis Results Interchange Format (SARIF) Version 2.1.0*, 2020.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headwater.records import Diagnosis, Finding, Severity
from headwater.reports.marks import literal

__all__ = ["Rule", "SourceLocation", "to_sarif"]

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {Severity.CRITICAL: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


@dataclass(frozen=True, slots=True)
class Rule:
    """What a detector looks for, for reports that list what was checked.

    Attributes:
        code: stable, such as ``HW101``.
        name: of the defect, one word in capitals and lower case: ``VanishingGradient``.
        summary: one sentence.
        help: the whole explanation, in Markdown.
    """

    code: str
    name: str
    summary: str
    help: str


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """The line of the file that makes the model: what a code host attaches a finding to.

    Attributes:
        uri: of the file, relative to the folder that the command ran in, with forward slashes.
        line: from 1.
    """

    uri: str
    line: int


def to_sarif(
    diagnosis: Diagnosis, rules: Sequence[Rule], *, source: SourceLocation | None = None, target: str = ""
) -> str:
    """Write a diagnosis as a SARIF log with one run.

    Severities become levels (critical: error, warning: warning, info: note); the layers and parameters of a finding
    become logical locations; its numbers are in ``properties``.

    Args:
        diagnosis: the record.
        rules: one per detector, also for those that found nothing; a code without a rule gets a bare one.
        source: the line that makes the model, or None.
        target: what was diagnosed, for the log's properties.

    Returns:
        Strict JSON.
    """
    known = {rule.code: rule for rule in rules}
    for finding in diagnosis.findings:
        known.setdefault(finding.code, Rule(finding.code, finding.code, finding.defect, finding.defect))
    order = {code: index for index, code in enumerate(known)}
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "headwater",
                "version": diagnosis.profile.headwater_version,
                "rules": [_rule(rule) for rule in known.values()],
            }
        },
        "invocations": [
            {
                "executionSuccessful": True,
                "toolExecutionNotifications": [
                    {"level": "note", "message": {"text": note}} for note in diagnosis.undecided
                ],
            }
        ],
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, order, source, diagnosis) for finding in diagnosis.findings],
        "properties": {
            "target": target,
            "model": diagnosis.profile.model_type,
            "verdict": diagnosis.verdict.value,
            "coverage": str(diagnosis.profile.coverage),
        },
    }
    document = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": rule.summary},
        "help": {"text": literal(rule.help), "markdown": rule.help},
        "defaultConfiguration": {"level": "warning"},
    }


def _result(
    finding: Finding, order: dict[str, int], source: SourceLocation | None, diagnosis: Diagnosis
) -> dict[str, Any]:
    location: dict[str, Any] = {}
    if source is not None:
        location["physicalLocation"] = {
            "artifactLocation": {"uri": source.uri},
            "region": {"startLine": source.line},
        }
    parameters = {q.name for q in diagnosis.profile.parameters}
    if finding.where:
        location["logicalLocations"] = [
            {
                "name": name.rpartition(".")[2],
                "fullyQualifiedName": name,
                "kind": "variable" if name in parameters else "module",
            }
            for name in finding.where
        ]
    role = "root cause" if finding is diagnosis.root else "symptom" if finding.symptom_of else "finding"
    return {
        "ruleId": finding.code,
        "ruleIndex": order[finding.code],
        "kind": "fail",
        "level": _LEVELS[finding.severity],
        "message": {"text": str(finding)},
        **({"locations": [location]} if location else {}),
        # Stable while the defect stays where it is, whatever its numbers: what code hosts track an alert by.
        "partialFingerprints": {
            "headwater/v1": f"{finding.code}:{finding.defect}:{finding.where[0] if finding.where else ''}"
        },
        "properties": {
            "defect": finding.defect,
            "severity": finding.severity.value,
            "role": role,
            "symptomOf": finding.symptom_of,
            "evidence": [
                {
                    "name": item.name,
                    "value": item.value if math.isfinite(item.value) else str(item.value),
                    "unit": item.unit,
                    "reference": item.reference,
                }
                for item in finding.evidence
            ],
        },
    }
