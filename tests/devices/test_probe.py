"""What a parent makes of a child that answered, hung, or died."""

import json
import signal

import pytest

from gimlax.devices.candidates import Candidate
from gimlax.devices.probe import probe, understand

CANDIDATE = Candidate(name="thing", library="/thing.so", source="a test")
STARTED = [{"doing": "loading it"}, {"doing": "starting its client"}, {"started": "thing"}]


def said(*reports):
    return "".join(json.dumps(report) + "\n" for report in reports)


def test_a_child_that_answered():
    answer = understand(
        CANDIDATE,
        said(
            *STARTED,
            {"doing": "asking for donation"},
            {"finding": ["donation", True, "tried"]},
            {"doing": "asking for callbacks"},
            {"finding": ["callbacks", False, "tried: no"]},
            {"done": True},
        ),
        "Platform 'thing' is experimental\n",
        0,
        None,
    )
    assert (answer.names, answer.reason) == (("thing",), "")
    (found,) = answer.capabilities
    assert found.donation
    assert not found.callbacks
    assert dict(found.how) == {"donation": "tried", "callbacks": "tried: no"}


def test_a_child_that_gave_a_reason():
    answer = understand(CANDIDATE, said(STARTED[0], {"reason": "no"}, {"done": True}), "", 0, None)
    assert (answer.names, answer.reason) == ((), "no")


@pytest.mark.parametrize(
    ("reports", "returncode", "limit_s", "reason"),
    [
        ([], 1, None, "its process ended with status 1 while starting Python and JAX: last words"),
        (STARTED[:1], -6, None, "its process ended with SIGABRT while loading it: last words"),
        (STARTED[:2], -9, 5.0, "no answer within 5 s while starting its client"),
    ],
)
def test_a_child_that_died_or_hung_before_it_started(reports, returncode, limit_s, reason):
    answer = understand(CANDIDATE, said(*reports), "first\nlast words\n\n", returncode, limit_s)
    assert (answer.names, answer.reason) == ((), reason)


def test_a_backend_that_dies_of_a_question_is_usable_without_that_capability():
    reports = [
        *STARTED,
        {"doing": "asking for donation"},
        {"finding": ["donation", True, "tried"]},
        {"doing": "asking for callbacks"},
    ]
    answer = understand(CANDIDATE, said(*reports), "oh\n", -signal.SIGSEGV, None)
    assert (answer.names, answer.reason) == (("thing",), "")
    (found,) = answer.capabilities
    assert found.donation
    assert not found.callbacks
    assert "SIGSEGV while asking for callbacks: oh" in dict(found.how)["callbacks"]


def test_a_child_is_ended_when_its_time_is_up():
    answer = probe(CANDIDATE, None, timeout_s=0.01)
    assert answer.names == ()
    assert answer.reason == "no answer within 0.01 s while starting Python and JAX"


@pytest.mark.parametrize(
    ("complaint", "says"),
    [
        ("ABORTED: The TPU is already in use by process with pid 4711. Not", "process 4711 has it"),
        ("ABORTED: The TPU is already in use by another process probably", "sudo lsof"),
        ('INTERNAL: Run "$ sudo rm /tmp/libtpu_lockfile".', "remove /tmp/libtpu_lockfile"),
    ],
)
def test_a_device_that_another_process_holds_is_explained(complaint, says):
    answer = understand(CANDIDATE, said({"reason": complaint}, {"done": True}), "", 0, None)
    assert answer.reason.startswith(f"{complaint}: a TPU belongs to one process at a time")
    assert says in answer.reason
    assert understand(CANDIDATE, said({"reason": "no"}, {"done": True}), "", 0, None).reason == "no"
