"""Whether a reconnection loses or repeats messages, judged by ids. No I/O."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from otel_sse.cli.client import Reading
from otel_sse.cli.findings import Finding, note, problem, warning


@dataclass(frozen=True)
class Resume:
    """What a reconnection with ``Last-Event-ID`` gave.

    Attributes:
        last_event_id: what was sent.
        first_id: the first id that came then; None for none.
        repeated: ids that had been read before.
        lost: ids that came to neither; None where that is not known.
        compared_with: ``connection`` (one that stayed open all the time), ``numbers`` (the ids
            count up by one), or None.
        status: the second response's.

    """

    last_event_id: str
    first_id: str | None
    repeated: int
    lost: int | None
    compared_with: str | None
    status: int | None


def compare(first: Reading, second: Reading, steady: Reading) -> Resume:
    """Compares two readings, one after the other, with one that has lasted through both."""
    last = first.parser.last_id
    before, after, all_ids = list(first.ids), list(second.ids), list(steady.ids)
    lost, compared_with = None, None
    if last in all_ids:
        compared_with = "connection"
        lost = len(_missing(all_ids, last, after))
    elif after and _counts(before) and after[0].isdecimal():
        compared_with = "numbers"
        lost = max(int(after[0]) - int(last) - 1, 0)
    seen = set(before)
    return Resume(
        last_event_id=last,
        first_id=after[0] if after else None,
        repeated=sum(each in seen for each in after),
        lost=lost,
        compared_with=compared_with,
        status=second.status,
    )


def _missing(all_ids: Sequence[str], last: str, after: Sequence[str]) -> set[str]:
    """What the steady connection got behind ``last`` and the second one did not; of what came
    later than the second one's last nothing is known.
    """
    expected = list(all_ids[all_ids.index(last) + 1 :])
    known = set(after)
    while after and expected and expected[-1] not in known:
        expected.pop()
    return set(expected) - known


def _counts(ids: Sequence[str]) -> bool:
    if len(ids) < 2 or not all(each.isdecimal() for each in ids):
        return False
    numbers = [int(each) for each in ids]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def judge_resume(found: Resume | None, first: Reading) -> Iterator[Finding]:
    """``found`` is None where the first reading had no id to resume from."""
    if found is None:
        if first.is_stream:
            yield warning(
                "not-resumable",
                "No message with an id came: a reconnection cannot name the last that it has read.",
                "Give messages ids.",
            )
        return
    if found.status != 200:
        yield note(
            "reconnect-refused",
            f"The reconnection was answered by {found.status}: an EventSource stops then.",
            "Answer 204 only where the stream is over.",
        )
        return
    if found.repeated:
        yield problem(
            "resume-repeats",
            f"After Last-Event-ID {found.last_event_id!r} the server repeated {found.repeated} "
            "messages.",
            "Start behind Last-Event-ID; ids have to be unique and in the stream's order.",
        )
    if found.lost:
        how = (
            "a connection that stayed open got them"
            if found.compared_with == "connection"
            else f"the first id is {found.first_id!r}"
        )
        yield problem(
            "resume-loses",
            f"After Last-Event-ID {found.last_event_id!r} {found.lost} messages are missing: "
            f"{how}.",
            "Keep a history of messages, and send what is behind Last-Event-ID first.",
        )
    if found.first_id is None:
        yield note("resume-silent", "No message came after the reconnection: probe for longer.")
