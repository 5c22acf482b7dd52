"""Schemathesis against the server's own OpenAPI document: what it says must be what the server does.

Where an error of the server is typed (a model that raised, a server that stops, what is not done here) that is an
answer as good as any other; so in place of schemathesis' own check for server errors one looks for the type.
"""

import json
import logging
import urllib.request
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from tests.fuzzing.http_answers import Answer, complaint
from tests.fuzzing.reports import Report
from tests.fuzzing.subject import Subject

_REFUSALS = ("400", "401", "403", "404", "405", "406", "408", "413", "415", "429", "431", "501")
_CHECKS = {
    "not_a_server_error": {"enabled": False},
    "status_code_conformance": {"enabled": True},
    "content_type_conformance": {"enabled": True},
    "response_schema_conformance": {"enabled": True},
    "response_headers_conformance": {"enabled": True},
    "negative_data_rejection": {"enabled": True, "expected-statuses": list(_REFUSALS)},
    "positive_data_acceptance": {"enabled": False},  # a schema cannot say all, such as that a name occurs twice
    "missing_required_header": {"enabled": False},
    "unsupported_method": {"enabled": True},
    "use_after_free": {"enabled": False},
    "ensure_resource_availability": {"enabled": False},
    "ignored_auth": {"enabled": False},
}
_ENDLESS = "/events"
"""Is answered until the client goes."""


@schemathesis.check
def errors_are_typed(ctx: Any, response: Any, case: Any) -> None:
    """Every error says what it is."""
    headers = {name.lower(): values[0] for name, values in response.headers.items()}
    what = complaint(Answer(response.status_code, headers, response.content))
    assert what is None, what


def run(subject: Subject, inputs: int, seed: int, *, is_short: bool = False) -> Report:
    """Sends about so many requests, or more.

    Args:
        subject: the server.
        inputs: how many requests; schemathesis has its own mind about how many an operation is worth.
        seed: of all that is random.
        is_short: leaves out what takes as long however few requests are wanted: boundaries of every schema, sequences.
    """
    report = Report("openapi", seed)
    url = f"http://127.0.0.1:{subject.ports['http']}"
    with urllib.request.urlopen(f"{url}/openapi.json") as answer:
        document = json.load(answer)
    operations = sum(len(methods) for path, methods in document["paths"].items() if path != _ENDLESS)
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)
    state = subject.state()
    report.memory.append((0, state["resident_bytes"], state["blocks"]))
    passes = 0
    while report.inputs < inputs:  # an operation without parameters is soon exhausted, so the others get another turn
        left = inputs - report.inputs
        examples = max(2, min(500, left // operations))
        _pass(report, _config(url, seed + passes, examples, is_short=is_short), document, most=2 * inputs)
        passes += 1
        state = subject.state()
        report.memory.append((report.inputs, state["resident_bytes"], state["blocks"]))
        for text in state["complaints"]:
            report.add(f"the server logged: {text.splitlines()[0][:200]}", text, index=-1, input=b"")
    report.check_memory(most_bytes=32 * 2**20, most_bytes_per_input=100)
    return report.end()


def _config(url: str, seed: int, examples: int, *, is_short: bool) -> SchemathesisConfig:
    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "base-url": url,
            "checks": _CHECKS,
            "generation": {"max-examples": examples, "mode": "all", "no-shrink": True, "database": "none"},
            "continue-on-failure": True,
            "request-timeout": 20,
            "suppress-health-check": ["all"],
            "phases": {
                "coverage": {"enabled": not is_short},
                "stateful": {"enabled": not is_short, "generation": {"max-examples": max(2, examples // 10)}},
            },
        }
    )


def _pass(report: Report, config: SchemathesisConfig, document: dict[str, Any], *, most: int) -> None:
    schema = schemathesis.openapi.from_dict(document, config=config).exclude(path=_ENDLESS)
    stream = from_schema(schema).execute()
    for event in stream:
        if isinstance(event, events.ScenarioFinished):
            _note(report, event.recorder)
            if report.inputs > most:
                stream.stop()
        elif isinstance(event, events.NonFatalError):
            report.add(f"schemathesis: {event.label}: {event.value!r:.200}", str(event.info), index=-1, input=b"")
        elif isinstance(event, events.FatalError):
            raise event.exception


def _note(report: Report, recorder: Any) -> None:
    for id, interaction in recorder.interactions.items():
        report.inputs += 1
        response = interaction.response
        report.outcomes["no answer" if response is None else str(response.status_code)] += 1
        if response is not None:
            report.took(response.elapsed, report.inputs)
        for check in recorder.checks.get(id, ()):
            failure = check.failure_info
            if failure is None:
                continue
            request = interaction.request
            shown = f"{request.method} {request.uri} {request.headers} {(request.body or b'')[:1000]!r}"
            answered = "" if response is None else f"{response.status_code} {response.content[:1000]!r}"
            what = f"{recorder.label}: {check.name}: {failure.failure.title}"
            report.add(what, f"{failure.failure.message[:600]}\n  answer: {answered}", index=-1, input=shown.encode())
